/**
 * What an address is: `host:port` as text, IPv6 hosts in brackets. Links and connection strings
 * ask here, so that both refuse the same nonsense.
 */

const ADDRESS = /^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})$/;

/** What is wrong with an address, or null. */
export function addressProblem(address: string): string | null {
  const match = ADDRESS.exec(address);
  if (match === null) return `"${address}" is not host:port`;
  const port = Number(match[2]);
  if (port < 1 || port > 65_535) return `port ${match[2]} of "${address}" is not in 1 … 65535`;
  return null;
}

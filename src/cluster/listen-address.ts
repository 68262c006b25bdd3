/**
 * Where a process may listen: there is no authentication yet, so anything beyond loopback has to
 * be asked for by name.
 */
import { RekindleError } from '../rpc/errors.js';

/** Refuses an address beyond loopback unless `insecure`. */
export function checkListenAddress(host: string, insecure: boolean): void {
  const loopback = host === 'localhost' || host === '::1' || /^127(\.\d{1,3}){3}$/.test(host);
  if (loopback || insecure) return;
  throw new RekindleError(
    'INVALID_ARGUMENT',
    `${host} is not loopback: there is no authentication yet, so listening there needs --insecure`,
  );
}

/**
 * Ports for local clusters. They are taken from below the kernel's ephemeral range: a port that
 * must be the same after a restart would otherwise be given to some outgoing connection meanwhile.
 */
import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';
import { RekindleError } from '../rpc/errors.js';

const PORT_MIN = 20_000;
const PORT_MAX = 32_000;
const ATTEMPTS_MAX = 200;

export function portIsFree(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = createServer();
    probe.once('error', () => resolve(false));
    probe.listen({ host, port, exclusive: true }, () => probe.close(() => resolve(true)));
  });
}

/** `count` different free ports; `preferred` is the first of them if it is free. */
export async function freePorts(
  host: string,
  count: number,
  preferred?: number,
): Promise<number[]> {
  const ports = new Set<number>();
  if (preferred !== undefined && (await portIsFree(host, preferred))) ports.add(preferred);
  for (let attempt = 0; ports.size < count; attempt++) {
    if (attempt >= ATTEMPTS_MAX) {
      throw new RekindleError('INTERNAL', `no free ports between ${PORT_MIN} and ${PORT_MAX}`);
    }
    const port = randomInt(PORT_MIN, PORT_MAX);
    if (!ports.has(port) && (await portIsFree(host, port))) ports.add(port);
  }
  return [...ports];
}

/**
 * `rekindle://host:port,host:port/?cluster=UUID&timeoutMs=10000` as data. Anything that is not
 * understood is refused with `INVALID_ARGUMENT` that names the part: an ignored option would be a
 * promise not kept.
 */
import { addressProblem } from '../rpc/address.js';
import { RekindleError } from '../rpc/errors.js';

export interface ConnectionString {
  /** Coordinators, tried in turn. */
  addresses: string[];
  clusterId: string | null;
  timeoutMs: number | null;
}

const PREFIX = 'rekindle://';
const ADDRESSES_MAX = 64;
export const TIMEOUT_MS_MAX = 3_600_000;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

export function invalidArgument(message: string): RekindleError {
  return new RekindleError('INVALID_ARGUMENT', message);
}

export function parseConnectionString(url: string): ConnectionString {
  if (typeof url !== 'string' || !url.startsWith(PREFIX)) {
    throw invalidArgument(`a connection string begins with ${PREFIX}, this does not: ${url}`);
  }
  const [hosts = '', query = '', ...more] = url.slice(PREFIX.length).split('?');
  if (more.length > 0) throw invalidArgument(`more than one "?" in ${url}`);
  const addresses = hosts.replace(/\/$/, '').split(',');
  if (addresses.length > ADDRESSES_MAX) {
    throw invalidArgument(`more than ${ADDRESSES_MAX} addresses in ${url}`);
  }
  for (const address of addresses) {
    const problem = addressProblem(address);
    if (problem !== null) throw invalidArgument(`${problem} in ${url}`);
  }
  const result: ConnectionString = {
    addresses: [...new Set(addresses)],
    clusterId: null,
    timeoutMs: null,
  };
  for (const [name, value] of new URLSearchParams(query)) {
    if (name === 'cluster') {
      if (!UUID.test(value)) throw invalidArgument(`cluster "${value}" is not a UUID`);
      result.clusterId = value.toLowerCase();
    } else if (name === 'timeoutMs') {
      if (!/^\d{1,9}$/.test(value)) throw invalidArgument(`timeoutMs "${value}" is not a number`);
      result.timeoutMs = checkTimeoutMs(Number(value));
    } else {
      throw invalidArgument(`unknown option "${name}" in ${url}`);
    }
  }
  return result;
}

export function checkTimeoutMs(timeoutMs: number): number {
  if (!(timeoutMs >= 1 && timeoutMs <= TIMEOUT_MS_MAX)) {
    throw invalidArgument(`timeoutMs ${timeoutMs} is not in 1 … ${TIMEOUT_MS_MAX}`);
  }
  return timeoutMs;
}

/** Looked at before anything is begun: a listener that cannot be removed would hold the call. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal === undefined || signal instanceof AbortSignal) return;
  throw invalidArgument('signal is not an AbortSignal');
}

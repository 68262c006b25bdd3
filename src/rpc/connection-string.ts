/**
 * `rekindle://host:port,host:port/?cluster=UUID&timeoutMs=10000` as data, or with a DNS name
 * instead of addresses `rekindle+srv://name/`. Anything that is not
 * understood is refused with `INVALID_ARGUMENT` that names the part: an ignored option would be a
 * promise not kept.
 */
import { addressProblem } from './address.js';
import { RekindleError } from './errors.js';

export interface ConnectionString {
  /** Coordinators, tried in turn; none with a service. */
  addresses: string[];
  /** DNS name below which `_rekindle._tcp` (SRV) says where coordinators are. */
  service: string | null;
  clusterId: string | null;
  timeoutMs: number | null;
}

const PREFIX = 'rekindle://';
const PREFIX_SRV = 'rekindle+srv://';
const DNS_NAME = /^(?=.{1,240}$)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?$/;
const ADDRESSES_MAX = 64;
export const TIMEOUT_MS_MAX = 3_600_000;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

export function invalidArgument(message: string): RekindleError {
  return new RekindleError('INVALID_ARGUMENT', message);
}

export function parseConnectionString(url: string): ConnectionString {
  const prefix = [PREFIX, PREFIX_SRV].find(
    (each) => typeof url === 'string' && url.startsWith(each),
  );
  if (prefix === undefined) {
    throw invalidArgument(
      `a connection string begins with ${PREFIX} or ${PREFIX_SRV}, this does not: ${url}`,
    );
  }
  const [hosts = '', query = '', ...more] = url.slice(prefix.length).split('?');
  if (more.length > 0) throw invalidArgument(`more than one "?" in ${url}`);
  const place = hosts.replace(/\/$/, '');
  const result: ConnectionString = {
    addresses: prefix === PREFIX ? parseAddresses(place, url) : [],
    service: prefix === PREFIX ? null : parseService(place, url),
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

/** For a server: `host:port,host:port`, or a connection string without options. */
export function parseCoordinators(text: string): Pick<ConnectionString, 'addresses' | 'service'> {
  const url = text.includes('://') ? text : `${PREFIX}${text}`;
  const { addresses, service, clusterId, timeoutMs } = parseConnectionString(url);
  if (clusterId !== null || timeoutMs !== null) {
    throw invalidArgument(`options after "?" are for clients, not for a server: ${text}`);
  }
  return { addresses, service };
}

function parseAddresses(place: string, url: string): string[] {
  const addresses = place.split(',').map((address) => address.trim());
  if (addresses.length > ADDRESSES_MAX) {
    throw invalidArgument(`more than ${ADDRESSES_MAX} addresses in ${url}`);
  }
  for (const address of addresses) {
    const problem = addressProblem(address);
    if (problem !== null) throw invalidArgument(`${problem} in ${url}`);
  }
  return [...new Set(addresses)];
}

function parseService(place: string, url: string): string {
  if (DNS_NAME.test(place)) return place;
  throw invalidArgument(`"${place}" is not a DNS name in ${url}`);
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

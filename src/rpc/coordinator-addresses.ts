/**
 * Where coordinators are: a list, or the name of a DNS service (`_rekindle._tcp.NAME`, SRV), which
 * is asked again whenever nobody answers, so that coordinators may move.
 */
import { promises as dns } from 'node:dns';
import { RekindleError } from './errors.js';

/** Whom to ask, in this order; at least one. */
export type CoordinatorAddresses = () => Promise<readonly string[]>;

export interface SrvRecord {
  name: string;
  port: number;
  /** The lowest first; among equals the heaviest. */
  priority: number;
  weight: number;
}

export type ResolveSrv = (name: string) => Promise<readonly SrvRecord[]>;

export function coordinatorAddresses(
  { addresses, service }: { addresses: readonly string[]; service: string | null },
  resolveSrv: ResolveSrv = dns.resolveSrv,
): CoordinatorAddresses {
  if (service === null) return async () => addresses;
  const name = `_rekindle._tcp.${service}`;
  return async () => {
    let records: readonly SrvRecord[];
    try {
      records = await resolveSrv(name);
    } catch (cause) {
      throw unavailable(`DNS does not know ${name} (SRV): ${cause}`, cause);
    }
    if (records.length === 0) throw unavailable(`DNS has no SRV records of ${name}`);
    return [...records]
      .sort((a, b) => a.priority - b.priority || b.weight - a.weight)
      .map((record) => `${record.name.replace(/\.$/, '')}:${record.port}`);
  };
}

function unavailable(problem: string, cause?: unknown): RekindleError {
  return new RekindleError('COORDINATOR_UNAVAILABLE', problem, { cause });
}

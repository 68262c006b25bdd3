/**
 * Copies of the coordinator's state on servers (docs/formats.md §5), and the way back: an empty
 * storage takes over such a copy.
 *
 * A copy may be older than the state that was lost, so restoring leaves gaps in everything that is
 * counted: no id and no term that the lost coordinator may have given out is given out again.
 */
import { crc32c } from '../ops/checksum.js';
import { RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';
import type { Lead } from './candidate.js';
import {
  type ClusterRecord,
  CoordinatorState,
  clusterKey,
  copysetKey,
} from './coordinator-state.js';
import type { ExternalStorage, StoragePair } from './external-storage/external-storage.js';

export type StateCopy = RequestOf<'STORE_COORDINATOR_STATE'>;

export interface RestoreReport {
  clusterId: string;
  /** Of the copy. */
  revision: number;
  servers: number;
  tables: number;
}

const COPY_FORMAT = 1;
export const ID_GAP = 1_000_000;
const TERM_GAP = 1_000;

function crc32cOf(text: string): number {
  return crc32c(Buffer.from(text, 'utf8'));
}

export function copyOf(state: CoordinatorState, revision: number): StateCopy {
  const text = JSON.stringify({ format: COPY_FORMAT, pairs: state.pairs() });
  const { clusterId, term } = state.cluster;
  return { clusterId, term, revision, crc32c: crc32cOf(text), state: text };
}

/**
 * Fills a storage that has no servers and no tables from the text of a copy, as servers keep it.
 * Refuses anything else with `INVALID_ARGUMENT` or `CHECKSUM_MISMATCH`, and then changes nothing.
 */
export async function restoreState(
  storage: Pick<ExternalStorage, 'commit'>,
  { leadership, revision, state }: Lead,
  text: string,
): Promise<{ lead: Lead; report: RestoreReport }> {
  const copy = parseCopy(text);
  // What `rekindle init` writes.
  const made = new Set([clusterKey, copysetKey]);
  const used = state.exists && state.pairs().some(({ key }) => !made.has(key));
  if (used) {
    throw new RekindleError(
      'INVALID_ARGUMENT',
      'this coordinator has servers or tables already; a copy is restored into an empty storage',
    );
  }
  const pairs = parsePairs(copy.state).map(({ key, value }) =>
    key === clusterKey ? { key, value: withGaps(value as ClusterRecord) } : { key, value },
  );
  if (!pairs.some(({ key }) => key === clusterKey)) {
    throw new RekindleError('INVALID_ARGUMENT', 'the copy has no cluster record');
  }
  const newRevision = await storage.commit(leadership, revision, pairs);
  const count = (prefix: string): number =>
    pairs.filter(({ key }) => key.startsWith(prefix)).length;
  const lead = { leadership, revision: newRevision, state: CoordinatorState.from(pairs) };
  const { clusterId } = copy;
  const counts = { servers: count('servers/'), tables: count('tables/') };
  return { lead, report: { clusterId, revision: copy.revision, ...counts } };
}

function withGaps(cluster: ClusterRecord): ClusterRecord {
  return {
    ...cluster,
    term: cluster.term + TERM_GAP,
    serverGeneration: cluster.serverGeneration + 1,
    nextTableId: cluster.nextTableId + ID_GAP,
    nextRecoveryId: cluster.nextRecoveryId + ID_GAP,
    serverListVersion: cluster.serverListVersion + ID_GAP,
  };
}

function parseCopy(text: string): StateCopy {
  const copy = parseJson(text, 'the file is no copy of a coordinator state') as Partial<StateCopy>;
  if (typeof copy?.state !== 'string' || typeof copy.crc32c !== 'number') {
    throw new RekindleError('INVALID_ARGUMENT', 'the file is no copy of a coordinator state');
  }
  if (crc32cOf(copy.state) !== copy.crc32c) {
    throw new RekindleError('CHECKSUM_MISMATCH', 'the copy is damaged: its checksum is wrong');
  }
  return copy as StateCopy;
}

function parsePairs(text: string): StoragePair[] {
  const content = parseJson(text, 'the copy is not readable') as {
    format?: number;
    pairs?: StoragePair[];
  };
  if (content.format !== COPY_FORMAT || !Array.isArray(content.pairs)) {
    throw new RekindleError('INVALID_ARGUMENT', `the copy has format ${content.format}`);
  }
  return content.pairs;
}

function parseJson(text: string, message: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new RekindleError('INVALID_ARGUMENT', message, { cause: error });
  }
}

/**
 * A coordinator's state from the disks of all servers, for a storage that is lost without a copy
 * (docs/rebuild.md). Pure.
 *
 * Rules: every master that may have a log is in it, as crashed and to be recovered, since a backup
 * frees the replicas of masters that are not; what is counted goes on behind everything that the
 * logs mention; what cannot be known is a finding that the operator must confirm.
 */
import type { FolderReport } from '../ops/inspector/data-folder.js';
import type { ClusterNote } from '../ops/log-notes.js';
import { RekindleError } from '../rpc/errors.js';
import {
  absentKey,
  type ClusterRecord,
  CoordinatorState,
  clusterKey,
  recoveryKey,
  serverKey,
  tableKey,
} from './coordinator-state.js';
import type { StoragePair } from './external-storage/external-storage.js';
import { type FoundLog, type FoundReplica, findLog } from './rebuild-log.js';
import { type RebuiltTables, rebuildTables } from './rebuild-tables.js';
import { copyOf, ID_GAP, type StateCopy } from './state-copy.js';

/** One disk, and where its report came from. */
export interface DiskEvidence {
  source: string;
  report: FolderReport;
}

export interface RebuildPlan extends RebuiltTables {
  clusterId: string;
  settings: Pick<ClusterNote, 'replicas' | 'durability' | 'allowSameHost'>;
  disks: { serverId: number; source: string }[];
  /** Of masters that were members, by id. */
  logs: FoundLog[];
  /** Masters whose logs are not needed: they had left the cluster. */
  released: number[];
  /** Why the cluster may have had more than this. */
  doubts: string[];
  copy: StateCopy;
}

/** Upper half of a server id. */
const GENERATION_UNIT = 2 ** 32;

/**
 * @throws `INVALID_ARGUMENT` if these are not the disks of one cluster, or have no log of it.
 */
export function planRebuild(disks: readonly DiskEvidence[], nowMs: number): RebuildPlan {
  const identities = identitiesOf(disks);
  const all = findLogs(disks, identities);
  const newest = newestNote(all);
  if (newest === null) {
    throw new RekindleError(
      'INVALID_ARGUMENT',
      'no head of a log is on these disks that names its cluster: there is nothing to rebuild from',
    );
  }
  const listed = new Set(newest.servers);
  const listedMax = Math.max(0, ...listed);
  // Ids only grow: whoever is above joined after that list, whoever is missing below had left.
  const member = (serverId: number): boolean => listed.has(serverId) || serverId > listedMax;
  const logs = all.filter(({ masterId }) => member(masterId));
  const known = new Set([...listed, ...identities.keys(), ...all.map((log) => log.masterId)]);
  const indexMax = Math.max(0, ...[...known].map((id) => id % GENERATION_UNIT));
  const generation = Math.max(0, ...[...known].map((id) => Math.floor(id / GENERATION_UNIT)));
  const nobody = indexMax + 1 + generation * GENERATION_UNIT;
  const claims = logs.flatMap(({ masterId, claims: own }) =>
    own.map((claim) => ({ ...claim, serverId: masterId })),
  );
  const { tables, holes } = rebuildTables(claims, nobody);
  const mentioned = all.flatMap((log) => log.claims);
  const { replicas, durability, allowSameHost } = newest;
  const cluster: ClusterRecord = {
    clusterId: newest.clusterId,
    term: newest.term,
    nextServerIndex: indexMax + 2,
    serverGeneration: generation,
    nextTableId: Math.max(0, ...mentioned.map(({ tableId }) => tableId)) + 1,
    nextRecoveryId: Math.max(0, ...mentioned.map((claim) => claim.ownershipId)) + 1 + ID_GAP,
    serverListVersion: newest.serverListVersion + 1,
    replicas,
    durability,
    allowSameHost,
    recentDrops: [],
  };
  const members = [...known].filter(member).sort((a, b) => a - b);
  if (tables.some(({ tablets }) => tablets.some(({ serverId }) => serverId === nobody))) {
    members.push(nobody);
  }
  const pairs = [
    ...serverPairs(cluster, members, logs, identities, nowMs),
    ...tables.map((table) => ({ key: tableKey(table.tableId), value: table })),
  ];
  return {
    clusterId: newest.clusterId,
    settings: { replicas, durability, allowSameHost },
    disks: [...identities].map(([serverId, source]) => ({ serverId, source })),
    logs,
    released: all.filter(({ masterId }) => !member(masterId)).map(({ masterId }) => masterId),
    tables,
    holes,
    doubts: doubtsOf(newest, disks, logs, identities, holes),
    copy: copyOf(CoordinatorState.from(pairs), 1),
  };
}

/** Server id -> source of its disk. */
function identitiesOf(disks: readonly DiskEvidence[]): Map<number, string> {
  const identities = new Map<number, string>();
  let first: { clusterId: string; source: string } | null = null;
  for (const { source, report } of disks) {
    const { clusterId, serverId } = report.superblock ?? { clusterId: null, serverId: 0 };
    if (clusterId === null) {
      throw new RekindleError('INVALID_ARGUMENT', `${source} names no cluster: leave it out`);
    }
    first ??= { clusterId, source };
    if (clusterId !== first.clusterId) {
      throw new RekindleError(
        'INVALID_ARGUMENT',
        `${source} belongs to cluster ${clusterId}, ${first.source} to ${first.clusterId}`,
      );
    }
    const other = identities.get(serverId);
    if (other !== undefined) {
      throw new RekindleError(
        'INVALID_ARGUMENT',
        `${source} and ${other} are both the disk of server ${serverId}: give one of them`,
      );
    }
    identities.set(serverId, source);
  }
  return identities;
}

function findLogs(
  disks: readonly DiskEvidence[],
  identities: ReadonlyMap<number, string>,
): FoundLog[] {
  const idBySource = new Map([...identities].map(([id, source]) => [source, id]));
  const byMaster = new Map<number, FoundReplica[]>();
  for (const { source, report } of disks) {
    for (const replica of report.frames.flatMap(({ replicas }) => replicas)) {
      const { masterId, segmentId, epoch, length, state, digest, notes } = replica;
      const own = byMaster.get(masterId) ?? [];
      own.push({
        serverId: idBySource.get(source) ?? 0,
        segmentId,
        epoch,
        length,
        closed: state === 'closed',
        digest: digest?.map(Number) ?? null,
        notes,
      });
      byMaster.set(masterId, own);
    }
  }
  return [...byMaster].sort(([a], [b]) => a - b).map(([id, replicas]) => findLog(id, replicas));
}

function newestNote(logs: readonly FoundLog[]): ClusterNote | null {
  const notes = logs.flatMap(({ cluster }) => (cluster === null ? [] : [cluster]));
  return notes.reduce<ClusterNote | null>((best, one) => {
    const newer =
      best === null ||
      one.term > best.term ||
      (one.term === best.term && one.serverListVersion > best.serverListVersion);
    return newer ? one : best;
  }, null);
}

/** All of them are crashed: who comes back does so under a new id, as after any restart. */
function serverPairs(
  cluster: ClusterRecord,
  members: readonly number[],
  logs: readonly FoundLog[],
  sources: ReadonlyMap<number, string>,
  nowMs: number,
): StoragePair[] {
  const logOf = new Map(logs.map((log) => [log.masterId, log]));
  const nextServerId = cluster.nextServerIndex + cluster.serverGeneration * GENERATION_UNIT;
  const pairs: StoragePair[] = [];
  for (const [index, serverId] of members.entries()) {
    const log = logOf.get(serverId);
    const address = sources.get(serverId) ?? 'unknown';
    const [host, backup] = ['unknown', sources.has(serverId)];
    const server = { serverId, address, host, rack: null, master: true, backup, memoryBytes: 0 };
    const minimum = {
      minOpenSegmentId: log?.headSegmentId ?? 0,
      minOpenEpoch: log?.epoch ?? 0,
    };
    const record = { ...server, status: 'crashed', nonce: `rebuilt-${serverId}`, ...minimum };
    pairs.push({ key: serverKey(serverId), value: record });
    const recovery = {
      recoveryId: cluster.nextRecoveryId + index,
      crashedServerId: serverId,
      suspectedAtMs: nowMs,
      crashedAtMs: nowMs,
      partitions: null,
      lost: { head: false, segmentIds: [] },
    };
    pairs.push({ key: recoveryKey(recovery.recoveryId), value: recovery });
    const absent = { serverId, host, address, crashedAtMs: nowMs, nextServerId };
    if (backup) pairs.push({ key: absentKey(serverId), value: absent });
  }
  const nextRecoveryId = cluster.nextRecoveryId + members.length;
  return [{ key: clusterKey, value: { ...cluster, nextRecoveryId } }, ...pairs];
}

function doubtsOf(
  { servers, replicas }: ClusterNote,
  disks: readonly DiskEvidence[],
  logs: readonly FoundLog[],
  identities: ReadonlyMap<number, string>,
  holes: RebuiltTables['holes'],
): string[] {
  const doubts: string[] = [];
  const found = new Set(logs.map(({ masterId }) => masterId));
  for (const serverId of servers) {
    if (identities.has(serverId)) continue;
    const missing = found.has(serverId)
      ? 'its disk is not here'
      : 'neither its disk nor its log is here';
    doubts.push(`server ${serverId} was a member: ${missing}`);
  }
  for (const { masterId, headFound, replicas: heads } of logs) {
    if (!headFound) doubts.push(`the end of the log of server ${masterId} is not here`);
    else if (heads < replicas) {
      doubts.push(
        `the end of the log of server ${masterId} is on ${heads} of these disks, not on ` +
          `${replicas}: on another one it may be newer`,
      );
    }
  }
  for (const { tableId, startSlot, endSlot } of holes) {
    doubts.push(`nobody has slots ${startSlot} to ${endSlot} of table ${tableId}`);
  }
  for (const { source, report } of disks) {
    if (report.damaged) doubts.push(`${source} is damaged: see rekindle inspect`);
  }
  return doubts;
}

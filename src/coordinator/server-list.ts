/**
 * Decisions about membership: who joins, who is declared crashed, who is gone. A server's status
 * only moves up → crashed → removed, ids are never given twice, and every change of the list raises
 * its version in the same commit.
 *
 * Pure: state in, writes out. Whether a server really is dead is decided in `crash-verifier.ts`.
 */
import { RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';
import {
  type AbsentRecord,
  absentKey,
  type ClusterRecord,
  type CoordinatorState,
  clusterKey,
  type Decision,
  type RecoveryRecord,
  recoveryKey,
  type ServerRecord,
  serverKey,
} from './coordinator-state.js';
import { copysetWrites } from './copyset-record.js';
import type { StorageWrite } from './external-storage/external-storage.js';

const GENERATION_UNIT = 2 ** 32;
/** Enlisted servers, crashed ones included. */
export const SERVERS_MAX = 10_000;
/** Crashed backups that are remembered until their disks come back. */
const ABSENT_MAX = 256;

/** A server joins. The same nonce always gets the same id. */
export function decideEnlist(
  state: CoordinatorState,
  request: RequestOf<'ENLIST_SERVER'>,
  nowMs: number,
): Decision<{ serverId: number; crashed: number[] }> {
  checkCluster(state, request.clusterId);
  for (const server of state.servers.values()) {
    if (server.nonce !== request.nonce) continue;
    if (server.status === 'up') {
      return { writes: [], result: { serverId: server.serverId, crashed: [] } };
    }
    throw new RekindleError(
      'CALLER_NOT_IN_CLUSTER',
      `server ${server.serverId} has been declared crashed; restart it to join under a new id`,
    );
  }
  if (state.servers.size >= SERVERS_MAX) {
    throw new RekindleError('INVALID_ARGUMENT', `the cluster has ${SERVERS_MAX} servers already`);
  }
  // Whoever the new process replaces is dead: it was that process, or held its address.
  const replaced = state
    .upServers()
    .filter((s) => s.serverId === request.replacesId || s.address === request.address);
  let cluster = state.cluster;
  const writes: StorageWrite[] = [];
  for (const server of replaced) {
    const crash = crashWrites(state, cluster, server, nowMs, nowMs);
    cluster = crash.cluster;
    writes.push(...crash.writes);
  }
  writes.push(...absenceWrites(state, replaced, request.replacesId, nowMs));
  const serverId = nextServerId(cluster);
  const { address, host, rack, master, backup, memoryBytes, nonce } = request;
  const record: ServerRecord = {
    serverId,
    address,
    host,
    rack,
    master,
    backup,
    status: 'up',
    memoryBytes,
    nonce,
    minOpenSegmentId: 0,
    minOpenEpoch: 0,
  };
  writes.push({ key: serverKey(serverId), value: record });
  const stay = state.upServers().filter((server) => !replaced.includes(server));
  writes.push(...copysetWrites(state, [...stay, record]));
  writes.push(
    clusterWrite({
      ...cluster,
      nextServerIndex: cluster.nextServerIndex + 1,
      serverListVersion: cluster.serverListVersion + 1,
    }),
  );
  return { writes, result: { serverId, crashed: replaced.map((server) => server.serverId) } };
}

function checkCluster(state: CoordinatorState, clusterId: string | null): void {
  const own = state.cluster.clusterId;
  if (clusterId === null || clusterId === own) return;
  const empty = state.servers.size === 0 && state.tables.size === 0;
  throw new RekindleError(
    'WRONG_CLUSTER',
    `this server holds data of cluster ${clusterId}, but this is the coordinator of ` +
      `${empty ? 'the new, empty cluster' : 'cluster'} ${own}; nothing was changed. Point the ` +
      `server at the coordinator of ${clusterId}. If the state of that one is lost, restore it ` +
      'from the copy in the data directory of a server with ' +
      '`rekindle coordinator --restore FILE`; if no server has one, see `rekindle admin rebuild ' +
      '--help`. Only to give up the data, empty the directory.',
    { details: { serverClusterId: clusterId, coordinatorClusterId: own } },
  );
}

/** A server is dead: commits that and the beginning of its recovery. */
export function decideCrash(
  state: CoordinatorState,
  serverId: number,
  suspectedAtMs: number,
  nowMs: number,
): Decision<boolean> {
  const server = state.servers.get(serverId);
  if (server === undefined || server.status !== 'up') return { writes: [], result: false };
  const { cluster, writes } = crashWrites(state, state.cluster, server, suspectedAtMs, nowMs);
  const listed = { ...cluster, serverListVersion: cluster.serverListVersion + 1 };
  const stay = state.upServers().filter((each) => each.serverId !== serverId);
  const copysets = copysetWrites(state, stay);
  const absent = absenceWrites(state, [server], null, nowMs);
  return { writes: [...writes, ...absent, ...copysets, clusterWrite(listed)], result: true };
}

/** A drained server that ends leaves nothing that anybody would have to recover. */
function leavesNothing(state: CoordinatorState, { serverId, drain }: ServerRecord): boolean {
  return drain?.state === 'drained' && state.ownsNothing(serverId);
}

/** The caller writes the returned cluster record. */
function crashWrites(
  state: CoordinatorState,
  cluster: ClusterRecord,
  server: ServerRecord,
  suspectedAtMs: number,
  nowMs: number,
): { cluster: ClusterRecord; writes: StorageWrite[] } {
  if (leavesNothing(state, server)) {
    return { cluster, writes: [{ key: serverKey(server.serverId), value: undefined }] };
  }
  const recovery: RecoveryRecord = {
    recoveryId: cluster.nextRecoveryId,
    crashedServerId: server.serverId,
    suspectedAtMs,
    crashedAtMs: nowMs,
    partitions: null,
    lost: { head: false, segmentIds: [] },
  };
  return {
    cluster: { ...cluster, nextRecoveryId: cluster.nextRecoveryId + 1 },
    writes: [
      { key: serverKey(server.serverId), value: { ...server, status: 'crashed' } },
      { key: recoveryKey(recovery.recoveryId), value: recovery },
    ],
  };
}

/**
 * Remembers which crashed backups hold replicas that nobody can ask about, until their disks come
 * back. Beyond the limit the oldest are forgotten: they only tell an operator where to look.
 */
function absenceWrites(
  state: CoordinatorState,
  crashed: readonly ServerRecord[],
  returnedId: number | null,
  crashedAtMs: number,
): StorageWrite[] {
  const writes: StorageWrite[] = crashed
    .filter((each) => each.backup && each.serverId !== returnedId && !leavesNothing(state, each))
    .map(({ serverId, host, address }) => {
      const next = nextServerId(state.cluster);
      const absent: AbsentRecord = { serverId, host, address, crashedAtMs, nextServerId: next };
      return { key: absentKey(serverId), value: absent };
    });
  const known = [...state.absent.keys()].sort((a, b) => a - b);
  const excess = Math.max(0, known.length + writes.length - ABSENT_MAX);
  const forgotten = known.filter((serverId, i) => i < excess || serverId === returnedId);
  return [...writes, ...forgotten.map((id) => ({ key: absentKey(id), value: undefined }))];
}

function nextServerId({ nextServerIndex, serverGeneration }: ClusterRecord): number {
  return nextServerIndex + serverGeneration * GENERATION_UNIT;
}

/** Phase 8: nothing of the crashed server is needed any more; it leaves the list. */
export function decideRelease(state: CoordinatorState, recoveryId: number): Decision<boolean> {
  const recovery = state.recoveries.get(recoveryId);
  if (recovery === undefined) return { writes: [], result: false };
  const open = recovery.partitions?.some((partition) => partition.state !== 'done') ?? false;
  const owned = state.tabletsOf(recovery.crashedServerId);
  if (open || owned.length > 0) return { writes: [], result: false };
  const cluster = state.cluster;
  return {
    writes: [
      { key: serverKey(recovery.crashedServerId), value: undefined },
      { key: recoveryKey(recoveryId), value: undefined },
      clusterWrite({ ...cluster, serverListVersion: cluster.serverListVersion + 1 }),
    ],
    result: true,
  };
}

/** Stores the minimum open (segment, epoch) of a master that lives; it never goes back. */
export function decideRecoveryInfo(
  state: CoordinatorState,
  { serverId, segmentId, epoch }: RequestOf<'SET_MASTER_RECOVERY_INFO'>,
): Decision<void> {
  const server = state.servers.get(serverId);
  if (server === undefined || server.status !== 'up') {
    throw new RekindleError('CALLER_NOT_IN_CLUSTER', `server ${serverId} is not in the cluster`);
  }
  const newer =
    segmentId > server.minOpenSegmentId ||
    (segmentId === server.minOpenSegmentId && epoch > server.minOpenEpoch);
  if (!newer) return { writes: [], result: undefined };
  const record: ServerRecord = { ...server, minOpenSegmentId: segmentId, minOpenEpoch: epoch };
  return { writes: [{ key: serverKey(serverId), value: record }], result: undefined };
}

export function clusterWrite(cluster: ClusterRecord): StorageWrite {
  return { key: clusterKey, value: cluster };
}

/**
 * Backups that a master could use: one a host, none on its own host, unless `allowSameHost`; never
 * the server itself, nor those in `without`.
 */
export function backupsFor(
  state: CoordinatorState,
  masterId: number,
  without: ReadonlySet<number> = new Set(),
): number {
  const master = state.servers.get(masterId);
  const others = state
    .upServers()
    .filter((s) => s.backup && s.serverId !== masterId && !without.has(s.serverId));
  if (state.cluster.allowSameHost) return others.length;
  const hosts = new Set(others.map(({ host }) => host));
  if (master !== undefined) hosts.delete(master.host);
  return hosts.size;
}

/**
 * Decisions about emptying a server (docs/drain.md): it is marked, its tablets migrate one after
 * the other, masters move the replicas that they have there, and when nothing is left it is
 * `drained`: from that commit on its end is no crash and needs no recovery.
 *
 * Rule: a drain never takes a backup or a master that the others need, and ends with the server
 * that it is about. Pure; `drain-manager.ts` carries it out.
 */
import { RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';
import {
  type CoordinatorState,
  type Decision,
  type DrainRecord,
  type ServerRecord,
  serverKey,
  type TabletRecord,
} from './coordinator-state.js';
import { copysetWrites } from './copyset-record.js';
import { backupsFor, clusterWrite } from './server-list.js';
import { usableMasters } from './tables.js';
import { migrationOf } from './tablet-migration.js';

/** ★ of the start, and of the cancellation. */
export function decideDrain(
  state: CoordinatorState,
  { serverId, cancel }: RequestOf<'DRAIN_SERVER'>,
  nowMs: number,
): Decision<void> {
  const server = state.servers.get(serverId);
  if (server === undefined || server.status !== 'up') {
    throw new RekindleError('INVALID_ARGUMENT', `server ${serverId} is not up`);
  }
  if ((server.drain === undefined) === cancel) return { writes: [], result: undefined };
  if (cancel) {
    const { drain: _, ...rest } = server;
    return listed(state, rest);
  }
  checkOthers(state, serverId);
  return listed(state, { ...server, drain: { state: 'draining', startedAtMs: nowMs } });
}

/** The others must be able to take all, and to place their segments among themselves. */
function checkOthers(state: CoordinatorState, serverId: number): void {
  const leaving = new Set([serverId]);
  for (const { serverId: id, drain } of state.upServers()) if (drain !== undefined) leaving.add(id);
  const { replicas, allowSameHost } = state.cluster;
  const masters = state.upServers().filter((s) => s.master && !leaving.has(s.serverId));
  const fewest = Math.min(...masters.map((each) => backupsFor(state, each.serverId, leaving)));
  if (masters.length > 0 && fewest >= replicas) return;
  const place = allowSameHost ? 'other servers' : 'other hosts';
  const why =
    masters.length === 0
      ? 'no other master would be left'
      : `a segment needs ${replicas} backups on ${place}, and without it a master has ${fewest}`;
  throw new RekindleError(
    'INVALID_ARGUMENT',
    `server ${serverId} cannot be drained: ${why}; add a server first`,
    { details: { replicas, masters: masters.length, fewest: masters.length === 0 ? 0 : fewest } },
  );
}

/** The list tells everybody, and the groups of backups are made without it. */
function listed(state: CoordinatorState, server: ServerRecord): Decision<void> {
  const { cluster } = state;
  const others = state.upServers().filter(({ serverId }) => serverId !== server.serverId);
  return {
    writes: [
      { key: serverKey(server.serverId), value: server },
      ...copysetWrites(state, [...others, server]),
      clusterWrite({ ...cluster, serverListVersion: cluster.serverListVersion + 1 }),
    ],
    result: undefined,
  };
}

/** The drain of a server that is up and has not given all away; undefined: there is none. */
export function drainUnderWay(state: CoordinatorState, serverId: number): DrainRecord | undefined {
  const server = state.servers.get(serverId);
  if (server?.status !== 'up' || server.drain?.state !== 'draining') return undefined;
  return server.drain;
}

export type DrainStep =
  /** `key` names the tablet, for who counts what has failed. */
  | { kind: 'move'; key: string; request: RequestOf<'MIGRATE_TABLET'> }
  | { kind: 'wait'; reason: string }
  /** All masters are to be asked for replicas. */
  | { kind: 'ask' };

/** How often a tablet was sent away in vain, and to whom in this round of targets. */
export interface DrainTries {
  readonly count: number;
  readonly targets: ReadonlySet<number>;
}

/** What to do next. `tries`: of tablets, by their keys; those that have failed least come first. */
export function nextDrainStep(
  state: CoordinatorState,
  serverId: number,
  tries: ReadonlyMap<string, DrainTries>,
): DrainStep {
  for (const { sourceServerId, targetServerId } of state.migrations.values()) {
    if (sourceServerId !== serverId && targetServerId !== serverId) continue;
    return { kind: 'wait', reason: 'a migration' };
  }
  const countOf = (tablet: TabletRecord): number => tries.get(keyOf(tablet))?.count ?? 0;
  const tablets = state
    .tabletsOf(serverId)
    .filter((each) => migrationOf(state, each) === undefined);
  const [tablet] = tablets.sort((a, b) => countOf(a) - countOf(b));
  if (tablet !== undefined) {
    const { tableId, startSlot } = tablet;
    const key = keyOf(tablet);
    const masters = usableMasters(state);
    const tried = tries.get(key)?.targets;
    const target = masters.find((each) => !tried?.has(each.serverId)) ?? masters[0];
    const name = state.tables.get(tableId)?.name;
    if (target === undefined || name === undefined)
      return { kind: 'wait', reason: 'a master that has backups enough' };
    const request = { name, slot: startSlot, targetServerId: target.serverId };
    return { kind: 'move', key, request };
  }
  if (!state.ownsNothing(serverId)) {
    return { kind: 'wait', reason: 'tables that are created or dropped, or a recovery' };
  }
  // Its disk may have what a recovery needs.
  for (const { crashedServerId } of state.recoveries.values()) {
    return { kind: 'wait', reason: `the recovery of server ${crashedServerId}` };
  }
  return { kind: 'ask' };
}

function keyOf({ tableId, startSlot, endSlot }: TabletRecord): string {
  return `${tableId}:${startSlot}-${endSlot}`;
}

/** Masters whose answers count: all that may have replicas there. */
export function mastersToAsk(state: CoordinatorState, serverId: number): number[] {
  return state
    .upServers()
    .filter((server) => server.master && server.serverId !== serverId)
    .map((server) => server.serverId);
}

/**
 * ★ of the end: `free` masters have said, knowing of the drain, that they need no replica there.
 * One that has joined since knew of it from its first list on.
 */
export function decideDrained(
  state: CoordinatorState,
  serverId: number,
  free: ReadonlySet<number>,
): Decision<boolean> {
  const server = state.servers.get(serverId);
  const drain = drainUnderWay(state, serverId);
  const done =
    server !== undefined &&
    drain !== undefined &&
    nextDrainStep(state, serverId, new Map()).kind === 'ask' &&
    mastersToAsk(state, serverId).every((id) => free.has(id));
  if (!done) return { writes: [], result: false };
  const record: ServerRecord = { ...server, drain: { ...drain, state: 'drained' } };
  return { writes: [{ key: serverKey(serverId), value: record }], result: true };
}

/**
 * Decisions about tables and the ownership of tablets. A table's tablets always cover all slots
 * once, in order; a table is visible from the commit that makes it `normal` to the one that makes
 * it `dropping`; an owner is replaced only by compare-and-set against the owner that is
 * committed.
 *
 * Pure: state in, writes out. The RPCs to masters are sent by `table-operations.ts`.
 */
import { invariant, RekindleError } from '../rpc/errors.js';
import type { RecoveryTablet, SlotRange } from '../rpc/messages.js';
import type { RequestOf } from '../rpc/table.js';
import {
  type CoordinatorState,
  type Decision,
  type PartitionRecord,
  type RecoveryRecord,
  recoveryKey,
  type ServerRecord,
  type TableRecord,
  type TabletRecord,
  tableKey,
} from './coordinator-state.js';
import type { StorageWrite } from './external-storage/external-storage.js';
import { backupsFor, clusterWrite } from './server-list.js';

export const SPAN_MAX = 256;
export const TABLES_MAX = 10_000;
const RECENT_DROPS_MAX = 128;
const SLOTS = 2 ** 32;

/** 1 to 255 printable characters without slash or blanks at the ends. */
export function checkTableName(name: unknown): asserts name is string {
  const good =
    typeof name === 'string' &&
    name.length >= 1 &&
    name.length <= 255 &&
    name.trim() === name &&
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
    !/[/\\\u0000-\u001f\u007f-\u009f\u2028\u2029\ud800-\udfff]/u.test(name);
  if (good) return;
  throw new RekindleError(
    'INVALID_ARGUMENT',
    'a table name has 1 to 255 printable characters, no / or \\, no blank at either end',
  );
}

/** Masters that a tablet may go to, the least loaded first; it throws if there are none. */
function mastersByLoad(state: CoordinatorState): ServerRecord[] {
  const usable = usableMasters(state);
  if (usable.length > 0) return usable;
  const { replicas, allowSameHost } = state.cluster;
  const masters = state.upServers().filter(({ master }) => master);
  const backups = state.upServers().filter(({ backup }) => backup).length;
  const most = Math.max(0, ...masters.map(({ serverId }) => backupsFor(state, serverId)));
  throw new RekindleError(
    'NOT_ENOUGH_BACKUPS',
    `every segment needs ${replicas} backups on ${
      allowSameHost ? 'other servers' : 'other hosts'
    } than its master; of ${masters.length} masters and ${backups} backups, the best placed ` +
      `master has ${most}`,
    { retryAfterMs: 200, details: { replicas, masters: masters.length, backups, most } },
  );
}

/** Masters that have backups enough and are not being emptied, the least loaded first. */
export function usableMasters(state: CoordinatorState): ServerRecord[] {
  const { replicas } = state.cluster;
  const masters = state.upServers().filter(({ master, drain }) => master && drain === undefined);
  const usable = masters.filter(({ serverId }) => backupsFor(state, serverId) >= replicas);
  const load = new Map<number, number>();
  for (const table of state.tables.values()) {
    for (const { serverId } of table.tablets) load.set(serverId, (load.get(serverId) ?? 0) + 1);
  }
  const of = (server: ServerRecord): number => load.get(server.serverId) ?? 0;
  return usable.sort((a, b) => of(a) - of(b) || a.serverId - b.serverId);
}

/** ★ of create: the table exists in state `creating`, each tablet has its master. */
export function decideCreateTable(
  state: CoordinatorState,
  request: RequestOf<'CREATE_TABLE'>,
): Decision<number> {
  checkTableName(request.name);
  const span = request.span ?? 1;
  if (!Number.isInteger(span) || span < 1 || span > SPAN_MAX) {
    throw new RekindleError('INVALID_ARGUMENT', `span must be between 1 and ${SPAN_MAX}`);
  }
  const existing = state.tableNamed(request.name);
  if (existing !== undefined) return { writes: [], result: existing.tableId };
  if (state.tables.size >= TABLES_MAX) {
    throw new RekindleError('INVALID_ARGUMENT', `the cluster has ${TABLES_MAX} tables already`);
  }
  const masters = mastersByLoad(state);
  const cluster = state.cluster;
  const tableId = cluster.nextTableId;
  const tablets = Array.from({ length: span }, (_, i): TabletRecord => {
    const master = masters[i % masters.length];
    invariant(master !== undefined, 'at least one master is usable');
    return {
      tableId,
      startSlot: Math.floor((i * SLOTS) / span),
      endSlot: Math.floor(((i + 1) * SLOTS) / span) - 1,
      serverId: master.serverId,
      ctimeSegmentId: 0,
      recoveryId: 0,
      partitionId: 0,
    };
  });
  const table: TableRecord = { tableId, name: request.name, state: 'creating', tablets };
  return {
    writes: [
      { key: tableKey(tableId), value: table },
      clusterWrite({ ...cluster, nextTableId: tableId + 1 }),
    ],
    result: tableId,
  };
}

/**
 * Gives tablets of a table in creation whose master is not up any more to another master, under an
 * id that is newer than the former one's: both logs may say that they have it.
 */
export function decideReassignCreating(
  state: CoordinatorState,
  tableId: number,
): Decision<TableRecord | null> {
  const table = state.tables.get(tableId);
  if (table === undefined || table.state !== 'creating') return { writes: [], result: null };
  if (table.tablets.every(({ serverId }) => state.isUp(serverId))) {
    return { writes: [], result: table };
  }
  const masters = mastersByLoad(state);
  const { nextRecoveryId } = state.cluster;
  let next = 0;
  const tablets = table.tablets.map((tablet) => {
    if (state.isUp(tablet.serverId)) return tablet;
    const master = masters[next++ % masters.length];
    invariant(master !== undefined, 'at least one master is usable');
    return { ...tablet, serverId: master.serverId, recoveryId: nextRecoveryId };
  });
  const moved: TableRecord = { ...table, tablets };
  return {
    writes: [
      { key: tableKey(tableId), value: moved },
      clusterWrite({ ...state.cluster, nextRecoveryId: nextRecoveryId + 1 }),
    ],
    result: moved,
  };
}

/**
 * Makes a created table visible. `acknowledged` names the owner that took each tablet; if one of
 * them is not the owner or not up at this very commit, nothing happens: no client has seen the
 * table.
 */
export function decideCreated(
  state: CoordinatorState,
  tableId: number,
  acknowledged: readonly number[],
): Decision<boolean> {
  const table = state.tables.get(tableId);
  if (table === undefined || table.state !== 'creating') return { writes: [], result: false };
  const taken = table.tablets.every(
    ({ serverId }, i) => acknowledged[i] === serverId && state.isUp(serverId),
  );
  if (!taken) return { writes: [], result: false };
  const normal: TableRecord = { ...table, state: 'normal' };
  return { writes: [{ key: tableKey(tableId), value: normal }], result: true };
}

/** ★ of drop. The operation id makes a repeated drop answer as the first did. */
export function decideDropTable(
  state: CoordinatorState,
  { name, operationId }: RequestOf<'DROP_TABLE'>,
): Decision<{ existed: boolean; tableId: number | null }> {
  checkTableName(name);
  const cluster = state.cluster;
  if (cluster.recentDrops.includes(operationId)) {
    return { writes: [], result: { existed: true, tableId: null } };
  }
  const table = state.tableNamed(name);
  if (table === undefined) return { writes: [], result: { existed: false, tableId: null } };
  const dropping: TableRecord = { ...table, state: 'dropping' };
  const recentDrops = [...cluster.recentDrops, operationId].slice(-RECENT_DROPS_MAX);
  return {
    writes: [
      { key: tableKey(table.tableId), value: dropping },
      clusterWrite({ ...cluster, recentDrops }),
    ],
    result: { existed: true, tableId: table.tableId },
  };
}

/**
 * Forgets a dropped table when no tablet of it can be served any more: each owner has acknowledged
 * the drop (`acknowledged` names it, by tablet of `seen`) or has left the list. A crashed owner is
 * waited for, since its recovery may be giving the tablet to another master at this moment.
 */
export function decideForgetTable(
  state: CoordinatorState,
  seen: TableRecord,
  acknowledged: readonly (number | null)[],
): Decision<boolean> {
  const table = state.tables.get(seen.tableId);
  if (table === undefined) return { writes: [], result: true };
  if (table !== seen || table.state !== 'dropping') return { writes: [], result: false };
  const gone = table.tablets.every(
    ({ serverId }, i) => acknowledged[i] === serverId || !state.servers.has(serverId),
  );
  if (!gone) return { writes: [], result: false };
  return { writes: [{ key: tableKey(seen.tableId), value: undefined }], result: true };
}

/**
 * ★ of phase 7: the recovery master owns the whole partition from this commit on. Repeats are
 * answered from the map, which remembers who got what from which recovery, so they stay right
 * after the recovery is over and after a restart of the coordinator.
 */
export function decideOwnership(
  state: CoordinatorState,
  request: RequestOf<'RECOVERY_MASTER_FINISHED'>,
): Decision<boolean> {
  const no: Decision<boolean> = { writes: [], result: false };
  if (!state.isUp(request.serverId)) return no;
  const recovery = state.recoveries.get(request.recoveryId);
  const partition = recovery?.partitions?.find((p) => p.partitionId === request.partitionId);
  if (recovery === undefined || partition === undefined || partition.state === 'done') {
    return { writes: [], result: ownsAlready(state, request) };
  }
  const assigned =
    partition.state === 'running' &&
    partition.serverId === request.serverId &&
    partition.generation === request.generation;
  if (!assigned) return no;
  const { writes, moved } = ownershipWrites(state, recovery, partition, request);
  const done: PartitionRecord = { ...partition, state: 'done' };
  const partitions = recovery.partitions?.map((p) => (p === partition ? done : p)) ?? null;
  const record: RecoveryRecord = { ...recovery, partitions };
  writes.push({ key: recoveryKey(recovery.recoveryId), value: record });
  return { writes, result: moved > 0 };
}

/** Whether the map has it that this server got something from this recovery or migration. */
export function ownsAlready(
  state: CoordinatorState,
  { recoveryId, partitionId, serverId, ctimeSegmentId }: Omit<TabletRecord, keyof SlotRange>,
): boolean {
  for (const table of state.tables.values()) {
    for (const tablet of table.tablets) {
      const same =
        tablet.recoveryId === recoveryId &&
        tablet.partitionId === partitionId &&
        tablet.serverId === serverId &&
        tablet.ctimeSegmentId === ctimeSegmentId;
      if (same) return true;
    }
  }
  return false;
}

function ownershipWrites(
  state: CoordinatorState,
  recovery: RecoveryRecord,
  partition: PartitionRecord,
  { serverId, ctimeSegmentId }: RequestOf<'RECOVERY_MASTER_FINISHED'>,
): { writes: StorageWrite[]; moved: number } {
  const changed = new Map<number, TableRecord>();
  let moved = 0;
  for (const piece of partition.tablets) {
    // A table that was dropped meanwhile is skipped; one that is being dropped moves like any
    // other, so that the drop reaches the new owner.
    const table = changed.get(piece.tableId) ?? state.tables.get(piece.tableId);
    if (table === undefined) continue;
    const owner = {
      serverId,
      ctimeSegmentId,
      recoveryId: recovery.recoveryId,
      partitionId: partition.partitionId,
    };
    const tablets = moveRange(table.tablets, piece, recovery.crashedServerId, owner);
    if (tablets === null) continue;
    changed.set(piece.tableId, { ...table, tablets });
    moved++;
  }
  const writes = [...changed.values()].map(
    (table): StorageWrite => ({ key: tableKey(table.tableId), value: table }),
  );
  return { writes, moved };
}

/**
 * Replaces the owner of `range`, splitting the tablet around it. null if the range is not inside
 * one tablet of `fromServerId` with the creation point that the plan saw.
 */
export function moveRange(
  tablets: readonly TabletRecord[],
  range: SlotRange | RecoveryTablet,
  fromServerId: number,
  owner: Omit<TabletRecord, keyof SlotRange>,
): TabletRecord[] | null {
  const index = tablets.findIndex(
    (t) => t.startSlot <= range.startSlot && range.endSlot <= t.endSlot,
  );
  const whole = tablets[index];
  if (whole === undefined || whole.serverId !== fromServerId) return null;
  if ('ctimeSegmentId' in range && range.ctimeSegmentId !== whole.ctimeSegmentId) return null;
  const { tableId, startSlot, endSlot } = range;
  const pieces: TabletRecord[] = [];
  if (whole.startSlot < startSlot) pieces.push({ ...whole, endSlot: startSlot - 1 });
  pieces.push({ tableId, startSlot, endSlot, ...owner });
  if (endSlot < whole.endSlot) pieces.push({ ...whole, startSlot: endSlot + 1 });
  return [...tablets.slice(0, index), ...pieces, ...tablets.slice(index + 1)];
}

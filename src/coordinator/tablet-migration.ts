/**
 * Decisions about migrations: a tablet moves from its owner, the source, to another master, the
 * target (docs/migration.md).
 *
 * Rule: the record is there before anybody moves a byte, and goes when both sides know the end. The
 * owner changes in one commit with the record, by compare-and-set against the tablet that the
 * record names, while source and target are up; so a source that is being recovered, a tablet that
 * was dropped, and a late report change nothing.
 */
import { invariant, RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';
import {
  type CoordinatorState,
  type Decision,
  type MigrationRecord,
  migrationKey,
  type TableRecord,
  type TabletRecord,
  tableKey,
} from './coordinator-state.js';
import { backupsFor, clusterWrite } from './server-list.js';
import { moveRange, ownsAlready } from './tables.js';

/** ★ of the start; 0 if the target owns the tablet, the id of the migration if it is under way. */
export function decideMigrate(
  state: CoordinatorState,
  { name, slot, targetServerId }: RequestOf<'MIGRATE_TABLET'>,
  nowMs: number,
): Decision<number> {
  const table = state.tableNamed(name);
  if (table === undefined || table.state !== 'normal') {
    throw new RekindleError('TABLE_NOT_FOUND', `there is no table "${name}"`);
  }
  const tablet = table.tablets.find((each) => each.startSlot <= slot && slot <= each.endSlot);
  invariant(tablet !== undefined, 'the tablets of a table cover all slots');
  const present = migrationOf(state, tablet);
  if (present?.targetServerId === targetServerId && present.state !== 'aborting') {
    return { writes: [], result: present.migrationId };
  }
  if (present === undefined && tablet.serverId === targetServerId) return { writes: [], result: 0 };
  checkTarget(state, targetServerId);
  const busy = [...state.migrations.values()].find(
    ({ sourceServerId }) => sourceServerId === tablet.serverId,
  );
  if (present !== undefined || busy !== undefined || !state.isUp(tablet.serverId)) {
    const why = state.isUp(tablet.serverId) ? 'gives a tablet away already' : 'is being recovered';
    throw new RekindleError('RETRY', `server ${tablet.serverId} ${why}`, { retryAfterMs: 500 });
  }
  const { cluster } = state;
  const { tableId, startSlot, endSlot, serverId, ctimeSegmentId } = tablet;
  const record: MigrationRecord = {
    migrationId: cluster.nextRecoveryId,
    tableId,
    startSlot,
    endSlot,
    sourceServerId: serverId,
    targetServerId,
    ctimeSegmentId,
    state: 'running',
    reason: null,
    startedAtMs: nowMs,
  };
  return {
    writes: [
      recordWrite(record),
      clusterWrite({ ...cluster, nextRecoveryId: cluster.nextRecoveryId + 1 }),
    ],
    result: record.migrationId,
  };
}

function checkTarget(state: CoordinatorState, serverId: number): void {
  const target = state.servers.get(serverId);
  if (target === undefined || target.status !== 'up' || !target.master) {
    throw new RekindleError('INVALID_ARGUMENT', `server ${serverId} is no master that is up`);
  }
  if (target.drain !== undefined) {
    throw new RekindleError('INVALID_ARGUMENT', `server ${serverId} is being drained`);
  }
  if (backupsFor(state, serverId) < state.cluster.replicas) {
    throw new RekindleError('NOT_ENOUGH_BACKUPS', `server ${serverId} has not enough backups`, {
      retryAfterMs: 200,
    });
  }
}

/** The migration of a tablet, or of a part of it. */
export function migrationOf(
  state: CoordinatorState,
  { tableId, startSlot, endSlot }: TabletRecord,
): MigrationRecord | undefined {
  return [...state.migrations.values()].find(
    (each) => each.tableId === tableId && each.startSlot <= endSlot && startSlot <= each.endSlot,
  );
}

/** Whether the map says that a server has slots of the range that a migration is about. */
export function ownsSomeOf(
  state: CoordinatorState,
  serverId: number,
  { tableId, startSlot, endSlot }: MigrationRecord,
): boolean {
  const tablets = state.tables.get(tableId)?.tablets ?? [];
  return tablets.some(
    (each) => each.serverId === serverId && each.startSlot <= endSlot && startSlot <= each.endSlot,
  );
}

/** ★ of the ownership. Repeats are answered from the map. */
export function decideMigrated(
  state: CoordinatorState,
  request: RequestOf<'MIGRATION_FINISHED'>,
): Decision<boolean> {
  const { migrationId, serverId, ctimeSegmentId, ok, error } = request;
  const owner = { serverId, ctimeSegmentId, recoveryId: migrationId, partitionId: 0 };
  const record = state.migrations.get(migrationId);
  if (record?.state !== 'running') return { writes: [], result: ownsAlready(state, owner) };
  if (serverId !== record.targetServerId) return { writes: [], result: false };
  const moved = ok ? movedTable(state, record, owner) : null;
  if (moved === null) {
    const reason = ok ? 'the tablet or its owner has changed' : (error ?? 'it failed');
    return { writes: [recordWrite({ ...record, state: 'aborting', reason })], result: false };
  }
  return {
    writes: [
      { key: tableKey(record.tableId), value: moved },
      recordWrite({ ...record, state: 'committed' }),
    ],
    result: true,
  };
}

function movedTable(
  state: CoordinatorState,
  record: MigrationRecord,
  owner: Parameters<typeof moveRange>[3],
): TableRecord | null {
  const { tableId, startSlot, endSlot, ctimeSegmentId, sourceServerId, targetServerId } = record;
  const table = state.tables.get(tableId);
  if (table?.state !== 'normal') return null;
  if (!state.isUp(sourceServerId) || !state.isUp(targetServerId)) return null;
  const range = { tableId, startSlot, endSlot, ctimeSegmentId };
  const tablets = moveRange(table.tablets, range, sourceServerId, owner);
  // It did not cut a tablet: that would be another one than was moved.
  if (tablets === null || tablets.length !== table.tablets.length) return null;
  return { ...table, tablets };
}

/** ★ of giving up; nothing if the ownership has moved. */
export function decideAbortMigration(
  state: CoordinatorState,
  migrationId: number,
  reason: string,
): Decision<void> {
  const record = state.migrations.get(migrationId);
  if (record?.state !== 'running') return { writes: [], result: undefined };
  return { writes: [recordWrite({ ...record, state: 'aborting', reason })], result: undefined };
}

/** Everybody who must know has heard how it ended. */
export function decideForgetMigration(
  state: CoordinatorState,
  migrationId: number,
): Decision<void> {
  const record = state.migrations.get(migrationId);
  if (record === undefined || record.state === 'running') return { writes: [], result: undefined };
  return { writes: [{ key: migrationKey(migrationId), value: undefined }], result: undefined };
}

function recordWrite(record: MigrationRecord): { key: string; value: MigrationRecord } {
  return { key: migrationKey(record.migrationId), value: record };
}

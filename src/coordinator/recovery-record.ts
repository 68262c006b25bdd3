/**
 * Decisions about the persisted plan of a recovery: partitions, recovery masters, generations. The
 * plan is committed before anybody hears of it; a generation is committed before the RECOVER
 * that carries it; a partition that is done stays done.
 *
 * Pure: state in, writes out. `decideOwnership` (tables.ts) and `decideRelease` end it.
 */
import { invariant } from '../rpc/errors.js';
import {
  type CoordinatorState,
  type Decision,
  type PartitionRecord,
  type RecoveryRecord,
  recoveryKey,
} from './coordinator-state.js';
import type { PlannedPartition } from './recovery-plan.js';

export interface Assignment {
  partitionId: number;
  /** The generation that this choice replaces. */
  afterGeneration: number;
  serverId: number;
}

/** ★ of phase 3. Leaves out tablets that were dropped since the plan was made. */
export function decidePlan(
  state: CoordinatorState,
  recoveryId: number,
  partitions: readonly PlannedPartition[],
): Decision<boolean> {
  const recovery = state.recoveries.get(recoveryId);
  if (recovery === undefined || recovery.partitions !== null) return { writes: [], result: false };
  const planned = partitions
    .map(({ partitionId, tablets, bytes }): PartitionRecord => {
      const alive = tablets.filter((t) => state.tables.get(t.tableId)?.state === 'normal');
      const waiting = { serverId: null, generation: 0, state: 'waiting' } as const;
      return { partitionId, tablets: alive, bytes, ...waiting };
    })
    .filter(({ tablets }) => tablets.length > 0);
  const record: RecoveryRecord = { ...recovery, partitions: planned };
  return { writes: [{ key: recoveryKey(recoveryId), value: record }], result: true };
}

/** Chooses recovery masters: a new generation each, which makes all older ones void. */
export function decideAssign(
  state: CoordinatorState,
  recoveryId: number,
  assignments: readonly Assignment[],
): Decision<boolean> {
  const recovery = state.recoveries.get(recoveryId);
  if (recovery === undefined || recovery.partitions === null) return { writes: [], result: false };
  let changed = false;
  const partitions = recovery.partitions.map((partition): PartitionRecord => {
    const chosen = assignments.find(({ partitionId }) => partitionId === partition.partitionId);
    if (chosen === undefined || partition.state === 'done') return partition;
    if (partition.generation !== chosen.afterGeneration) return partition;
    invariant(Number.isSafeInteger(chosen.serverId), 'a recovery master has an id');
    changed = true;
    return {
      ...partition,
      serverId: chosen.serverId,
      generation: partition.generation + 1,
      state: 'running',
    };
  });
  if (!changed) return { writes: [], result: false };
  const record: RecoveryRecord = { ...recovery, partitions };
  return { writes: [{ key: recoveryKey(recoveryId), value: record }], result: true };
}

/**
 * Partitions of which no table is left are done. Whoever recovers one hears so from the answer to
 * its report; the drop of the table is finished when the crashed server leaves the list.
 */
export function decideSkip(state: CoordinatorState, recoveryId: number): Decision<number> {
  const recovery = state.recoveries.get(recoveryId);
  if (recovery === undefined) return { writes: [], result: 0 };
  const owned = state.tabletsOf(recovery.crashedServerId);
  const tableIds = new Set(owned.map(({ tableId }) => tableId));
  let skipped = 0;
  const partitions = recovery.partitions?.map((partition): PartitionRecord => {
    const wanted = partition.tablets.some(({ tableId }) => tableIds.has(tableId));
    if (partition.state === 'done' || wanted) return partition;
    skipped++;
    return { ...partition, state: 'done' };
  });
  if (partitions === undefined || skipped === 0) return { writes: [], result: 0 };
  const record: RecoveryRecord = { ...recovery, partitions };
  return { writes: [{ key: recoveryKey(recoveryId), value: record }], result: skipped };
}

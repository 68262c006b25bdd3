/**
 * Merges neighbouring tablets of one owner into one: which there are, and what is committed. Cuts
 * that recoveries make are undone by this.
 *
 * Rule: the owner says from which segment on entries of the merged tablet count, and the commit is
 * a compare-and-set against the very tablets that it was asked about. An owner that is not told of
 * a merge only keeps finer books.
 */
import type { SlotRange } from '../rpc/messages.js';
import {
  type CoordinatorState,
  type Decision,
  type TableRecord,
  type TabletRecord,
  tableKey,
} from './coordinator-state.js';
import { migrationOf } from './tablet-migration.js';

/** Neighbours, in order, that the same server has. */
export interface MergeableRun extends SlotRange {
  serverId: number;
  tablets: TabletRecord[];
}

/** The longest runs of two and more tablets that one server has that is up. */
export function mergeableRuns(state: CoordinatorState, table: TableRecord): MergeableRun[] {
  const runs: TabletRecord[][] = [];
  for (const tablet of table.tablets) {
    const run = runs.at(-1);
    if (run?.[0]?.serverId === tablet.serverId) run.push(tablet);
    else runs.push([tablet]);
  }
  return runs.flatMap((tablets) => {
    const [first, last] = [tablets[0], tablets.at(-1)];
    if (first === undefined || last === undefined || first === last) return [];
    if (!state.isUp(first.serverId)) return [];
    const { tableId, startSlot, serverId } = first;
    return [{ tableId, startSlot, endSlot: last.endSlot, serverId, tablets }];
  });
}

/**
 * ★ of a merge; false if the tablets are not what they were. The owner serves all of them, so it
 * has heard that it owns them: nobody will ask again which recovery they came from.
 */
export function decideMerge(
  state: CoordinatorState,
  run: MergeableRun,
  ctimeSegmentId: number,
): Decision<boolean> {
  const no: Decision<boolean> = { writes: [], result: false };
  const table = state.tables.get(run.tableId);
  if (table === undefined || table.state !== 'normal' || !state.isUp(run.serverId)) return no;
  if (run.tablets.some((tablet) => migrationOf(state, tablet) !== undefined)) return no;
  const { tableId, startSlot, endSlot, serverId, tablets } = run;
  const index = table.tablets.findIndex((each) => each.startSlot === startSlot);
  const present = table.tablets.slice(index, index + tablets.length);
  const unchanged = tablets.every((seen, i) => sameTablet(seen, present[i]));
  if (index < 0 || !unchanged) return no;
  const merged: TabletRecord = {
    tableId,
    startSlot,
    endSlot,
    serverId,
    ctimeSegmentId,
    recoveryId: 0,
    partitionId: 0,
  };
  const all = [...table.tablets];
  all.splice(index, tablets.length, merged);
  return {
    writes: [{ key: tableKey(tableId), value: { ...table, tablets: all } }],
    result: true,
  };
}

/** Whether nothing has happened to a tablet that was seen before. */
export function sameTablet(one: TabletRecord, other: TabletRecord | undefined): boolean {
  return (
    one.startSlot === other?.startSlot &&
    one.endSlot === other.endSlot &&
    one.serverId === other.serverId &&
    one.ctimeSegmentId === other.ctimeSegmentId &&
    one.recoveryId === other.recoveryId &&
    one.partitionId === other.partitionId
  );
}

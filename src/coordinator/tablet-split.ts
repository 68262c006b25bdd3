/**
 * Cuts a tablet in two on the server that owns it: what is to be cut, and what is committed. No
 * object moves; what each half weighs, and where it goes, can be decided apart from then on.
 *
 * Rule: the owner keeps books of both halves before the commit, a compare-and-set against the very
 * tablet that it was asked about. So a coordinator's tablet is made up of whole ones of its
 * owner at every moment. A migration begins by making one of such halves: if one has begun since
 * the owner was asked, it is asked again.
 */
import { invariant, RekindleError } from '../rpc/errors.js';
import type { SlotRange } from '../rpc/messages.js';
import type { RequestOf } from '../rpc/table.js';
import {
  type CoordinatorState,
  type Decision,
  type TableRecord,
  type TabletRecord,
  tableKey,
} from './coordinator-state.js';
import { clusterWrite } from './server-list.js';
import { sameTablet } from './tablet-merge.js';
import { migrationOf } from './tablet-migration.js';

/** Of a table; its record must fit into one value of the storage. */
export const TABLETS_MAX = 1_024;
const RECENT_SPLITS_MAX = 128;
const RETRY_AFTER_MS = 500;

/** A tablet as it was seen, and the first slot of its upper half. */
export interface Cut {
  tablet: TabletRecord;
  slot: number;
  /** Grows when a migration begins. */
  nextRecoveryId: number;
}

type Request = RequestOf<'SPLIT_TABLET'>;

/** What is to be cut; null if it is done: by this very operation, or there is a boundary. */
export function planSplit(
  state: CoordinatorState,
  { name, slot, operationId }: Request,
): Cut | null {
  const table = state.tableNamed(name);
  if (table === undefined || table.state !== 'normal') {
    throw new RekindleError('TABLE_NOT_FOUND', `there is no table "${name}"`);
  }
  const { recentSplits = [], nextRecoveryId } = state.cluster;
  if (recentSplits.includes(operationId)) return null;
  const tablet = slot === undefined ? widest(table) : tabletWith(table, slot);
  if (tablet.startSlot === slot) return null;
  if (table.tablets.length >= TABLETS_MAX) {
    throw new RekindleError('INVALID_ARGUMENT', `the table has ${TABLETS_MAX} tablets already`);
  }
  const moves = migrationOf(state, tablet) !== undefined;
  if (moves || !state.isUp(tablet.serverId)) {
    const why = moves ? 'on its way to another server' : 'being recovered';
    throw new RekindleError('RETRY', `the tablet is ${why}`, { retryAfterMs: RETRY_AFTER_MS });
  }
  return { tablet, slot: slot ?? middleOf(tablet), nextRecoveryId };
}

/** ★ of a split; false if something has changed since the owner was asked. */
export function decideSplit(
  state: CoordinatorState,
  { tablet, slot, nextRecoveryId }: Cut,
  operationId: string,
): Decision<boolean> {
  const no: Decision<boolean> = { writes: [], result: false };
  const { cluster } = state;
  const table = state.tables.get(tablet.tableId);
  if (table?.state !== 'normal' || !state.isUp(tablet.serverId)) return no;
  if (cluster.nextRecoveryId !== nextRecoveryId || migrationOf(state, tablet) !== undefined) {
    return no;
  }
  const index = table.tablets.findIndex((each) => sameTablet(tablet, each));
  if (index < 0) return no;
  const halves = [
    { ...tablet, endSlot: slot - 1 },
    { ...tablet, startSlot: slot },
  ];
  const tablets = [...table.tablets];
  tablets.splice(index, 1, ...halves);
  const recentSplits = [...(cluster.recentSplits ?? []), operationId].slice(-RECENT_SPLITS_MAX);
  return {
    writes: [
      { key: tableKey(table.tableId), value: { ...table, tablets } },
      clusterWrite({ ...cluster, recentSplits }),
    ],
    result: true,
  };
}

/** The first of those with the most slots. */
function widest({ tablets }: TableRecord): TabletRecord {
  const [first] = tablets;
  invariant(first !== undefined, 'a table has tablets');
  return tablets.reduce((best, each) => (widthOf(each) > widthOf(best) ? each : best), first);
}

function tabletWith({ tablets }: TableRecord, slot: number): TabletRecord {
  const tablet = tablets.find((each) => each.startSlot <= slot && slot <= each.endSlot);
  invariant(tablet !== undefined, 'the tablets of a table cover all slots');
  return tablet;
}

function middleOf(range: SlotRange): number {
  return range.startSlot + Math.ceil(widthOf(range) / 2);
}

function widthOf({ startSlot, endSlot }: SlotRange): number {
  return endSlot - startSlot;
}

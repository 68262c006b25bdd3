/**
 * The tables as the logs of their masters tell them. Pure.
 *
 * Rule: each slot belongs to the latest claim on it, by the recovery or migration that made it,
 * whose ids grow with each owner. A claim that is not certain counts as just before that of the
 * owner that it comes from. Of two tables of one name the older one was dropped, else its name
 * would not have been free.
 */
import type { TabletClaim } from '../ops/log-notes.js';
import type { TableRecord, TabletRecord } from './coordinator-state.js';

export interface MasterClaim extends TabletClaim {
  serverId: number;
}

export interface RebuiltTables {
  tables: TableRecord[];
  /** Slots that nobody claims; `table` has them as tablets of `nobody`. */
  holes: TabletRecord[];
}

const SLOTS = 2 ** 32;

export function rebuildTables(claims: readonly MasterClaim[], nobody: number): RebuiltTables {
  const byTable = new Map<number, MasterClaim[]>();
  for (const claim of claims) {
    const known = byTable.get(claim.tableId);
    if (known === undefined) byTable.set(claim.tableId, [claim]);
    else known.push(claim);
  }
  const newestByName = new Map<string, number>();
  for (const { name, tableId } of claims) {
    newestByName.set(name, Math.max(tableId, newestByName.get(name) ?? 0));
  }
  const tables: TableRecord[] = [];
  const holes: TabletRecord[] = [];
  for (const [tableId, own] of [...byTable].sort(([a], [b]) => a - b)) {
    const name = own[0]?.name ?? '';
    const tablets = tabletsOf(tableId, own, nobody);
    const dropped = newestByName.get(name) !== tableId;
    tables.push({ tableId, name, state: dropped ? 'dropping' : 'normal', tablets });
    if (!dropped) holes.push(...tablets.filter(({ serverId }) => serverId === nobody));
  }
  return { tables, holes };
}

function tabletsOf(
  tableId: number,
  claims: readonly MasterClaim[],
  nobody: number,
): TabletRecord[] {
  const bounds = new Set([0, ...claims.flatMap((one) => [one.startSlot, one.endSlot + 1]), SLOTS]);
  const sorted = [...bounds].sort((a, b) => a - b);
  const tablets: TabletRecord[] = [];
  for (const [index, startSlot] of sorted.slice(0, -1).entries()) {
    const endSlot = (sorted[index + 1] ?? SLOTS) - 1;
    const best = claims
      .filter((one) => one.startSlot <= startSlot && endSlot <= one.endSlot)
      .reduce<MasterClaim | null>((a, b) => (a === null || isNewer(b, a) ? b : a), null);
    const tablet: TabletRecord = {
      tableId,
      startSlot,
      endSlot,
      serverId: best?.serverId ?? nobody,
      ctimeSegmentId: best?.ctimeSegmentId ?? 0,
      recoveryId: best?.ownershipId ?? 0,
      partitionId: 0,
    };
    const before = tablets.at(-1);
    if (before !== undefined && sameOwnership(before, tablet)) before.endSlot = endSlot;
    else tablets.push(tablet);
  }
  return tablets;
}

function isNewer(one: MasterClaim, other: MasterClaim): boolean {
  const [a, b] = [one.after ?? one, other.after ?? other];
  const order =
    a.ownershipId - b.ownershipId ||
    a.generation - b.generation ||
    Number(one.after === null) - Number(other.after === null) ||
    one.ownershipId - other.ownershipId;
  return order > 0;
}

function sameOwnership(one: TabletRecord, other: TabletRecord): boolean {
  return (
    one.serverId === other.serverId &&
    one.ctimeSegmentId === other.ctimeSegmentId &&
    one.recoveryId === other.recoveryId
  );
}

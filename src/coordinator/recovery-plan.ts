/**
 * Phase 3: cuts the tablets of a crashed master into partitions that are about equally heavy: one
 * per live master, or more where that would make them larger than a master should take at once, or
 * where much is to be recovered. Masters take theirs in turn, so half of the keys are served at
 * half of the time.
 * Weights come from the table statistics in the head of the log, which are as old
 * as that head, so they steer the balance and nothing else: every tablet is in exactly one
 * partition whatever they say.
 */
import type { RecoveryPartition, RecoveryTablet, SlotRange } from '../rpc/messages.js';

/** A tablet below this size is not worth a cut. */
export const CUT_BYTES_MIN = 8 * 1024 * 1024;
/** What fails and starts over is at most this large, if the tablets can be cut. */
const PARTITION_BYTES_MAX = 512 * 1024 * 1024;
/** A partition fills at most this share of the largest free memory. */
const FREE_SHARE = 0.5;
const PARTITIONS_PER_MASTER_MAX = 8;
/** Partitions that a master takes in turn: more hardly help the median key, and backups read again
 * for each what they could not keep. */
const TURNS_MAX = 4;
/** A turn with less is mostly waiting. */
const TURN_BYTES_MIN = 32 * 1024 * 1024;

export interface PlannedPartition extends RecoveryPartition {
  bytes: number;
}

interface Piece {
  tablet: RecoveryTablet;
  bytes: number;
}

export function planPartitions(
  tablets: readonly RecoveryTablet[],
  stats: readonly (SlotRange & { bytes: number })[],
  freeBytes: readonly (number | null)[],
): PlannedPartition[] {
  const weighed = tablets.map((tablet) => ({ tablet, bytes: bytesOf(tablet, stats) }));
  const total = weighed.reduce((sum, { bytes }) => sum + bytes, 0);
  const count = partitionCount(total, freeBytes);
  const target = total / count;
  const pieces = weighed.flatMap((piece) => cut(piece, target, count));
  pieces.sort((a, b) => b.bytes - a.bytes || compareRanges(a.tablet, b.tablet));

  const bins: { bytes: number; tablets: RecoveryTablet[] }[] = Array.from(
    { length: Math.min(count, pieces.length) },
    () => ({ bytes: 0, tablets: [] }),
  );
  for (const { tablet, bytes } of pieces) {
    const lightest = bins.reduce((best, bin) =>
      bin.bytes < best.bytes ||
      (bin.bytes === best.bytes && bin.tablets.length < best.tablets.length)
        ? bin
        : best,
    );
    lightest.bytes += bytes;
    lightest.tablets.push(tablet);
  }
  return bins.map((bin, i) => ({
    partitionId: i + 1,
    tablets: bin.tablets.sort(compareRanges),
    bytes: Math.round(bin.bytes),
  }));
}

/** `freeBytes`: of each live master, null where it is not known. */
function partitionCount(bytes: number, freeBytes: readonly (number | null)[]): number {
  const masters = Math.max(1, freeBytes.length);
  const known = freeBytes.filter((free) => free !== null);
  const largest = known.length < masters ? Number.POSITIVE_INFINITY : Math.max(...known);
  const most = Math.max(CUT_BYTES_MIN, Math.min(PARTITION_BYTES_MAX, largest * FREE_SHARE));
  const turns = Math.min(TURNS_MAX, Math.floor(bytes / masters / TURN_BYTES_MIN));
  const wanted = Math.max(masters * Math.max(1, turns), Math.ceil(bytes / most));
  return Math.min(wanted, masters * PARTITIONS_PER_MASTER_MAX);
}

/** Bytes of a tablet, from all statistics that overlap it, by their share of slots. */
function bytesOf(tablet: SlotRange, stats: readonly (SlotRange & { bytes: number })[]): number {
  let bytes = 0;
  for (const stat of stats) {
    if (stat.tableId !== tablet.tableId) continue;
    const start = Math.max(stat.startSlot, tablet.startSlot);
    const end = Math.min(stat.endSlot, tablet.endSlot);
    if (start > end) continue;
    bytes += stat.bytes * ((end - start + 1) / (stat.endSlot - stat.startSlot + 1));
  }
  return bytes;
}

/** Even cuts by slots, for a tablet that is heavier than an equal share. */
function cut({ tablet, bytes }: Piece, target: number, count: number): Piece[] {
  if (bytes < CUT_BYTES_MIN || bytes <= target) return [{ tablet, bytes }];
  const slots = tablet.endSlot - tablet.startSlot + 1;
  const wanted = Math.min(count, Math.ceil(bytes / target), slots);
  return Array.from({ length: wanted }, (_, i) => ({
    tablet: {
      ...tablet,
      startSlot: tablet.startSlot + Math.floor((i * slots) / wanted),
      endSlot: tablet.startSlot + Math.floor(((i + 1) * slots) / wanted) - 1,
    },
    bytes: bytes / wanted,
  }));
}

function compareRanges(a: SlotRange, b: SlotRange): number {
  return a.tableId - b.tableId || a.startSlot - b.startSlot;
}

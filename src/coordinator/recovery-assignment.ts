/**
 * Which master recovers a partition: one that has the memory for it, as far as is known, and has
 * not failed on it before; of these the one with the least to do. What masters say about their
 * memory and what statistics say about a partition is old and rough, so nobody is kept from trying
 * when no master seems to have room; a master that did run out of memory goes last.
 *
 * Pure.
 */

export interface MasterCandidate {
  serverId: number;
  /** Memory that live objects do not fill; null: not known. */
  freeBytes: number | null;
  /** Partitions of all recoveries that it works on, and the bytes of those of this one. */
  partitions: number;
  bytes: number;
}

/** How a partition has fared so far. */
export interface PartitionHistory {
  /** Server id -> failures there. */
  readonly failures: ReadonlyMap<number, number>;
  readonly outOfMemory: ReadonlySet<number>;
}

/** Memory that a partition needs for each byte of it: side segments are not full. */
const ROOM_FACTOR = 1.15;

/** `turn` breaks ties, so that not all recoveries begin with the same master. */
export function chooseMaster(
  candidates: readonly MasterCandidate[],
  partitionBytes: number,
  { failures, outOfMemory }: PartitionHistory,
  turn: number,
): MasterCandidate | null {
  const room = ({ freeBytes, bytes }: MasterCandidate): number =>
    freeBytes === null ? Number.POSITIVE_INFINITY : freeBytes - bytes * ROOM_FACTOR;
  const fitting = candidates.filter(
    (one) => !outOfMemory.has(one.serverId) && room(one) >= partitionBytes * ROOM_FACTOR,
  );
  const untried = candidates.filter(({ serverId }) => !outOfMemory.has(serverId));
  const pool = [fitting, untried, candidates].find((list) => list.length > 0) ?? [];
  const failed = ({ serverId }: MasterCandidate): number => failures.get(serverId) ?? 0;
  const sorted = [...pool].sort((a, b) => a.serverId - b.serverId);
  const start = turn % Math.max(1, sorted.length);
  const turned = [...sorted.slice(start), ...sorted.slice(0, start)];
  const better = (a: MasterCandidate, b: MasterCandidate): boolean => {
    if (failed(a) !== failed(b)) return failed(a) < failed(b);
    if (a.partitions !== b.partitions) return a.partitions < b.partitions;
    return room(a) > room(b);
  };
  return turned.reduce<MasterCandidate | null>(
    (best, one) => (best === null || better(one, best) ? one : best),
    null,
  );
}

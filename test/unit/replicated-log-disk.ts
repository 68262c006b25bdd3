/**
 * The things of replicated-log-world.ts: segments, cleaning passes and disks. What the process of a
 * backup knows, what only a restart would find again, which of several replicas counts.
 */

export const openingBytes = 100;

export interface DiskReplica {
  received: number;
  certified: number;
  epoch: number;
  closed: boolean;
  /** Of the content; null before the first byte. */
  generation: number | null;
  /** Damaged on disk: of no use to anyone. */
  rotten: boolean;
}

export interface Disk {
  serverId: number;
  alive: boolean;
  draining: boolean;
  replicas: Map<number, DiskReplica>;
  /** Forgotten by the process, but still on the disk. */
  unfreed: Map<number, DiskReplica[]>;
}

export interface Segment {
  id: number;
  position: number;
  appended: number;
  closed: boolean;
  side: boolean;
  /** Length of each generation of its content; a compaction adds one. */
  lengths: number[];
  pinned: boolean;
  /** The core has reused its memory. */
  freed: boolean;
  /** Ids of the segments whose entries it holds. */
  items: Set<number>;
  /** Of a head. */
  digest: number[];
}

export interface Pass {
  survivor: Segment;
  cleaned: Segment[];
  state: 'replicating' | 'committed' | 'inDigest' | 'draining';
  /** Durable position at which the digest that names the survivor is durable. */
  position: number;
  frees: { segmentId: number; serverId: number }[];
}

export function newDisk(serverId: number): Disk {
  return { serverId, alive: true, draining: false, replicas: new Map(), unfreed: new Map() };
}

/** What a backup says that it has: its process, or one that has just read the disk. */
export function findOn(disk: Disk, segmentId: number, restarted: boolean): DiskReplica | undefined {
  const own = disk.replicas.get(segmentId);
  const old = restarted ? (disk.unfreed.get(segmentId) ?? []) : [];
  return [...(own === undefined ? [] : [own]), ...old]
    .filter(({ certified, rotten }) => certified > 0 && !rotten)
    .sort(byRank)[0];
}

/** The restart of a backup and a recovery prefer the same. */
export function byRank(a: DiskReplica, b: DiskReplica): number {
  return Number(b.closed) - Number(a.closed) || b.epoch - a.epoch || b.certified - a.certified;
}

/** mulberry32: small, seeded, good enough to drive a test. */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function contentBytes({ lengths }: Segment): number {
  return lengths.at(-1) ?? openingBytes;
}

export function ended({ position }: Pass): boolean {
  return position < 0;
}

/**
 * The disks of replicated-log-world.ts: what the process of a backup knows, what only a restart
 * would find again, and which of several replicas of a segment counts.
 */

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
  replicas: Map<number, DiskReplica>;
  /** Forgotten by the process, but still on the disk. */
  unfreed: Map<number, DiskReplica[]>;
}

export function newDisk(serverId: number): Disk {
  return { serverId, alive: true, replicas: new Map(), unfreed: new Map() };
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

/**
 * The log of one master as disks have it that nobody can ask about: its newest head, and what that
 * says of its master. Pure. Recoveries find their logs by `log-discovery.ts`; what is different
 * here is that nobody remembers which open replicas the master had given up (`minimumOpen`).
 *
 * Rule: an open replica is the head only if no younger head contradicts it: the digest of a head
 * names every segment of the log, so an older one that it leaves out was cleaned away, and whoever
 * still has it open had lost touch. So the newest head must be among the disks; that it may not be
 * is said by `replicas`.
 */
import { type ClusterNote, parseNotes, type TabletClaim } from '../ops/log-notes.js';

/** A replica on a disk. */
export interface FoundReplica {
  /** Of the server that the disk belongs to. */
  serverId: number;
  segmentId: number;
  epoch: number;
  length: number;
  closed: boolean;
  /** Of a head: the segments of the log, and its notes. */
  digest: readonly number[] | null;
  notes: Readonly<Record<string, string>> | null;
}

export interface FoundLog {
  masterId: number;
  /** The head, or, if none is left, the newest one that was closed; 0: nothing was a head. */
  headSegmentId: number;
  /** False: the end of the log is lost, and the notes may be old. */
  headFound: boolean;
  /** The highest epoch in which the head is open; open replicas of older ones do not count. */
  epoch: number;
  /** Disks on which it is open in that epoch: R, unless some are missing here. */
  replicas: number;
  cluster: ClusterNote | null;
  claims: TabletClaim[];
}

type HeadReplica = FoundReplica & { digest: readonly number[] };

export function findLog(masterId: number, replicas: readonly FoundReplica[]): FoundLog {
  const heads = replicas.filter((one): one is HeadReplica => one.digest !== null);
  const closed = new Set(replicas.filter((one) => one.closed).map(({ segmentId }) => segmentId));
  const contradicted = (one: HeadReplica): boolean =>
    // A segment is closed on R backups before anything is written to the next one.
    heads.some(
      (other) =>
        other.segmentId > one.segmentId && (other.closed || !other.digest.includes(one.segmentId)),
    );
  const open = heads.filter((one) => !closed.has(one.segmentId) && !contradicted(one));
  const headSegmentId = Math.min(...open.map(({ segmentId }) => segmentId));
  if (open.length === 0) return withoutHead(masterId, heads);
  const copies = open.filter(({ segmentId }) => segmentId === headSegmentId);
  const epoch = Math.max(...copies.map((one) => one.epoch));
  const current = copies.filter((one) => one.epoch === epoch);
  const longest = current.reduce((best, one) => (one.length > best.length ? one : best));
  return {
    masterId,
    headSegmentId,
    headFound: true,
    epoch,
    replicas: new Set(current.map(({ serverId }) => serverId)).size,
    ...parseNotes(longest.notes ?? {}),
  };
}

/** Its recovery waits for the head until an operator gives it up. */
function withoutHead(masterId: number, heads: readonly HeadReplica[]): FoundLog {
  const newest = heads.reduce<HeadReplica | null>(
    (best, one) => (best === null || one.segmentId > best.segmentId ? one : best),
    null,
  );
  return {
    masterId,
    headSegmentId: newest?.segmentId ?? 0,
    headFound: false,
    epoch: 0,
    replicas: 0,
    ...parseNotes(newest?.notes ?? {}),
  };
}

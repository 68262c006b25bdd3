/**
 * Finds the log of a crashed master in what the backups report, or says why it cannot be proved
 * complete (docs/recovery.md, phase 2).
 *
 * What it stands on: an open head names all segments of the log; a head receives data only when
 * its predecessor is closed on all its backups; a closed replica never changes; replicas that were
 * lost while open are below the minimum open (segment, epoch) that the master stored.
 */
import type { ReplyOf } from '../rpc/table.js';

export type BackupReport = ReplyOf<'START_READING_DATA'>;

export interface MinimumOpen {
  segmentId: number;
  epoch: number;
}

export interface LogSegment {
  segmentId: number;
  length: number;
  /** Backups that hold a valid replica, best first. */
  backups: number[];
}

export interface DiscoveredLog {
  headSegmentId: number;
  /** Ascending; the head is the last. */
  segments: LogSegment[];
  bytes: number;
  tabletStats: { tableId: number; startSlot: number; endSlot: number; bytes: number }[];
}

export type Discovery =
  | { complete: true; log: DiscoveredLog }
  | { complete: false; waitingFor: string };

interface Replica {
  backupId: number;
  segmentId: number;
  epoch: number;
  length: number;
  closed: boolean;
  primary: boolean;
}

const MISSING_SHOWN_MAX = 20;

export function discoverLog(
  reports: ReadonlyMap<number, BackupReport>,
  minimumOpen: MinimumOpen,
): Discovery {
  const replicas = replicasBySegment(reports, minimumOpen);
  const head = findHead(reports, replicas, minimumOpen);
  if (head === null) {
    return {
      complete: false,
      waitingFor: `a backup that holds the head of the log (${reports.size} have answered)`,
    };
  }
  const segments: LogSegment[] = [];
  const missing: number[] = [];
  for (const segmentId of [...head.segmentIds].sort((a, b) => a - b)) {
    if (segmentId > head.segmentId) continue;
    const segment = chooseReplicas(segmentId, replicas.get(segmentId) ?? []);
    if (segment === null) missing.push(segmentId);
    else segments.push(segment);
  }
  if (missing.length > 0) {
    const shown = missing.slice(0, MISSING_SHOWN_MAX).join(', ');
    const more = missing.length > MISSING_SHOWN_MAX ? ', …' : '';
    return {
      complete: false,
      waitingFor: `backups with ${missing.length} missing segments: ${shown}${more}`,
    };
  }
  return {
    complete: true,
    log: {
      headSegmentId: head.segmentId,
      segments,
      bytes: segments.reduce((sum, { length }) => sum + length, 0),
      tabletStats: head.tabletStats,
    },
  };
}

function isStale(segmentId: number, epoch: number, minimumOpen: MinimumOpen): boolean {
  return (
    segmentId < minimumOpen.segmentId ||
    (segmentId === minimumOpen.segmentId && epoch < minimumOpen.epoch)
  );
}

/** All valid replicas: every closed one, and the open ones that are not stale. */
function replicasBySegment(
  reports: ReadonlyMap<number, BackupReport>,
  minimumOpen: MinimumOpen,
): Map<number, Replica[]> {
  const replicas = new Map<number, Replica[]>();
  for (const [backupId, report] of reports) {
    for (const { segmentId, epoch, length, closed, primary } of report.replicas) {
      if (!closed && isStale(segmentId, epoch, minimumOpen)) continue;
      const list = replicas.get(segmentId) ?? [];
      list.push({ backupId, segmentId, epoch, length, closed, primary });
      replicas.set(segmentId, list);
    }
  }
  return replicas;
}

/**
 * The digest with the lowest segment id among the valid open replicas. A segment that some backup
 * has closed is passed over: either its close was under way, then the next head is open on all
 * its backups, or it is the copy of an old segment that was being replaced, whose digest is out
 * of date.
 */
function findHead(
  reports: ReadonlyMap<number, BackupReport>,
  replicas: ReadonlyMap<number, Replica[]>,
  minimumOpen: MinimumOpen,
): BackupReport['digests'][number] | null {
  let head: BackupReport['digests'][number] | null = null;
  for (const report of reports.values()) {
    for (const digest of report.digests) {
      if (isStale(digest.segmentId, digest.epoch, minimumOpen)) continue;
      const found = replicas.get(digest.segmentId) ?? [];
      if (found.length === 0 || found.some(({ closed }) => closed)) continue;
      const better =
        head === null ||
        digest.segmentId < head.segmentId ||
        (digest.segmentId === head.segmentId && digest.epoch > head.epoch);
      if (better) head = digest;
    }
  }
  return head;
}

/**
 * Closed replicas all say the same, though one that was copied after a compaction is shorter;
 * primaries go first since their backups read them unasked. Of open ones only those with the
 * highest (epoch, length) are used, so that all partitions see the same bytes.
 */
function chooseReplicas(segmentId: number, replicas: readonly Replica[]): LogSegment | null {
  const closed = replicas.filter((replica) => replica.closed);
  const open = [...replicas].sort((a, b) => b.epoch - a.epoch || b.length - a.length);
  const best = open[0];
  if (best === undefined) return null;
  const usable =
    closed.length > 0
      ? closed
      : open.filter(({ epoch, length }) => epoch === best.epoch && length === best.length);
  usable.sort((a, b) => Number(b.primary) - Number(a.primary) || a.backupId - b.backupId);
  const first = usable[0];
  if (first === undefined) return null;
  return { segmentId, length: first.length, backups: usable.map(({ backupId }) => backupId) };
}

/**
 * Finds the log of a crashed master in what the backups report, or says what is missing for the
 * proof that it is complete (docs/recovery.md, phase 2).
 *
 * What it stands on: an open head names all segments of the log; a head receives data only when
 * its predecessor is closed on all its backups; a close is acknowledged when it is flushed, in
 * every mode; a closed replica never changes; replicas that were lost while open are below the
 * minimum open (segment, epoch) that the master stored. A doubtful replica is one that may lack
 * acknowledged bytes: it shows that the head is no later segment, and proves nothing of its own
 * length, so it counts beside a sound one only if it is the same.
 */
import type { LogGap } from '../rpc/messages.js';
import type { ReplyOf } from '../rpc/table.js';
import type { AcceptedLoss } from './coordinator-state.js';

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
  /** 0 if the head is lost. */
  headSegmentId: number;
  /** Ascending; the head is the last. */
  segments: LogSegment[];
  bytes: number;
  tabletStats: { tableId: number; startSlot: number; endSlot: number; bytes: number }[];
}

export interface LogEvidence {
  reports: ReadonlyMap<number, BackupReport>;
  minimumOpen: MinimumOpen;
  /** Replicas that recovery masters found damaged: segment id -> backups. */
  damaged: ReadonlyMap<number, ReadonlySet<number>>;
  /** What the log may lack. */
  lost: AcceptedLoss;
}

export type Discovery = { complete: true; log: DiscoveredLog } | { complete: false; gap: LogGap };

interface Replica {
  backupId: number;
  segmentId: number;
  epoch: number;
  length: number;
  closed: boolean;
  primary: boolean;
  doubtful: boolean;
}

interface ChosenSegment extends LogSegment {
  doubtful: boolean;
}

export function discoverLog(evidence: LogEvidence): Discovery {
  const { reports, minimumOpen, lost } = evidence;
  const replicas = replicasBySegment(evidence);
  const head = findHead(reports, replicas, minimumOpen);
  // Without the head nobody knows which segments the log has: all that there are may be of it.
  const named = head?.segmentIds.filter((id) => id <= head.segmentId) ?? [...replicas.keys()];
  const gap: LogGap = { headMissing: head === null && !lost.head, missing: [], doubtful: [] };
  const segments: LogSegment[] = [];
  const given = new Set(lost.segmentIds);
  for (const segmentId of named.sort((a, b) => a - b)) {
    const chosen = chooseReplicas(segmentId, replicas.get(segmentId) ?? []);
    const accepted = given.has(segmentId);
    if (chosen === null) {
      if (!accepted) gap.missing.push(segmentId);
      continue;
    }
    const { doubtful, ...segment } = chosen;
    segments.push(segment);
    if (!doubtful || accepted) continue;
    const { length, backups } = segment;
    gap.doubtful.push({ segmentId, fromByte: length, servers: backups });
  }
  if (gap.headMissing || gap.missing.length > 0 || gap.doubtful.length > 0) {
    return { complete: false, gap };
  }
  return {
    complete: true,
    log: {
      headSegmentId: head?.segmentId ?? 0,
      segments,
      bytes: segments.reduce((sum, { length }) => sum + length, 0),
      tabletStats: head?.tabletStats ?? [],
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
function replicasBySegment({ reports, minimumOpen, damaged }: LogEvidence): Map<number, Replica[]> {
  const replicas = new Map<number, Replica[]>();
  for (const [backupId, report] of reports) {
    for (const replica of report.replicas) {
      const { segmentId, epoch, closed } = replica;
      if (!closed && isStale(segmentId, epoch, minimumOpen)) continue;
      if (damaged.get(segmentId)?.has(backupId)) continue;
      const list = replicas.get(segmentId) ?? [];
      list.push({ ...replica, backupId });
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
 * highest (epoch, length) of a sound one are used, so that all partitions see the same bytes.
 */
function chooseReplicas(segmentId: number, replicas: readonly Replica[]): ChosenSegment | null {
  const closed = replicas.filter((replica) => replica.closed);
  const open = [...replicas].sort(
    (a, b) => Number(a.doubtful) - Number(b.doubtful) || b.epoch - a.epoch || b.length - a.length,
  );
  const best = open[0];
  if (best === undefined) return null;
  const usable =
    closed.length > 0
      ? closed
      : open.filter(({ epoch, length }) => epoch === best.epoch && length === best.length);
  usable.sort((a, b) => Number(b.primary) - Number(a.primary) || a.backupId - b.backupId);
  const first = usable[0];
  if (first === undefined) return null;
  return {
    segmentId,
    length: first.length,
    backups: usable.map(({ backupId }) => backupId),
    doubtful: closed.length === 0 && best.doubtful,
  };
}

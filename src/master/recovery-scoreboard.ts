/**
 * Which segment of a recovery to fetch next and from whom, as pure data: no I/O, no clock.
 *
 * A segment is done, under way, waiting (its backup has not read it yet) or open. A replica that
 * failed is not asked again; a backup that could not be reached gets a second chance once the
 * others have been tried. All replicas failed = the recovery of the partition fails.
 */
import { invariant } from '../rpc/errors.js';

export interface ScoreboardSegment {
  segmentId: number;
  /** Best first. */
  backups: readonly number[];
}

interface Row {
  segmentId: number;
  /** Backups still to be tried, in order. */
  backups: number[];
  secondChances: Set<number>;
  state: 'open' | 'underWay' | 'done';
  notBeforeMs: number;
}

export type NextFetch =
  | { kind: 'fetch'; segmentId: number; serverId: number }
  | { kind: 'wait'; untilMs: number }
  /** Others are under way; nothing to start. */
  | { kind: 'idle' }
  | { kind: 'done' }
  | { kind: 'failed'; segmentId: number };

export class RecoveryScoreboard {
  readonly #rows: Row[];
  readonly #rowById = new Map<number, Row>();
  #next: number;
  #left: number;

  /** `random` in [0, 1): where to start, so that masters do not all ask the same backup first. */
  constructor(segments: readonly ScoreboardSegment[], random: number) {
    this.#rows = segments.map(({ segmentId, backups }) => ({
      segmentId,
      backups: [...backups],
      secondChances: new Set(backups),
      state: 'open',
      notBeforeMs: 0,
    }));
    for (const row of this.#rows) this.#rowById.set(row.segmentId, row);
    this.#next = Math.floor(random * this.#rows.length);
    this.#left = this.#rows.length;
  }

  next(nowMs: number): NextFetch {
    if (this.#left === 0) return { kind: 'done' };
    let untilMs = Number.POSITIVE_INFINITY;
    for (let tried = 0; tried < this.#rows.length; tried += 1) {
      const row = this.#rows[this.#next];
      invariant(row !== undefined, 'index below the number of segments');
      this.#next = (this.#next + 1) % this.#rows.length;
      if (row.state !== 'open') continue;
      const serverId = row.backups[0];
      if (serverId === undefined) return { kind: 'failed', segmentId: row.segmentId };
      if (row.notBeforeMs > nowMs) {
        untilMs = Math.min(untilMs, row.notBeforeMs);
        continue;
      }
      row.state = 'underWay';
      return { kind: 'fetch', segmentId: row.segmentId, serverId };
    }
    return Number.isFinite(untilMs) ? { kind: 'wait', untilMs } : { kind: 'idle' };
  }

  succeeded(segmentId: number): void {
    this.#underWay(segmentId).state = 'done';
    this.#left -= 1;
  }

  notReady(segmentId: number, notBeforeMs: number): void {
    const row = this.#underWay(segmentId);
    row.state = 'open';
    row.notBeforeMs = notBeforeMs;
  }

  /** This replica is of no use; the next one of the segment is tried. */
  replicaFailed(segmentId: number, serverId: number): void {
    const row = this.#underWay(segmentId);
    row.state = 'open';
    row.backups = row.backups.filter((id) => id !== serverId);
  }

  /** The backup did not answer: its replica goes to the end, once. */
  backupUnreachable(segmentId: number, serverId: number, notBeforeMs: number): void {
    const row = this.#underWay(segmentId);
    const again = row.secondChances.delete(serverId);
    this.replicaFailed(segmentId, serverId);
    if (!again) return;
    row.backups.push(serverId);
    if (row.backups.length === 1) row.notBeforeMs = notBeforeMs;
  }

  #underWay(segmentId: number): Row {
    const row = this.#rowById.get(segmentId);
    invariant(row !== undefined && row.state === 'underWay', 'an answer to a fetch under way');
    return row;
  }
}

/**
 * Which segment of a recovery to fetch next and from whom, as pure data: no I/O, no clock. Newest
 * first: then most dead versions arrive dead, and cost neither memory nor copies.
 *
 * A replica of which its backup says that it is damaged is not asked for again; a backup that could
 * not be reached, and one whose piece was bad on arrival, gets a second chance once the others have
 * been tried. All replicas failed = the recovery of the partition fails. When nothing else is left
 * to begin, a fetch that takes long gets a *hedge*: the same segment from another backup. Only one
 * piece of a segment is applied: `claim` says whose.
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
  /** Backups with a fetch under way -> when it began. At most two. */
  fetches: Map<number, number>;
  /** `claimed`: a piece has come and is being applied. */
  state: 'open' | 'claimed' | 'done';
  notBeforeMs: number;
  /** Backups that have sent a bad piece: it may have been damaged on its way. */
  badPieces: Set<number>;
  damagedOn: number[];
}

export interface Fetch {
  segmentId: number;
  serverId: number;
}

export type NextFetch =
  | ({ kind: 'fetch' } & Fetch)
  | { kind: 'wait'; untilMs: number }
  /** Others are under way; nothing to start. */
  | { kind: 'idle' }
  | { kind: 'done' }
  /** Each replica has failed; those of `damagedOn` for good. */
  | { kind: 'failed'; segmentId: number; damagedOn: number[] };

export class RecoveryScoreboard {
  readonly #rows: Row[];
  readonly #rowById = new Map<number, Row>();
  /** Backups that a hedge had to help out, until they deliver. */
  readonly #slow = new Set<number>();
  /** All rows before it are done. */
  #first = 0;
  #left: number;

  constructor(segments: readonly ScoreboardSegment[]) {
    this.#rows = segments.map(({ segmentId, backups }) => ({
      segmentId,
      backups: [...backups],
      secondChances: new Set(backups),
      fetches: new Map(),
      state: 'open',
      notBeforeMs: 0,
      badPieces: new Set(),
      damagedOn: [],
    }));
    this.#rows.sort((a, b) => b.segmentId - a.segmentId);
    for (const row of this.#rows) this.#rowById.set(row.segmentId, row);
    this.#left = this.#rows.length;
  }

  /** `hedgeAfterMs`: how long a fetch may take before another backup is asked too. */
  next(nowMs: number, hedgeAfterMs = Number.POSITIVE_INFINITY): NextFetch {
    if (this.#left === 0) return { kind: 'done' };
    let untilMs = Number.POSITIVE_INFINITY;
    while (this.#rows[this.#first]?.state === 'done') this.#first += 1;
    for (let index = this.#first; index < this.#rows.length; index += 1) {
      const row = this.#rows[index];
      invariant(row !== undefined, 'index below the number of segments');
      if (row.state !== 'open' || row.fetches.size > 0) continue;
      const { segmentId, damagedOn } = row;
      const serverId = row.backups.find((id) => !this.#slow.has(id)) ?? row.backups[0];
      if (serverId === undefined) return { kind: 'failed', segmentId, damagedOn };
      if (row.notBeforeMs > nowMs) {
        untilMs = Math.min(untilMs, row.notBeforeMs);
        continue;
      }
      return this.#begin(row, serverId, nowMs);
    }
    const hedge = this.#hedge(nowMs, hedgeAfterMs);
    if (hedge !== null) return hedge;
    return Number.isFinite(untilMs) ? { kind: 'wait', untilMs } : { kind: 'idle' };
  }

  #begin(row: Row, serverId: number, nowMs: number): NextFetch {
    row.fetches.set(serverId, nowMs);
    return { kind: 'fetch', segmentId: row.segmentId, serverId };
  }

  #hedge(nowMs: number, hedgeAfterMs: number): NextFetch | null {
    for (const row of this.#rows) {
      const [only] = row.fetches;
      if (row.state !== 'open' || row.fetches.size !== 1 || only === undefined) continue;
      const [slowId, startedMs] = only;
      const other = row.backups.find((id) => id !== slowId && !this.#slow.has(id));
      if (nowMs - startedMs < hedgeAfterMs || other === undefined) continue;
      this.#slow.add(slowId);
      return this.#begin(row, other, nowMs);
    }
    return null;
  }

  /** A piece has come. False: another one of this segment is being applied, or was. */
  claim({ segmentId, serverId }: Fetch): boolean {
    const row = this.#end(segmentId, serverId);
    this.#slow.delete(serverId);
    if (row.state !== 'open') return false;
    row.state = 'claimed';
    return true;
  }

  /** The claimed piece is applied. Returns the backups whose answers nobody needs any more. */
  succeeded(segmentId: number): number[] {
    const row = this.#rowById.get(segmentId);
    invariant(row?.state === 'claimed', 'a piece that is applied was claimed');
    row.state = 'done';
    this.#left -= 1;
    return [...row.fetches.keys()];
  }

  /** The claimed piece is bad: its replica goes to the end, and is of no use the second time. */
  claimedBad({ segmentId, serverId }: Fetch): void {
    const row = this.#rowById.get(segmentId);
    invariant(row?.state === 'claimed', 'a piece that is bad was claimed');
    row.state = 'open';
    const again = !row.badPieces.has(serverId);
    this.#drop(row, serverId, !again);
    row.badPieces.add(serverId);
    if (again) row.backups.push(serverId);
  }

  notReady({ segmentId, serverId }: Fetch, notBeforeMs: number): void {
    this.#end(segmentId, serverId).notBeforeMs = notBeforeMs;
  }

  /** The fetch was given up: its segment came from another backup. */
  abandoned({ segmentId, serverId }: Fetch): void {
    this.#end(segmentId, serverId);
  }

  /** This replica is of no use; the next one of the segment is tried. */
  replicaFailed({ segmentId, serverId }: Fetch, damaged: boolean): void {
    this.#drop(this.#end(segmentId, serverId), serverId, damaged);
  }

  /** The backup did not answer: its replica goes to the end, once. */
  backupUnreachable({ segmentId, serverId }: Fetch, notBeforeMs: number): void {
    const row = this.#end(segmentId, serverId);
    const again = row.secondChances.delete(serverId);
    this.#drop(row, serverId, false);
    if (!again) return;
    row.backups.push(serverId);
    if (row.backups.length === 1) row.notBeforeMs = notBeforeMs;
  }

  #drop(row: Row, serverId: number, damaged: boolean): void {
    row.backups = row.backups.filter((id) => id !== serverId);
    if (damaged) row.damagedOn.push(serverId);
  }

  #end(segmentId: number, serverId: number): Row {
    const row = this.#rowById.get(segmentId);
    const under = row?.fetches.delete(serverId);
    invariant(row !== undefined && under === true, 'an answer to a fetch under way');
    return row;
  }
}

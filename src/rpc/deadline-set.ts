/**
 * Things that end at a deadline, with one timer for all of them: a timer a call would cost more
 * than the call. The timer stands at the earliest deadline seen; when it fires, the whole set is
 * scanned. With one usual timeout that is one scan per timeout, not one per call.
 *
 * Times are on `performance.now()`'s clock. While the set has members the timer keeps the process
 * alive, so that nothing that waits is forgotten.
 */

/** setTimeout fires at once for longer delays than this. */
const TIMER_MS_MAX = 2_000_000_000;

export class DeadlineSet<T extends { deadlineMs: number }> {
  readonly #members = new Set<T>();
  readonly #expire: (member: T) => void;
  #timer: NodeJS.Timeout | null = null;
  /** Invariant: while there are members, #timerAtMs <= every member's deadline. */
  #timerAtMs = Number.POSITIVE_INFINITY;

  /** `expire` is called for each expired member, after it was removed. */
  constructor(expire: (member: T) => void) {
    this.#expire = expire;
  }

  get size(): number {
    return this.#members.size;
  }

  [Symbol.iterator](): IterableIterator<T> {
    return this.#members.values();
  }

  add(member: T): void {
    this.#members.add(member);
    if (member.deadlineMs < this.#timerAtMs) this.#arm(member.deadlineMs);
  }

  delete(member: T): boolean {
    const was = this.#members.delete(member);
    if (this.#members.size === 0) this.#disarm();
    return was;
  }

  /** Takes all members out. */
  drain(): T[] {
    const members = [...this.#members];
    this.#members.clear();
    this.#disarm();
    return members;
  }

  #arm(atMs: number): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timerAtMs = atMs;
    const delayMs = Math.min(TIMER_MS_MAX, Math.max(0, Math.ceil(atMs - performance.now())));
    this.#timer = setTimeout(() => this.#scan(), delayMs);
  }

  #disarm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    this.#timerAtMs = Number.POSITIVE_INFINITY;
  }

  #scan(): void {
    this.#disarm();
    const now = performance.now();
    let earliestMs = Number.POSITIVE_INFINITY;
    const expired: T[] = [];
    for (const member of this.#members) {
      if (member.deadlineMs <= now) expired.push(member);
      else if (member.deadlineMs < earliestMs) earliestMs = member.deadlineMs;
    }
    // A scan that is late finds several: they expire in their order all the same.
    expired.sort((a, b) => a.deadlineMs - b.deadlineMs);
    for (const member of expired) this.#members.delete(member);
    if (earliestMs < this.#timerAtMs) this.#arm(earliestMs);
    // Last, since `expire` may add members.
    for (const member of expired) this.#expire(member);
  }
}

/**
 * Things that end at a deadline, with one timer for all of them: a timer a call would cost more
 * than the call. The timer stands at the earliest deadline seen; when it fires, the whole set is
 * scanned. With one usual timeout that is one scan per timeout, not one per call. A set that gets
 * empty keeps its timer for the next member.
 *
 * Times are on `performance.now()`'s clock. While the set has members the timer keeps the process
 * alive, so that nothing that waits is forgotten.
 */

/** setTimeout fires at once for longer delays than this. */
const TIMER_MS_MAX = 2_000_000_000;

/** What a set holds. The links lie in the member, so that to come and to go allocates nothing. */
export abstract class DeadlineMember {
  abstract readonly deadlineMs: number;
  /** The set's own. */
  setBefore: DeadlineMember | null = null;
  setBehind: DeadlineMember | null = null;
  inSet = false;
}

export class DeadlineSet<T extends DeadlineMember> {
  /** The oldest member and the newest. */
  #first: T | null = null;
  #last: T | null = null;
  #size = 0;
  readonly #expire: (member: T) => void;
  /** Without members it does not keep the process alive. */
  #timer: NodeJS.Timeout | null = null;
  /** Invariant: while there are members, #timerAtMs <= every member's deadline. */
  #timerAtMs = Number.POSITIVE_INFINITY;

  /** `expire` is called for each expired member, after it was removed. */
  constructor(expire: (member: T) => void) {
    this.#expire = expire;
  }

  get size(): number {
    return this.#size;
  }

  /** A member is in one set at most. */
  add(member: T): void {
    if (member.inSet) return;
    member.inSet = true;
    member.setBefore = this.#last;
    if (this.#last === null) {
      this.#first = member;
      this.#timer?.ref();
    } else this.#last.setBehind = member;
    this.#last = member;
    this.#size += 1;
    if (member.deadlineMs < this.#timerAtMs) this.#arm(member.deadlineMs);
  }

  delete(member: T): boolean {
    if (!member.inSet) return false;
    const { setBefore: before, setBehind: behind } = member;
    if (before === null) this.#first = behind as T | null;
    else before.setBehind = behind;
    if (behind === null) this.#last = before as T | null;
    else behind.setBefore = before;
    member.setBefore = null;
    member.setBehind = null;
    member.inSet = false;
    this.#size -= 1;
    if (this.#size === 0) this.#timer?.unref();
    return true;
  }

  /** Takes all members out. */
  drain(): T[] {
    const members = this.#members();
    for (const member of members) this.delete(member);
    this.#disarm();
    return members;
  }

  #members(): T[] {
    const members: T[] = [];
    for (let member = this.#first; member !== null; member = member.setBehind as T | null) {
      members.push(member);
    }
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
    for (const member of this.#members()) {
      if (member.deadlineMs <= now) expired.push(member);
      else if (member.deadlineMs < earliestMs) earliestMs = member.deadlineMs;
    }
    // A scan that is late finds several: they expire in their order all the same.
    expired.sort((a, b) => a.deadlineMs - b.deadlineMs);
    for (const member of expired) this.delete(member);
    if (earliestMs < this.#timerAtMs) this.#arm(earliestMs);
    // Last, since `expire` may add members.
    for (const member of expired) this.#expire(member);
  }
}

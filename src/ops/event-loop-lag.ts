/**
 * How late this process runs its own timers: the worst of the last five to ten seconds. Whoever
 * judges others by their silence waits longer by this measure, his own since it may be the judge
 * who is deaf, and theirs since who was late once will be late again.
 */

const intervalMs = 50;
const windowMs = 5_000;

export class EventLoopLag {
  readonly #timer: NodeJS.Timeout;
  #dueAtMs = performance.now() + intervalMs;
  #windowEndsAtMs = performance.now() + windowMs;
  #worstMs = 0;
  #worstBeforeMs = 0;

  constructor() {
    this.#timer = setInterval(() => this.#tick(performance.now()), intervalMs);
    this.#timer.unref();
  }

  worstMs(): number {
    // A tick that is late now counts already.
    const lateMs = Math.max(0, performance.now() - this.#dueAtMs);
    return Math.max(lateMs, this.#worstMs, this.#worstBeforeMs);
  }

  /** What was before says nothing of what comes: a start is late as nothing ever is again. */
  forget(): void {
    this.#worstMs = 0;
    this.#worstBeforeMs = 0;
    this.#dueAtMs = performance.now() + intervalMs;
  }

  close(): void {
    clearInterval(this.#timer);
  }

  #tick(nowMs: number): void {
    if (nowMs >= this.#windowEndsAtMs) {
      this.#worstBeforeMs = this.#worstMs;
      this.#worstMs = 0;
      this.#windowEndsAtMs = nowMs + windowMs;
    }
    this.#worstMs = Math.max(this.#worstMs, nowMs - this.#dueAtMs);
    this.#dueAtMs = nowMs + intervalMs;
  }
}

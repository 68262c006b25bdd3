/**
 * How fast bytes may come that nobody waits for: so many a second on average, a few at once. What
 * serves clients has the rest of the machine. Pure: the caller waits as long as it is told.
 */
export class Pace {
  readonly #bytesPerSecond: number;
  readonly #burstMs: number;
  /** Until when what has come would have taken. */
  #paidUntilMs = Number.NEGATIVE_INFINITY;

  /** `bytesPerSecond`: 0 is no limit. */
  constructor(bytesPerSecond: number, burstBytes: number) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#burstMs = bytesPerSecond === 0 ? 0 : (burstBytes * 1_000) / bytesPerSecond;
  }

  /** These have come: how long to wait before more are asked for. */
  spend(bytes: number, nowMs: number): number {
    if (this.#bytesPerSecond === 0) return 0;
    const begunMs = Math.max(this.#paidUntilMs, nowMs - this.#burstMs);
    this.#paidUntilMs = begunMs + (bytes * 1_000) / this.#bytesPerSecond;
    return Math.max(0, this.#paidUntilMs - nowMs);
  }
}

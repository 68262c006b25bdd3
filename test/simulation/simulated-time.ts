/**
 * Virtual time for many processes in one: events in the order of their times, then of their making,
 * each followed by all that its promises lead to. All chance comes from one seed, so the same seed
 * plays the same way again.
 *
 * A process that is dead never hears of anything again, one that stands still hears it later: its
 * timers, requests and answers all go through `deliver`.
 */
import type { Clock } from '../../src/rpc/clock.js';
import { randomFrom } from '../unit/replicated-log-disk.js';

interface Event {
  readonly atMs: number;
  readonly action: () => void;
}

export class SimulatedTime {
  nowMs = 0;
  events = 0;
  readonly random: () => number;
  /** The next one last. */
  private readonly queue: Event[] = [];

  constructor(seed: number) {
    this.random = randomFrom(seed);
  }

  /** Returns what cancels it. */
  at(atMs: number, action: () => void): () => void {
    const event: Event = { atMs: Math.max(atMs, this.nowMs), action };
    let low = 0;
    let high = this.queue.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.queue[middle]?.atMs ?? 0) > event.atMs) low = middle + 1;
      else high = middle;
    }
    this.queue.splice(low, 0, event);
    return () => {
      const place = this.queue.indexOf(event);
      if (place >= 0) this.queue.splice(place, 1);
    };
  }

  below(n: number): number {
    return Math.floor(this.random() * n);
  }

  chance(share: number): boolean {
    return this.random() < share;
  }

  between(low: number, high: number): number {
    return low + this.random() * (high - low);
  }

  /** One of several, which there must be. */
  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }

  /** Until `done` says so, looked at every 50 ms, or the time is over; whether it was done. */
  async run(untilMs: number, done: () => boolean = () => false): Promise<boolean> {
    let lookAtMs = this.nowMs;
    for (;;) {
      if (this.nowMs >= lookAtMs) {
        if (done()) return true;
        lookAtMs = this.nowMs + 50;
      }
      const event = this.queue.pop();
      if (event === undefined || event.atMs > untilMs) {
        if (event !== undefined) this.queue.push(event);
        this.nowMs = untilMs;
        return done();
      }
      this.nowMs = event.atMs;
      this.events++;
      event.action();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
}

export class SimulatedProcess {
  alive = true;
  private parked: (() => void)[] | null = null;

  constructor(
    readonly time: SimulatedTime,
    readonly name: string,
  ) {}

  get standsStill(): boolean {
    return this.parked !== null;
  }

  readonly clock: Clock = {
    monotonicMs: () => this.time.nowMs,
    now: () => this.time.nowMs,
    after: (ms, action) => {
      let cancelled = false;
      const run = (): void => {
        if (!cancelled) action();
      };
      const cancel = this.time.at(this.time.nowMs + ms, () => this.deliver(run));
      return () => {
        cancelled = true;
        cancel();
      };
    },
    random: () => this.time.random(),
  };

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.clock.after(ms, resolve));
  }

  deliver(action: () => void): void {
    if (!this.alive) return;
    if (this.parked !== null) this.parked.push(action);
    else action();
  }

  pause(): void {
    this.parked ??= [];
  }

  resume(): void {
    const parked = this.parked ?? [];
    this.parked = null;
    for (const action of parked) this.time.at(this.time.nowMs, () => this.deliver(action));
  }

  kill(): void {
    this.alive = false;
    this.parked = null;
  }
}

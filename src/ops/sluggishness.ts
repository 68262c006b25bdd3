/**
 * How slow this process is at present, in milliseconds: how late it runs its own timers, and how
 * many others want the processor. The worst of the last three to six seconds. Whoever judges others
 * by their silence waits longer by this measure, his own since it may be the judge who is deaf, and
 * theirs since who was slow once will be slow again. The load counts before anything is late: work
 * that takes 100 ms alone takes a second among ten.
 */
import { readFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';

const intervalMs = 50;
const windowMs = 3_000;
const loadIntervalMs = 250;
/** Share of a new sample in the average: four of them make most of it. */
const loadWeight = 0.25;
/** Milliseconds for each process that a core has too many. */
const msPerWaiting = 75;
const linuxLoadFile = '/proc/loadavg';

export class Sluggishness {
  readonly #timer: NodeJS.Timeout;
  #dueAtMs = performance.now() + intervalMs;
  #windowEndsAtMs = performance.now() + windowMs;
  #loadDueAtMs = 0;
  /** Runnable threads a core, averaged. */
  #load = 0;
  #worstMs = 0;
  #worstBeforeMs = 0;

  constructor() {
    this.#timer = setInterval(() => this.#tick(performance.now()), intervalMs);
    this.#timer.unref();
  }

  ms(): number {
    // A tick that is late now counts already.
    const lateMs = Math.max(0, performance.now() - this.#dueAtMs);
    return Math.max(lateMs + this.#waitingMs(), this.#worstMs, this.#worstBeforeMs);
  }

  /** What was before says nothing of what comes: a start is slow as nothing ever is again. */
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
    if (nowMs >= this.#loadDueAtMs) {
      this.#loadDueAtMs = nowMs + loadIntervalMs;
      this.#load += loadWeight * (runnable() / availableParallelism() - this.#load);
    }
    this.#worstMs = Math.max(this.#worstMs, nowMs - this.#dueAtMs + this.#waitingMs());
    this.#dueAtMs = nowMs + intervalMs;
  }

  #waitingMs(): number {
    return msPerWaiting * Math.max(0, this.#load - 1);
  }
}

/** Threads of the machine that run or want to; elsewhere than on Linux the average of a minute. */
function runnable(): number {
  if (process.platform !== 'linux') return loadavg()[0] ?? 0;
  const [, , , tasks = ''] = readFileSync(linuxLoadFile, 'latin1').split(' ');
  // This thread is one of them.
  return Number.parseInt(tasks, 10) - 1;
}

/**
 * Operations at a fixed rate, and HDR histograms of how long they took. The time of each counts
 * from when it was *due*, so that a stall shows in all the operations it delayed (no coordinated
 * omission).
 */
import { setTimeout as delay } from 'node:timers/promises';
import { build, type Histogram } from 'hdr-histogram-js';

export type Operation = () => Promise<unknown>;

const IN_FLIGHT_MAX = 10_000;

/** Microseconds, 1 µs to 60 s, three significant digits. */
export function histogram(): Histogram {
  return build({
    lowestDiscernibleValue: 1,
    highestTrackableValue: 60_000_000,
    numberOfSignificantValueDigits: 3,
  });
}

export function record(into: Histogram, startMs: number): void {
  into.recordValue(Math.max(1, Math.round((performance.now() - startMs) * 1000)));
}

/**
 * Microseconds. Never more than the maximum: the library gives the upper end of a percentile's
 * bucket, which may lie above all that was recorded.
 */
export function percentileUs(of: Histogram, percentage: number): number {
  return Math.min(of.getValueAtPercentile(percentage), of.maxValue);
}

/** Until `isOver`; resolves when the last operation has ended. The first failure is thrown. */
export async function atFixedRate(
  operation: Operation,
  ratePerSecond: number,
  isOver: () => boolean,
  times: Histogram = histogram(),
): Promise<Histogram> {
  const begin = performance.now();
  const running = new Set<Promise<void>>();
  let failure: unknown;
  for (let issued = 0; !isOver() && failure === undefined; ) {
    const dueCount = ((performance.now() - begin) * ratePerSecond) / 1000;
    while (issued < dueCount && running.size < IN_FLIGHT_MAX) {
      const dueMs = begin + (issued++ * 1000) / ratePerSecond;
      const one: Promise<void> = operation()
        .then(() => record(times, dueMs))
        .catch((error: unknown) => {
          failure ??= error;
        })
        .finally(() => running.delete(one));
      running.add(one);
    }
    // Also gives replies their turn.
    await (running.size < IN_FLIGHT_MAX ? delay(1) : Promise.race(running));
  }
  await Promise.all(running);
  if (failure !== undefined) throw failure;
  return times;
}

export function isPast(durationMs: number): () => boolean {
  const end = performance.now() + durationMs;
  return () => performance.now() >= end;
}

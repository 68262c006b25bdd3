/**
 * Work with a fixed number of pieces in flight: over a range of indexes until it is used up, or
 * over and over until a time has passed. The first error ends it and is thrown.
 */

/** Calls `work(from, to)` for [0, count) in pieces of `batch`, `inFlight` at a time. */
export async function forEachBatch(
  count: number,
  batch: number,
  inFlight: number,
  work: (from: number, to: number) => Promise<void>,
): Promise<void> {
  let next = 0;
  let failed = false;
  const loop = async (): Promise<void> => {
    while (next < count && !failed) {
      const from = next;
      next = Math.min(count, from + batch);
      try {
        await work(from, next);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: inFlight }, loop));
}

export interface Rate {
  operations: number;
  ms: number;
  perSecond: number;
}

/** `operation(sequence)` resolves with how many operations it stood for. */
export async function repeatFor(
  durationMs: number,
  inFlight: number,
  operation: (sequence: number) => Promise<number>,
): Promise<Rate> {
  const start = performance.now();
  const end = start + durationMs;
  let sequence = 0;
  let operations = 0;
  const loop = async (): Promise<void> => {
    while (performance.now() < end) {
      // Not `operations += await …`: that reads the sum before it waits, and loses the others'.
      const count = await operation(sequence++);
      operations += count;
    }
  };
  await Promise.all(Array.from({ length: inFlight }, loop));
  const ms = performance.now() - start;
  return { operations, ms, perSecond: (operations * 1000) / ms };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2;
}

/** The smallest value that so many percent of them do not exceed; NaN of none. */
export function percentile(values: readonly number[], wanted: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const at = Math.ceil((wanted / 100) * sorted.length) - 1;
  return sorted[Math.max(0, at)] ?? Number.NaN;
}

/**
 * What clients notice of a crash: for keys spread over all tablets, how long after the crash the
 * first read of each is answered. A read waits inside the SDK, as an application's would.
 */
import { performance } from 'node:perf_hooks';
import type { Table } from '../src/client/index.js';
import { RekindleError } from '../src/rpc/errors.js';
import { type Dataset, randomStream } from './dataset.js';

const KEYS = 256;

export interface Unavailability {
  /** Of the key that was served first, in the middle, last. */
  minMs: number;
  p50Ms: number;
  maxMs: number;
}

/** Begins to read at once; resolves when the last key was answered. */
export async function probeKeys(
  table: Table,
  dataset: Dataset,
  seed: number,
  timeoutMs: number,
): Promise<Unavailability> {
  const start = performance.now();
  const next = randomStream(seed);
  const waits = await Promise.all(
    Array.from({ length: KEYS }, async () => {
      const index = next() % dataset.count;
      const value = await table.get(dataset.key(index), { timeoutMs });
      const waitedMs = performance.now() - start;
      if (!dataset.matches(index, value)) {
        throw new RekindleError('INTERNAL', `${dataset.key(index)} is wrong after the recovery`);
      }
      return waitedMs;
    }),
  );
  waits.sort((a, b) => a - b);
  const at = (share: number): number => waits[Math.floor((waits.length - 1) * share)] as number;
  return { minMs: at(0), p50Ms: at(0.5), maxMs: at(1) };
}

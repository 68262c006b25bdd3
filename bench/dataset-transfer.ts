/**
 * Writes a dataset in batches and compares it with what a store gives back. Works on a table of
 * the SDK and on the stores of the benchmarks alike.
 */
import { startProgress } from '../src/ops/progress.js';
import { forEachBatch } from './concurrency.js';
import type { Dataset } from './dataset.js';

export interface BatchStore {
  putMany(entries: [string, Buffer][]): Promise<unknown>;
  getMany(keys: string[]): Promise<(Uint8Array | undefined)[]>;
}

/** At most 16 batches of 256 KB are in flight. */
const IN_FLIGHT = 16;

function batchOf(dataset: Dataset): number {
  return Math.max(1, Math.min(256, Math.floor(2 ** 18 / dataset.valueBytes)));
}

export async function writeDataset(
  store: Pick<BatchStore, 'putMany'>,
  dataset: Dataset,
): Promise<void> {
  const progress = startProgress('write', dataset.count, 'objects');
  await forEachBatch(dataset.count, batchOf(dataset), IN_FLIGHT, async (from, to) => {
    const entries: [string, Buffer][] = [];
    for (let i = from; i < to; i++) entries.push([dataset.key(i), dataset.value(i)]);
    await store.putMany(entries);
    progress.advance(to - from);
  });
  progress.stop();
}

/** How many objects are absent or differ in any byte. */
export async function countWrong(store: BatchStore, dataset: Dataset): Promise<number> {
  const progress = startProgress('read', dataset.count, 'objects');
  let wrong = 0;
  await forEachBatch(dataset.count, batchOf(dataset), IN_FLIGHT, async (from, to) => {
    const keys = Array.from({ length: to - from }, (_, i) => dataset.key(from + i));
    const values = await store.getMany(keys);
    for (const [i, value] of values.entries()) if (!dataset.matches(from + i, value)) wrong++;
    progress.advance(to - from);
  });
  progress.stop();
  return wrong;
}

/**
 * `rekindle bench latency`: HDR histograms of gets and puts, one at a time and at a fixed rate
 * (fixed-rate.ts).
 */
import type { Histogram } from 'hdr-histogram-js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import type { Durability } from '../src/rpc/messages.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { atFixedRate, histogram, isPast, type Operation, record } from './fixed-rate.js';
import { RekindleStore } from './object-store.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine } from './report.js';

export interface LatencyBenchOptions extends BenchOptions {
  servers: number;
  durability: Durability;
  memoryBytes: number;
  /** Operations a second of the fixed-rate runs. */
  rate: number;
}

const percentiles = [50, 90, 99, 99.9] as const;

async function sequential(operation: Operation, durationMs: number): Promise<Histogram> {
  const times = histogram();
  const end = performance.now() + durationMs;
  for (let start = performance.now(); start < end; start = performance.now()) {
    await operation();
    record(times, start);
  }
  return times;
}

export async function runLatencyBench(options: LatencyBenchOptions): Promise<BenchResult> {
  const { servers, durability, memoryBytes, rate, quick } = options;
  const dataset = new Dataset('object', quick ? 20_000 : 200_000, 100);
  const durationMs = quick ? 5_000 : 30_000;
  const store = await RekindleStore.start({ servers, replicas: 3, durability, memoryBytes });
  try {
    await writeDataset(store, dataset);
    const random = randomStream(1);
    const get = () => store.get(dataset.key(random() % dataset.count));
    const put = () => {
      const index = random() % dataset.count;
      return store.put(dataset.key(index), dataset.value(index));
    };
    await sequential(get, 500);
    await sequential(put, 500);
    const progress = startProgress('measure', 4, 'runs');
    const done = (name: string, times: Histogram): [string, Histogram] => {
      progress.advance(1);
      return [name, times];
    };
    const runs = [
      done('get, one at a time', await sequential(get, durationMs)),
      done('put, one at a time', await sequential(put, durationMs)),
      done(`get, ${formatCount(rate)}/s`, await atFixedRate(get, rate, isPast(durationMs))),
      done(`put, ${formatCount(rate)}/s`, await atFixedRate(put, rate, isPast(durationMs))),
    ];
    progress.stop();
    return result(options, runs);
  } finally {
    await store.close();
  }
}

function result(options: LatencyBenchOptions, runs: readonly [string, Histogram][]): BenchResult {
  const { servers, durability, memoryBytes, rate, quick } = options;
  const rows = runs.map(([name, times]) => [
    name,
    times.totalCount,
    ...percentiles.map((each) => formatCount(times.getValueAtPercentile(each))),
    formatCount(times.maxValue),
  ]);
  const metrics: Metric[] = runs.flatMap(([name, times]) =>
    percentiles.map((each) => ({
      name: `${name} p${each}`,
      unit: 'µs',
      value: times.getValueAtPercentile(each),
      higherIsBetter: false,
    })),
  );
  const text = [
    `bench latency: µs, objects of 100 B, ${servers} servers and the client on one machine, ` +
      `R = 3, ${durability}`,
    machineLine(),
    '',
    textTable(['work', 'operations', ...percentiles.map((each) => `p${each}`), 'max'], rows),
    'At a fixed rate, times count from when an operation was due.',
  ].join('\n');
  const parameters = { servers, durability, memoryBytes, rate, quick };
  return { name: 'latency', parameters, metrics, text, passed: true };
}

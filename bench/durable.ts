/**
 * `rekindle bench durable`: operations a second of 100-byte objects with three replicas, one
 * process as the client: single gets and puts at 1, 64 and 256 in flight, and batches of 100 with
 * 16 in flight. With a peer, every line is measured on all stores in turn, several rounds, median.
 *
 * Rekindle runs in both modes of durability; all processes share all cores. All stores are up all
 * the time; only one of them has work. Without replicas: throughput.ts.
 */
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { median, repeatFor } from './concurrency.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { type ObjectStore, RekindleStore } from './object-store.js';
import { RedisStore } from './redis-peer.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine } from './report.js';

export interface DurableBenchOptions extends BenchOptions {
  peer: 'redis' | undefined;
  servers: number;
  memoryBytes: number;
}

interface Workload {
  name: string;
  inFlight: number;
  /** Resolves with the operations it stood for. */
  run(store: ObjectStore, dataset: Dataset, random: () => number): Promise<number>;
}

const BATCH = 100;

async function getOne(store: ObjectStore, dataset: Dataset, random: () => number): Promise<number> {
  await store.get(dataset.key(random() % dataset.count));
  return 1;
}

async function putOne(store: ObjectStore, dataset: Dataset, random: () => number): Promise<number> {
  const index = random() % dataset.count;
  await store.put(dataset.key(index), dataset.value(index));
  return 1;
}

async function getBatch(
  store: ObjectStore,
  dataset: Dataset,
  random: () => number,
): Promise<number> {
  await store.getMany(Array.from({ length: BATCH }, () => dataset.key(random() % dataset.count)));
  return BATCH;
}

async function putBatch(
  store: ObjectStore,
  dataset: Dataset,
  random: () => number,
): Promise<number> {
  const entries = Array.from({ length: BATCH }, (): [string, Buffer] => {
    const index = random() % dataset.count;
    return [dataset.key(index), dataset.value(index)];
  });
  await store.putMany(entries);
  return BATCH;
}

const workloads: readonly Workload[] = [
  ...[1, 64, 256].map((inFlight) => ({ name: `get ×${inFlight}`, inFlight, run: getOne })),
  ...[1, 64, 256].map((inFlight) => ({ name: `put ×${inFlight}`, inFlight, run: putOne })),
  { name: `getMany ${BATCH} ×16`, inFlight: 16, run: getBatch },
  { name: `putMany ${BATCH} ×16`, inFlight: 16, run: putBatch },
];

export async function runDurableBench(options: DurableBenchOptions): Promise<BenchResult> {
  const { quick } = options;
  const dataset = new Dataset('object', quick ? 20_000 : 200_000, 100);
  const plan = { rounds: quick ? 1 : 3, roundMs: quick ? 1_000 : 4_000 };
  const stores: ObjectStore[] = [];
  try {
    for (const start of starters(options)) stores.push(await start());
    for (const store of stores) await writeDataset(store, dataset);
    const rates = await measure(stores, dataset, plan);
    return result(options, stores, rates, { objects: dataset.count, ...plan });
  } finally {
    for (const store of stores) await store.close();
  }
}

function starters(options: DurableBenchOptions): (() => Promise<ObjectStore>)[] {
  const { servers, memoryBytes } = options;
  const rekindle = (durability: 'fsync' | 'replicated') => () =>
    RekindleStore.start({ servers, replicas: 3, memoryBytes, durability });
  const peers = [() => RedisStore.start('always'), () => RedisStore.start('none')];
  return [...(options.peer === 'redis' ? peers : []), rekindle('fsync'), rekindle('replicated')];
}

/** Operations a second by workload, then by store. */
async function measure(
  stores: readonly ObjectStore[],
  dataset: Dataset,
  { rounds, roundMs }: { rounds: number; roundMs: number },
): Promise<number[][]> {
  const progress = startProgress('measure', workloads.length * rounds * stores.length, 'runs');
  const rates: number[][] = [];
  for (const workload of workloads) {
    const byStore: number[][] = stores.map(() => []);
    for (let round = 0; round < rounds; round++) {
      for (const [index, store] of stores.entries()) {
        const random = randomStream(round + 1);
        const operation = () => workload.run(store, dataset, random);
        await repeatFor(roundMs / 4, workload.inFlight, operation); // warms caches and the JIT
        const rate = await repeatFor(roundMs, workload.inFlight, operation);
        byStore[index]?.push(rate.perSecond);
        progress.advance(1);
      }
    }
    rates.push(byStore.map(median));
  }
  progress.stop();
  return rates;
}

function result(
  options: DurableBenchOptions,
  stores: readonly ObjectStore[],
  rates: readonly (readonly number[])[],
  plan: { objects: number; rounds: number; roundMs: number },
): BenchResult {
  const ratio = (rate: number, base: number | undefined): string =>
    base === undefined || base === 0 ? '–' : (rate / base).toFixed(2);
  const withPeer = options.peer !== undefined;
  // Like with like: synced against synced, in memory against in memory.
  const ratioTitles = withPeer ? ['fsync : always', 'replicated : none'] : [];
  const rows = workloads.map((workload, row) => {
    const values = rates[row] ?? [];
    const cells = [workload.name, ...values.map((value) => formatCount(Math.round(value)))];
    const [always, none, fsync, replicated] = values;
    const ratios = withPeer ? [ratio(fsync ?? 0, always), ratio(replicated ?? 0, none)] : [];
    return [...cells, ...ratios];
  });
  const metrics: Metric[] = workloads.flatMap((workload, row) =>
    stores.map((store, column) => ({
      name: `${store.name}: ${workload.name}`,
      unit: 'operations/s',
      value: rates[row]?.[column] ?? 0,
      higherIsBetter: true,
    })),
  );
  const { servers, memoryBytes, quick } = options;
  const text = [
    `bench durable: operations a second, ${formatCount(plan.objects)} objects of 100 B, ` +
      `${servers} servers and the client on one machine, median of ${plan.rounds}`,
    machineLine(),
    '',
    textTable(['work', ...stores.map(({ name }) => name), ...ratioTitles], rows),
  ].join('\n');
  const parameters = { servers, memoryBytes, quick, peer: options.peer ?? 'none', ...plan };
  return { name: 'durable', parameters, metrics, text, passed: true };
}

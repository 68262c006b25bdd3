/**
 * `rekindle bench throughput`: one server without replicas on one core, the client on the other,
 * 100-byte objects. Through the SDK beside ioredis on Redis without persistence, and with the
 * native load generator, which shows what the server itself can do.
 *
 * Rule: what is compared is measured in turn, round by round; a ratio is the median of the rounds'
 * ratios. With three durable replicas: durable.ts.
 */
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { median, repeatFor } from './concurrency.js';
import { coreBinary } from './core-binary.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { type ObjectStore, RekindleStore } from './object-store.js';
import { Pinning } from './pinning.js';
import { RedisStore } from './redis-peer.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';
import { runWireLoad, type WireLoad } from './wire-load.js';

export interface ThroughputBenchOptions extends BenchOptions {
  peer: 'redis' | undefined;
  memoryBytes: number;
}

/** One line of the table. */
interface Work {
  name: string;
  unit: 'operations/s' | 'µs' | 'GB/s';
  /** Metric of the ratio to the peer, and the least (of latencies: the most) that is wanted. */
  ratio?: { metric: string; target: number };
  /** Metric of the figure itself, for those that need no peer. */
  own?: { metric: string; target: number };
  measure(side: Side, round: Round): Promise<number>;
}

interface Side {
  store: ObjectStore;
  wire: Pick<WireLoad, 'dialect' | 'address' | 'tableId'>;
}

interface Round {
  dataset: Dataset;
  ms: number;
  random: () => number;
  binary: string;
  pinning: Pinning;
}

const VALUE_BYTES = 100;
const BATCH = 100;
const MIB = 2 ** 20;
/** Fewer than the memory has room for: they are overwritten in turn. */
const LARGE_VALUES = 32;
const LARGE_IN_FLIGHT = 8;

type Operation = (store: ObjectStore, round: Round) => Promise<number>;

function keyOf({ dataset, random }: Round): string {
  return dataset.key(random() % dataset.count);
}

async function getOne(store: ObjectStore, round: Round): Promise<number> {
  await store.get(keyOf(round));
  return 1;
}

/** Made once: the client's time is measured, not that of making values. */
const value = Buffer.alloc(VALUE_BYTES, 'v');
const largeValue = Buffer.alloc(MIB, 'v');

async function putOne(store: ObjectStore, round: Round): Promise<number> {
  await store.put(keyOf(round), value);
  return 1;
}

async function getBatch(store: ObjectStore, round: Round): Promise<number> {
  await store.getMany(Array.from({ length: BATCH }, () => keyOf(round)));
  return BATCH;
}

async function putBatch(store: ObjectStore, round: Round): Promise<number> {
  await store.putMany(Array.from({ length: BATCH }, () => [keyOf(round), value]));
  return BATCH;
}

function rateOf(inFlight: number, operation: Operation): Work['measure'] {
  return async ({ store }, round) => {
    const run = () => operation(store, round);
    await repeatFor(round.ms / 4, inFlight, run); // warms caches and the JIT
    return (await repeatFor(round.ms, inFlight, run)).perSecond;
  };
}

/** A percentile of gets one at a time, in µs. */
function latencyOf(percentile: number): Work['measure'] {
  return async ({ store }, round) => {
    await repeatFor(round.ms / 4, 1, () => getOne(store, round));
    const times: number[] = [];
    await repeatFor(round.ms, 1, async () => {
      const start = performance.now();
      await getOne(store, round);
      times.push((performance.now() - start) * 1000);
      return 1;
    });
    times.sort((a, b) => a - b);
    return times[Math.floor((times.length - 1) * percentile)] ?? Number.NaN;
  };
}

function largeRate(operation: (store: ObjectStore, key: string) => Promise<unknown>) {
  return async ({ store }: Side, { ms }: Round): Promise<number> => {
    const keys = Array.from({ length: LARGE_VALUES }, (_, i) => `large:${i}`);
    for (const key of keys) await store.put(key, largeValue);
    const { perSecond } = await repeatFor(ms, LARGE_IN_FLIGHT, async (sequence) => {
      await operation(store, keys[sequence % LARGE_VALUES] ?? '');
      return MIB;
    });
    return perSecond / 1e9;
  };
}

function wireRate(load: Pick<WireLoad, 'work' | 'connections' | 'operations'>): Work['measure'] {
  return async ({ wire }, { dataset, ms, binary, pinning }) => {
    const { count: objects, valueBytes } = dataset;
    const all = { ...load, ...wire, objects, valueBytes, ms };
    return (await runWireLoad(binary, all, pinning.client)).perSecond;
  };
}

const rate = 'operations/s';

const works: readonly Work[] = [
  {
    ...{ name: 'get, 256 in flight', unit: rate, measure: rateOf(256, getOne) },
    ratio: { metric: 'get-256-vs-ioredis', target: 3 },
  },
  {
    ...{ name: 'put, 256 in flight', unit: rate, measure: rateOf(256, putOne) },
    ratio: { metric: 'put-256-vs-ioredis', target: 2.5 },
  },
  {
    ...{ name: 'getMany 100, 16 in flight', unit: rate, measure: rateOf(16, getBatch) },
    ratio: { metric: 'get-many-100-vs-ioredis', target: 2 },
  },
  {
    ...{ name: 'putMany 100, 16 in flight', unit: rate, measure: rateOf(16, putBatch) },
    ratio: { metric: 'put-many-100-vs-ioredis', target: 2 },
  },
  {
    ...{ name: 'get, one at a time, p50', unit: 'µs', measure: latencyOf(0.5) },
    ratio: { metric: 'get-1-p50-vs-ioredis', target: 1 },
  },
  {
    ...{ name: 'get, one at a time, p99', unit: 'µs', measure: latencyOf(0.99) },
    ratio: { metric: 'get-1-p99-vs-ioredis', target: 1 },
  },
  {
    ...{ name: 'native reads, 64 a message', unit: rate },
    measure: wireRate({ work: 'read', connections: 8, operations: 64 }),
    own: { metric: 'server-reads-64', target: 3e6 },
  },
  {
    ...{ name: 'native writes, 64 a message', unit: rate },
    measure: wireRate({ work: 'write', connections: 8, operations: 64 }),
    own: { metric: 'server-writes-64', target: 2.5e6 },
  },
  {
    ...{ name: 'native reads, 50 connections', unit: rate },
    measure: wireRate({ work: 'read', connections: 50, operations: 1 }),
    ratio: { metric: 'server-c50-vs-redis', target: 1.5 },
  },
  {
    ...{ name: 'native writes, 50 connections', unit: rate },
    measure: wireRate({ work: 'write', connections: 50, operations: 1 }),
    ratio: { metric: 'server-c50-writes-vs-redis', target: 1.5 },
  },
  {
    ...{ name: 'put of 1 MiB', unit: 'GB/s' },
    measure: largeRate((store, key) => store.put(key, largeValue)),
    own: { metric: 'value-1mib-put-gbps', target: 1 },
  },
  {
    ...{ name: 'get of 1 MiB', unit: 'GB/s' },
    measure: largeRate((store, key) => store.get(key)),
    own: { metric: 'value-1mib-get-gbps', target: 1 },
  },
];

export async function runThroughputBench(options: ThroughputBenchOptions): Promise<BenchResult> {
  const { quick } = options;
  const pinning = new Pinning();
  const binary = coreBinary();
  const dataset = new Dataset('object', quick ? 200_000 : 1_000_000, VALUE_BYTES);
  const plan = { rounds: quick ? 3 : 5, ms: quick ? 400 : 3_000 };
  const sides: Side[] = [];
  try {
    sides.push(await rekindleSide(options, pinning));
    if (options.peer === 'redis') sides.push(await redisSide(pinning));
    pinning.pinThisProcess();
    for (const { store } of sides) await writeDataset(store, dataset);
    const progress = startProgress('measure', works.length * plan.rounds, 'runs');
    const figures: number[][][] = [];
    for (const work of works) {
      const bySide: number[][] = sides.map(() => []);
      for (let number = 0; number < plan.rounds; number++) {
        for (const [index, side] of sides.entries()) {
          const random = randomStream(number + 1);
          const round = { dataset, ms: plan.ms, random, binary, pinning };
          bySide[index]?.push(await work.measure(side, round));
        }
        progress.advance(1);
      }
      figures.push(bySide);
    }
    progress.stop();
    return result(options, figures, { objects: dataset.count, pinned: pinning.possible, ...plan });
  } finally {
    for (const { store } of sides) await store.close();
  }
}

async function rekindleSide(options: ThroughputBenchOptions, pinning: Pinning): Promise<Side> {
  const { memoryBytes } = options;
  const settings = { servers: 1, replicas: 0, durability: 'replicated', memoryBytes } as const;
  const store = await RekindleStore.start({ ...settings, command: pinning.server });
  return { store, wire: { dialect: 'rekindle', ...(await store.direct()) } };
}

async function redisSide(pinning: Pinning): Promise<Side> {
  const store = await RedisStore.start(pinning.server);
  return { store, wire: { dialect: 'resp', address: store.address, tableId: 0 } };
}

/** One work as a row for people and as metrics. */
function judge(work: Work, bySide: readonly number[][]): { row: string[]; metrics: Metric[] } {
  const [ours = [], peers = []] = bySide;
  const shown = (values: readonly number[]): string =>
    values.length === 0 ? '–' : numberText(median(values));
  const row = [work.name, work.unit, shown(ours), shown(peers)];
  const metrics: Metric[] = [];
  const add = (aim: { metric: string; target: number }, figure: number, unit: string): void => {
    const higherIsBetter = work.unit !== 'µs';
    const met = higherIsBetter ? figure >= aim.target : figure <= aim.target;
    metrics.push(metric(aim.metric, unit, figure, higherIsBetter));
    row.push(`${numberText(figure)}`, `${higherIsBetter ? '≥' : '≤'} ${numberText(aim.target)}`);
    row.push(met ? 'yes' : 'NO');
  };
  if (work.own !== undefined) add(work.own, median(ours), work.unit);
  if (work.ratio !== undefined && peers.length > 0) {
    const ratios = ours.map((each, index) => each / (peers[index] ?? Number.NaN));
    add(work.ratio, median(ratios), 'ratio');
  }
  return { row, metrics };
}

function numberText(figure: number): string {
  return figure >= 100 ? formatCount(Math.round(figure)) : figure.toFixed(2);
}

function result(
  options: ThroughputBenchOptions,
  figures: readonly number[][][],
  plan: { objects: number; rounds: number; ms: number; pinned: boolean },
): BenchResult {
  const judged = works.map((work, index) => judge(work, figures[index] ?? []));
  const { memoryBytes, quick, peer = 'none' } = options;
  const cores = plan.pinned ? 'server on one core, client on another' : 'not pinned to cores';
  const text = [
    `bench throughput: ${formatCount(plan.objects)} objects of ${VALUE_BYTES} B, no replicas, ` +
      `${cores}, median of ${plan.rounds} rounds`,
    machineLine(),
    '',
    textTable(
      ['work', 'unit', 'rekindle', peer === 'none' ? '–' : peer, 'figure', 'wanted', 'met'],
      judged.map(({ row }) => row),
    ),
  ].join('\n');
  const parameters = { memoryBytes, quick, peer, ...plan };
  const metrics = judged.flatMap(({ metrics: each }) => each);
  return { name: 'throughput', parameters, metrics, text, passed: true };
}

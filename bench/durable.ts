/**
 * `rekindle bench durable`: writes of 100-byte objects that are on three disks when they are
 * answered, beside Redis with two replicas and etcd with three members; and what the flush costs
 * against Rekindle's mode without it. One process is the client; all processes share all cores.
 *
 * Rule: what is compared is measured in turn, round by round; a ratio is the median of the rounds'
 * ratios, to the better of a peer's clients in that round. Beside each figure: processor time that
 * all server processes of that store spent per operation. Without replicas: throughput.ts.
 */
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { median, percentile, repeatFor } from './concurrency.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { DiskSync } from './disk-sync.js';
import { type DurablePeer, type Side, type SideName, Sides } from './durable-sides.js';
import type { Writer } from './object-store.js';
import { processorMsOf } from './process-usage.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';

export interface DurableBenchOptions extends BenchOptions {
  peers: readonly DurablePeer[];
  servers: number;
  memoryBytes: number;
}

interface Outcome {
  /** Operations a second, or microseconds. */
  value: number;
  operations: number;
}

interface Work {
  name: string;
  unit: 'operations/s' | 'µs';
  sides: readonly SideName[];
  /** Left out of quick runs: no ratio is made of it. */
  fullOnly?: true;
  run(writer: Writer, dataset: Dataset, random: () => number, ms: number): Promise<Outcome>;
}

/** A ratio by name: a figure of `of` ÷ the better one of `by`. */
interface Aim {
  metric: string;
  work: string;
  of: SideName;
  by: readonly SideName[];
  target: number;
}

interface Round {
  value: number;
  /** Of all processes of the store, and of this one. */
  serverUs: number;
  clientUs: number;
}

/** By work, then by side: a figure for each round. */
type Figures = Map<Work, Map<SideName, Round[]>>;

const VALUE_BYTES = 100;
const BATCH = 100;
const SYNCS_A_ROUND = 40;
/** Few: the code of a server runs once a message. */
const WARM_UP_IN_FLIGHT = 8;
/** Made once: the stores' time is measured, not that of making values. */
const value = Buffer.alloc(VALUE_BYTES, 'v');
const redis = ['redis-batched', 'redis-each'] as const;

type Operation = (writer: Writer, dataset: Dataset, random: () => number) => Promise<number>;

const putOne: Operation = async (writer, dataset, random) => {
  await writer.put(dataset.key(random() % dataset.count), value);
  return 1;
};

const putBatch: Operation = async (writer, dataset, random) => {
  const entry = (): [string, Buffer] => [dataset.key(random() % dataset.count), value];
  await writer.putMany(Array.from({ length: BATCH }, entry));
  return BATCH;
};

function rateOf(inFlight: number, operation: Operation): Work['run'] {
  return async (writer, dataset, random, ms) => {
    const run = () => operation(writer, dataset, random);
    const { perSecond, operations } = await repeatFor(ms, inFlight, run);
    return { value: perSecond, operations };
  };
}

const medianTime: Work['run'] = async (writer, dataset, random, ms) => {
  const times: number[] = [];
  await repeatFor(ms, 1, async () => {
    const start = performance.now();
    await putOne(writer, dataset, random);
    times.push((performance.now() - start) * 1_000);
    return 1;
  });
  return { value: percentile(times, 50), operations: times.length };
};

const rate = 'operations/s';
/** Those that depend most on compiled code, few messages at a time, come last. */
const works: readonly Work[] = [
  {
    ...{ name: 'put, 256 in flight', unit: rate, run: rateOf(256, putOne) },
    sides: ['fsync', 'replicated'],
  },
  {
    ...{ name: 'put, 1024 in flight', unit: rate, run: rateOf(1_024, putOne) },
    sides: ['fsync', 'spread', ...redis],
  },
  {
    ...{ name: 'put, one at a time, p50', unit: 'µs', run: medianTime },
    sides: ['fsync', 'replicated', 'redis-each', 'etcd'],
  },
  {
    ...{ name: 'put, 64 in flight', unit: rate, run: rateOf(64, putOne) },
    sides: ['fsync', 'spread', ...redis],
  },
  {
    ...{ name: `putMany ${BATCH}, 16 in flight`, unit: rate, run: rateOf(16, putBatch) },
    ...{ sides: ['fsync', 'spread', 'replicated', 'redis-each', 'etcd'], fullOnly: true },
  },
];

function vsRedis(inFlight: number, of: SideName, name: string): Aim {
  return { metric: name, work: `put, ${inFlight} in flight`, of, by: redis, target: 2 };
}

const aims: readonly Aim[] = [
  vsRedis(64, 'fsync', 'durable-64-vs-redis'),
  vsRedis(1_024, 'fsync', 'durable-1024-vs-redis'),
  vsRedis(64, 'spread', 'durable-64-spread-vs-redis'),
  vsRedis(1_024, 'spread', 'durable-1024-spread-vs-redis'),
  {
    ...{ metric: 'fsync-vs-replicated', work: 'put, 256 in flight' },
    ...{ of: 'fsync', by: ['replicated'], target: 0.8 },
  },
  {
    ...{ metric: 'durable-put-1-p50-vs-etcd', work: 'put, one at a time, p50' },
    ...{ of: 'fsync', by: ['etcd'], target: 0.5 },
  },
];

export async function runDurableBench(options: DurableBenchOptions): Promise<BenchResult> {
  const { quick } = options;
  const dataset = new Dataset('object', quick ? 20_000 : 200_000, VALUE_BYTES);
  const plan = { rounds: quick ? 3 : 5, ms: quick ? 400 : 3_000 };
  const disk = new DiskSync();
  const sides = await Sides.start(options);
  try {
    for (const side of sides.all.values()) {
      await side.resume();
      await writeDataset(side.writer, dataset);
      // As in servers that have run for a while: Rekindle's code is compiled as it is used.
      await warmUp(side.writer, dataset, quick ? 2_000 : 8_000);
      side.pause();
    }
    const chosen = works.filter(({ fullOnly }) => !quick || fullOnly !== true);
    const figures = await measure(chosen, sides.all, dataset, plan, disk);
    return result(options, sides.all, figures, disk, { objects: dataset.count, ...plan });
  } finally {
    disk.close();
    await sides.close();
  }
}

async function warmUp(writer: Writer, dataset: Dataset, ms: number): Promise<void> {
  const random = randomStream(0);
  await repeatFor(ms, WARM_UP_IN_FLIGHT, () => putOne(writer, dataset, random));
}

async function measure(
  chosen: readonly Work[],
  sides: ReadonlyMap<SideName, Side>,
  dataset: Dataset,
  { rounds, ms }: { rounds: number; ms: number },
  disk: DiskSync,
): Promise<Figures> {
  const progress = startProgress('measure', chosen.length * rounds, 'rounds');
  const figures: Figures = new Map();
  for (const work of chosen) {
    const bySide = new Map<SideName, Round[]>(work.sides.map((name) => [name, []]));
    figures.set(work, bySide);
    for (let round = 0; round < rounds; round++) {
      disk.sample(SYNCS_A_ROUND);
      for (const name of work.sides) {
        const side = sides.get(name);
        if (side === undefined) continue;
        const random = randomStream(round + 1);
        await side.resume();
        await work.run(side.writer, dataset, random, ms / 2); // warms caches
        bySide.get(name)?.push(await measureOnce(work, side, dataset, random, ms));
        side.pause();
      }
      progress.advance(1);
    }
  }
  progress.stop();
  return figures;
}

async function measureOnce(
  work: Work,
  side: Side,
  dataset: Dataset,
  random: () => number,
  ms: number,
): Promise<Round> {
  const serverBeforeMs = processorMsOf(side.pids);
  const clientBefore = process.cpuUsage();
  const { value: figure, operations } = await work.run(side.writer, dataset, random, ms);
  const serverMs = processorMsOf(side.pids) - serverBeforeMs;
  const client = process.cpuUsage(clientBefore);
  return {
    value: figure,
    serverUs: (serverMs * 1_000) / operations,
    clientUs: (client.user + client.system) / operations,
  };
}

/** NaN without the peer. */
function ratioOf(aim: Aim, figures: Figures): number {
  const [work, bySide] = [...figures].find(([{ name }]) => name === aim.work) ?? [];
  const better = work?.unit === 'µs' ? Math.min : Math.max;
  const ours = bySide?.get(aim.of) ?? [];
  const ratios = ours.flatMap(({ value: figure }, round) => {
    const peers = aim.by.flatMap((name) => bySide?.get(name)?.[round]?.value ?? []);
    return peers.length === 0 ? [] : [figure / better(...peers)];
  });
  return median(ratios);
}

function medianOf(rounds: readonly Round[], field: keyof Round): number {
  return median(rounds.map((each) => each[field]));
}

function result(
  options: DurableBenchOptions,
  sides: ReadonlyMap<SideName, Side>,
  figures: Figures,
  disk: DiskSync,
  plan: { objects: number; rounds: number; ms: number },
): BenchResult {
  const rows: string[][] = [];
  const metrics: Metric[] = [];
  for (const [work, bySide] of figures) {
    const higherIsBetter = work.unit !== 'µs';
    for (const [side, rounds] of bySide) {
      const name = sides.get(side)?.writer.name;
      if (name === undefined || rounds.length === 0) continue;
      const [figure, serverUs] = [medianOf(rounds, 'value'), medianOf(rounds, 'serverUs')];
      const clientUs = medianOf(rounds, 'clientUs');
      rows.push([work.name, name, work.unit, ...[figure, serverUs, clientUs].map(numberText)]);
      const id = `${work.name}: ${name}`;
      const at = { work: work.name, store: name };
      const cost = { work: `${work.name}, server processor time`, store: name };
      metrics.push({ ...metric(id, work.unit, figure, higherIsBetter), ...at });
      metrics.push({ ...metric(`${id}, server processor time`, 'µs', serverUs), ...cost });
    }
  }
  const judged = judge(figures);
  const { overwrittenUs, appendedUs } = disk.times;
  const [overwritten, appended] = [percentile(overwrittenUs, 50), percentile(appendedUs, 50)];
  metrics.push(...judged.metrics);
  metrics.push(metric('fdatasync-p50-us', 'µs', overwritten));
  metrics.push(metric('fdatasync-append-p50-us', 'µs', appended));
  const { servers, memoryBytes, quick, peers } = options;
  const text = [
    `bench durable: ${formatCount(plan.objects)} objects of ${VALUE_BYTES} B, three copies, ` +
      `Rekindle on ${servers} servers; all processes share all cores; median of ${plan.rounds}`,
    machineLine(),
    `fdatasync of 4 KB, p50: ${numberText(overwritten)} µs overwritten, ` +
      `${numberText(appended)} µs appended`,
    '',
    textTable(['work', 'store', 'unit', 'figure', 'servers, µs/op', 'client, µs/op'], rows),
    '',
    textTable(['figure', 'measured', 'wanted', 'met'], judged.rows),
  ].join('\n');
  const parameters = { servers, memoryBytes, quick, peers: peers.join(' '), ...plan };
  return { name: 'durable', parameters, metrics, text, passed: true };
}

function judge(figures: Figures): { rows: string[][]; metrics: Metric[] } {
  const rows: string[][] = [];
  const metrics: Metric[] = [];
  for (const aim of aims) {
    const ratio = ratioOf(aim, figures);
    if (Number.isNaN(ratio)) continue;
    const higherIsBetter = !aim.metric.includes('p50');
    const met = higherIsBetter ? ratio >= aim.target : ratio <= aim.target;
    const wanted = `${higherIsBetter ? '≥' : '≤'} ${aim.target}`;
    rows.push([aim.metric, numberText(ratio), wanted, met ? 'yes' : 'NO']);
    metrics.push(metric(aim.metric, 'ratio', ratio, higherIsBetter));
  }
  return { rows, metrics };
}

function numberText(figure: number): string {
  return figure >= 100 ? formatCount(Math.round(figure)) : figure.toFixed(2);
}

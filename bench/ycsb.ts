/**
 * `rekindle bench ycsb`: the workloads A, B, C, D and F of YCSB on objects of 1 KB, a fixed number
 * of operations in flight, beside peers on equal terms (store-sides.ts). All processes share all
 * cores.
 *
 * Rule: stores are measured in turn, round by round. Rates are medians of the rounds; a ratio is
 * the median of the rounds' ratios, to the better of the peer's clients in that round. Percentiles
 * are those of all rounds together. A read that does not find its object fails the run.
 */
import type { Histogram } from 'hdr-histogram-js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import type { Durability } from '../src/rpc/messages.js';
import { median, repeatFor } from './concurrency.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { histogram, percentileUs, record } from './fixed-rate.js';
import type { PeerName } from './peers.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';
import { type Side as AnySide, Sides } from './store-sides.js';
import {
  InsertedObjects,
  type Operation,
  OperationStream,
  Popularity,
  WORKLOADS,
  type Workload,
  type WorkloadName,
} from './ycsb-workloads.js';

export interface YcsbBenchOptions extends BenchOptions {
  peers: readonly PeerName[];
  workloads: readonly WorkloadName[];
  servers: number;
  replicas: 0 | 3;
  durability: Durability;
  memoryBytes: number;
  inFlight: number;
}

interface Plan {
  objects: number;
  rounds: number;
  ms: number;
  warmUpMs: number;
}

interface Side extends AnySide {
  readonly objects: InsertedObjects;
}

/** What one store did in one workload. */
interface Figures {
  side: Side;
  /** Operations a second of each round; a read-modify-write is one. */
  rates: number[];
  /** A read-modify-write adds to both. */
  reads: Histogram;
  writes: Histogram;
  /** Reads that did not find their object. */
  absent: number;
}

/** YCSB's ten fields of 100 B, as one value. */
const VALUE_BYTES = 1_000;
const SEED = 4711;
/** Few: the code of a server runs once a message. */
const WARM_UP_IN_FLIGHT = 8;
const percentiles = [50, 99, 99.9] as const;
/** Made once: the stores' time is measured, not that of making values. */
const value = Buffer.alloc(VALUE_BYTES, 'v');

export async function runYcsbBench(options: YcsbBenchOptions): Promise<BenchResult> {
  const { quick } = options;
  const plan: Plan = quick
    ? { objects: 20_000, rounds: 3, ms: 400, warmUpMs: 2_000 }
    : { objects: 100_000, rounds: 5, ms: 3_000, warmUpMs: 8_000 };
  const dataset = new Dataset('user', plan.objects, VALUE_BYTES);
  const popularity = new Popularity(plan.objects, SEED);
  const chosen = WORKLOADS.filter(({ name }) => options.workloads.includes(name));
  const stores = await Sides.start(options);
  const sides: Side[] = stores.all.map((side) => ({
    ...{ ...side, objects: new InsertedObjects(plan.objects) },
  }));
  try {
    for (const side of sides) await load(side, dataset, popularity, plan);
    const figures = new Map<Workload, Figures[]>();
    const progress = startProgress('measure', chosen.length * plan.rounds, 'rounds');
    for (const workload of chosen) {
      const all = sides.map(emptyFigures);
      for (let round = 0; round < plan.rounds; round++) {
        for (const each of all) {
          const { side } = each;
          const random = randomStream(round + 1);
          const stream = new OperationStream(workload, side.objects, popularity, random);
          await side.resume();
          await run(stream, dataset, emptyFigures(side), options.inFlight, plan.ms / 2);
          each.rates.push(await run(stream, dataset, each, options.inFlight, plan.ms));
          side.pause();
        }
        progress.advance(1);
      }
      figures.set(workload, all);
    }
    progress.stop();
    return result(options, figures, plan);
  } finally {
    await stores.close();
  }
}

/** The objects, and work as in a server that has run for a while. */
async function load(
  side: Side,
  dataset: Dataset,
  popularity: Popularity,
  { warmUpMs }: Plan,
): Promise<void> {
  const [workload] = WORKLOADS as [Workload];
  const stream = new OperationStream(workload, side.objects, popularity, randomStream(0));
  await side.resume();
  await writeDataset(side.store, dataset);
  await run(stream, dataset, emptyFigures(side), WARM_UP_IN_FLIGHT, warmUpMs);
  side.pause();
}

function emptyFigures(side: Side): Figures {
  return { side, rates: [], reads: histogram(), writes: histogram(), absent: 0 };
}

/** Resolves with operations a second. */
async function run(
  stream: OperationStream,
  dataset: Dataset,
  into: Figures,
  inFlight: number,
  ms: number,
): Promise<number> {
  const { perSecond } = await repeatFor(ms, inFlight, async () => {
    await perform(stream.next(), dataset, into);
    return 1;
  });
  return perSecond;
}

async function perform(
  { kind, index }: Operation,
  dataset: Dataset,
  figures: Figures,
): Promise<void> {
  const { store, objects } = figures.side;
  const key = dataset.key(index);
  if (kind === 'read' || kind === 'read-modify-write') {
    const start = performance.now();
    const found = await store.get(key);
    record(figures.reads, start);
    if (found?.length !== VALUE_BYTES) figures.absent += 1;
  }
  if (kind === 'read') return;
  const start = performance.now();
  await store.put(key, value);
  record(figures.writes, start);
  if (kind === 'insert') objects.acknowledge(index);
}

/** To the better peer in each round; NaN without one. */
export function ratioToBest(
  ours: readonly number[],
  peers: readonly (readonly number[])[],
): number {
  if (peers.length === 0) return Number.NaN;
  const best = (round: number): number =>
    Math.max(...peers.map((rates) => rates[round] ?? Number.NaN));
  return median(ours.map((rate, round) => rate / best(round)));
}

function result(
  options: YcsbBenchOptions,
  figures: ReadonlyMap<Workload, readonly Figures[]>,
  plan: Plan,
): BenchResult {
  const { peers, workloads, inFlight, replicas, servers, durability, memoryBytes, quick } = options;
  const all = [...figures.values()].flat();
  const absent = all.reduce((sum, each) => sum + each.absent, 0);
  const judged = [...figures].map(([workload, each]) => judge(workload, each));
  const rows = judged.flatMap(({ rows: each }) => each);
  rows.push(['E: scans', 'not measured: Rekindle has no scans over keys']);
  const copies = replicas === 0 ? 'one server, no replicas' : `${servers} servers, three copies`;
  const times = (what: string): string[] => percentiles.map((each) => `${what} p${each}`);
  const text = [
    `bench ycsb: ${formatCount(plan.objects)} objects of ${formatCount(VALUE_BYTES)} B, zipfian, ` +
      `${inFlight} in flight, ${copies}; all processes share all cores; ` +
      `median of ${plan.rounds} rounds, times in µs`,
    machineLine(),
    '',
    textTable(
      ['workload', 'store', 'operations/s', ...times('read'), ...times('write'), 'ratio'],
      rows,
    ),
    ...(absent === 0 ? [] : [`${absent} reads did not find their object`]),
  ].join('\n');
  const parameters = {
    ...{
      peer: peers.join(',') || 'none',
      workloads: workloads.join(''),
      inFlight,
      replicas,
      durability,
    },
    ...{ servers: replicas === 0 ? 1 : servers, memoryBytes, quick, ...plan },
  };
  const metrics = judged.flatMap(({ metrics: each }) => each);
  return { name: 'ycsb', parameters, metrics, text, passed: absent === 0 };
}

/** One workload as rows for people and as metrics; Rekindle comes first. */
function judge(
  workload: Workload,
  [ours, ...peers]: readonly Figures[],
): { rows: string[][]; metrics: Metric[] } {
  const prefix = `ycsb-${workload.name.toLowerCase()}`;
  const rows: string[][] = [];
  const metrics: Metric[] = [];
  for (const each of [...(ours ? [ours] : []), ...peers]) {
    const own = each === ours ? prefix : `${prefix}-${each.side.id}`;
    const rate = median(each.rates);
    const name = `${workload.name}: ${workload.what}`;
    const at = { work: name, store: each.side.store.name };
    metrics.push({ ...metric(`${own}-ops`, 'operations/s', rate, true), ...at });
    const cells = (['read', 'write'] as const).flatMap((kind) => {
      const times = kind === 'read' ? each.reads : each.writes;
      return percentiles.map((percentage) => {
        if (times.totalCount === 0) return '–';
        const time = percentileUs(times, percentage);
        const id = `${own}-${kind}-p${String(percentage).replace('.', '')}-us`;
        const work = `${workload.name}, ${kind} p${percentage}`;
        metrics.push({ ...metric(id, 'µs', time), work, store: at.store });
        return formatCount(time);
      });
    });
    rows.push([name, each.side.store.name, formatCount(Math.round(rate)), ...cells]);
  }
  if (ours === undefined || peers.length === 0) return { rows, metrics };
  const names = new Set(peers.flatMap(({ side }) => side.peer ?? []));
  const ratios = [...names].map((peer) => {
    const clients = peers.filter(({ side }) => side.peer === peer);
    const ratio = ratioToBest(
      ours.rates,
      clients.map(({ rates }) => rates),
    );
    metrics.push(metric(`${prefix}-vs-${peer}`, 'ratio', ratio, true));
    return names.size === 1 ? ratio.toFixed(2) : `${ratio.toFixed(2)} ${peer}`;
  });
  rows[0]?.push(ratios.join(', '));
  return { rows, metrics };
}

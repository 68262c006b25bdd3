/**
 * `rekindle bench latency`: HDR histograms of gets and puts, one at a time and at a fixed rate
 * (fixed-rate.ts), beside peers on equal terms (store-sides.ts). Without replicas servers have one
 * core, the client the other; with them all processes share all cores.
 *
 * Rule: stores are measured in turn, round by round. Percentiles are those of all rounds together;
 * a ratio is the median of the rounds' ratios.
 */
import type { Histogram } from 'hdr-histogram-js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import type { Durability } from '../src/rpc/messages.js';
import { median } from './concurrency.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import {
  atFixedRate,
  histogram,
  isPast,
  type Operation,
  percentileUs,
  record,
} from './fixed-rate.js';
import { clientOf, type PeerName } from './peers.js';
import { Pinning } from './pinning.js';
import {
  type BenchOptions,
  type BenchResult,
  type Distribution,
  type Metric,
  machineLine,
  metric,
} from './report.js';
import { type MeasuredStore, type Side, Sides } from './store-sides.js';

export interface LatencyBenchOptions extends BenchOptions {
  servers: number;
  replicas: 0 | 3;
  durability: Durability;
  memoryBytes: number;
  peers: readonly PeerName[];
  /** Operations a second of the fixed-rate runs. */
  rate: number;
}

interface Plan {
  objects: number;
  rounds: number;
  ms: number;
}

interface Work {
  /** Of ratios. */
  id: string;
  name: string;
  kind: 'get' | 'put';
  /** null: one at a time. */
  rate: number | null;
}

/** What one store did in one work. */
interface Figures {
  side: Side;
  rounds: Histogram[];
  all: Histogram;
}

const VALUE_BYTES = 100;
const percentiles = [50, 90, 99, 99.9] as const;
/** Whose ratios are metrics. */
const compared = [50, 99] as const;
/** As in a server that has run for a while, in the first round; part of a round before each. */
const WARM_UP_MS = 500;

async function sequential(operation: Operation, durationMs: number): Promise<Histogram> {
  const times = histogram();
  const end = performance.now() + durationMs;
  for (let start = performance.now(); start < end; start = performance.now()) {
    await operation();
    record(times, start);
  }
  return times;
}

function worksAt(rate: number): Work[] {
  return [
    { id: 'get-1', name: 'get, one at a time', kind: 'get', rate: null },
    { id: 'put-1', name: 'put, one at a time', kind: 'put', rate: null },
    { id: 'get-rate', name: `get, ${formatCount(rate)}/s`, kind: 'get', rate },
    { id: 'put-rate', name: `put, ${formatCount(rate)}/s`, kind: 'put', rate },
  ];
}

function operationOf(kind: Work['kind'], store: MeasuredStore, dataset: Dataset): Operation {
  const random = randomStream(1);
  if (kind === 'get') return () => store.get(dataset.key(random() % dataset.count));
  return () => {
    const index = random() % dataset.count;
    return store.put(dataset.key(index), dataset.value(index));
  };
}

export async function runLatencyBench(options: LatencyBenchOptions): Promise<BenchResult> {
  const { quick, rate, replicas } = options;
  const plan: Plan = quick
    ? { objects: 20_000, rounds: 3, ms: 500 }
    : { objects: 200_000, rounds: 5, ms: 6_000 };
  const dataset = new Dataset('object', plan.objects, VALUE_BYTES);
  const pinning = replicas === 0 ? new Pinning() : null;
  const sides = await Sides.start({ ...options, command: pinning?.server ?? [] });
  try {
    pinning?.pinThisProcess();
    // Of the two clients of Redis with replicas: alone, neither has a batch to gather.
    const measured = sides.all.filter(({ id }) => !id.endsWith('-batched'));
    for (const side of measured) await load(side, dataset);
    const figures = new Map<Work, Figures[]>();
    const works = worksAt(rate);
    const progress = startProgress('measure', works.length * plan.rounds, 'rounds');
    for (const work of works) {
      const all = measured.map((side) => ({ side, rounds: [], all: histogram() }) as Figures);
      for (let round = 0; round < plan.rounds; round++) {
        for (const each of all) await measure(each, work, dataset, plan.ms);
        progress.advance(1);
      }
      figures.set(work, all);
    }
    progress.stop();
    return result(options, figures, { ...plan, pinned: pinning?.possible ?? false });
  } finally {
    await sides.close();
  }
}

async function load(side: Side, dataset: Dataset): Promise<void> {
  await side.resume();
  await writeDataset(side.store, dataset);
  for (const kind of ['get', 'put'] as const) {
    await sequential(operationOf(kind, side.store, dataset), WARM_UP_MS);
  }
  side.pause();
}

/** One round on one side. */
async function measure(figures: Figures, work: Work, dataset: Dataset, ms: number): Promise<void> {
  const { side, rounds, all } = figures;
  const operation = operationOf(work.kind, side.store, dataset);
  await side.resume();
  await sequential(operation, ms / 10);
  const times =
    work.rate === null
      ? await sequential(operation, ms)
      : await atFixedRate(operation, work.rate, isPast(ms));
  side.pause();
  rounds.push(times);
  all.add(times);
}

function result(
  options: LatencyBenchOptions,
  figures: ReadonlyMap<Work, readonly Figures[]>,
  plan: Plan & { pinned: boolean },
): BenchResult {
  const { durability, memoryBytes, rate, quick, replicas, peers } = options;
  const servers = replicas === 0 ? 1 : options.servers;
  const judged = [...figures].map(([work, each]) => judge(work, each));
  const cores = plan.pinned ? 'server on one core, client on another' : 'sharing all cores';
  const copies =
    replicas === 0 ? 'one server, no replicas' : `${servers} servers, R = 3, ${durability}`;
  const text = [
    `bench latency: µs, objects of ${VALUE_BYTES} B, ${copies}, ${cores}, ${plan.rounds} rounds`,
    machineLine(),
    '',
    textTable(
      ['work', 'store', 'operations', ...percentiles.map((each) => `p${each}`), 'max', '×'],
      judged.flatMap(({ rows }) => rows),
    ),
    'At a fixed rate, times count from when an operation was due.',
    ...(peers.length === 0 ? [] : ["×: Rekindle's p50 and p99 ÷ the peer's, less is better"]),
  ].join('\n');
  const parameters = {
    ...{ servers, replicas, durability, memoryBytes, rate, quick, ...plan },
    peer: peers.join(',') || 'none',
  };
  const metrics = judged.flatMap(({ metrics: each }) => each);
  const distributions = judged.flatMap(({ distributions: each }) => each);
  return { name: 'latency', parameters, metrics, text, passed: true, distributions };
}

/** One work as rows for people, as metrics and as distributions; Rekindle comes first. */
function judge(
  work: Work,
  figures: readonly Figures[],
): { rows: string[][]; metrics: Metric[]; distributions: Distribution[] } {
  const [ours] = figures;
  const rows: string[][] = [];
  const metrics: Metric[] = [];
  const distributions: Distribution[] = [];
  for (const { side, all, rounds } of figures) {
    const store = side.store.name;
    const suffix = side.peer === null ? '' : ` ${side.peer}`;
    const add = (what: string, value: number): string => {
      const at = { work: `${work.name} ${what}`, store };
      metrics.push({ ...metric(`${work.name} ${what}${suffix}`, 'µs', value), ...at });
      return formatCount(value);
    };
    const cells = percentiles.map((each) => add(`p${each}`, percentileUs(all, each)));
    const row = [work.name, store, formatCount(all.totalCount), ...cells, add('max', all.maxValue)];
    distributions.push({ work: work.name, store, unit: 'µs', histogram: all });
    if (side.peer !== null && ours !== undefined) {
      const quotients = compared.map((each) => ratio(ours.rounds, rounds, each));
      const name = clientOf(side.peer);
      for (const [index, each] of compared.entries()) {
        const quotient = quotients[index] ?? Number.NaN;
        metrics.push(metric(`${work.id}-p${each}-vs-${name}`, 'ratio', quotient));
      }
      row.push(quotients.map((each) => each.toFixed(2)).join(', '));
    }
    rows.push(row);
  }
  return { rows, metrics, distributions };
}

/** Median of the rounds' ratios of a percentile. */
function ratio(ours: readonly Histogram[], theirs: readonly Histogram[], at: number): number {
  return median(
    ours.map((times, round) => {
      const other = theirs[round];
      return percentileUs(times, at) / (other === undefined ? Number.NaN : percentileUs(other, at));
    }),
  );
}

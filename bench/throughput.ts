/**
 * `rekindle bench throughput`: one server without replicas on one core, the client on the other,
 * 100-byte objects. Through the SDK beside peers on the same core without persistence (etcd: with)
 * and with the native load generator, which shows what the server itself can do
 * (throughput-works.ts); then how many bytes an object costs on the wire (wire-bytes.ts).
 *
 * Rule: what is compared is measured in turn, round by round, each store's client in a process of
 * its own (side-process.ts) as in real use; a ratio is the median of the rounds' ratios. With three
 * durable replicas: durable.ts.
 */
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { median } from './concurrency.js';
import { coreBinary } from './core-binary.js';
import { clientOf, type PeerName } from './peers.js';
import { Pinning } from './pinning.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';
import { SideProcess } from './side-process.js';
import { type Side, VALUE_BYTES, type Work, works } from './throughput-works.js';
import { type SideBytes, wireBytesTable } from './wire-bytes.js';

export interface ThroughputBenchOptions extends BenchOptions {
  peers: readonly PeerName[];
  memoryBytes: number;
}

interface Plan {
  objects: number;
  rounds: number;
  ms: number;
}

/** Of one work: for each side a figure for each round, null where it cannot do the work. */
type Figures = (number | null)[][];

export async function runThroughputBench(options: ThroughputBenchOptions): Promise<BenchResult> {
  const { quick, memoryBytes, peers } = options;
  const pinning = new Pinning();
  const binary = coreBinary();
  const plan: Plan = quick
    ? { objects: 200_000, rounds: 3, ms: 250 }
    : { objects: 1_000_000, rounds: 5, ms: 3_000 };
  const { objects } = plan;
  const sides: SideProcess[] = [];
  try {
    for (const name of ['rekindle', ...peers] as const) {
      sides.push(new SideProcess({ name, objects, memoryBytes, binary }));
    }
    await allReady(sides);
    pinning.pinThisProcess();
    const figures = await measureWorks(sides, plan);
    const bytes: SideBytes[] = [];
    for (const side of sides) bytes.push({ name: side.name, loads: await side.wireBytes() });
    return result(options, figures, wireBytesTable(bytes), { ...plan, pinned: pinning.possible });
  } finally {
    await Promise.all(sides.map((side) => side.stop()));
  }
}

/** Side by side: what they wait for, memory and processes, takes longer than their work. */
async function allReady(sides: readonly SideProcess[]): Promise<void> {
  const progress = startProgress('start', sides.length, 'stores');
  await Promise.all(
    sides.map(async (side) => {
      await side.ready();
      progress.advance(1);
    }),
  );
  progress.stop();
}

async function measureWorks(sides: readonly SideProcess[], plan: Plan): Promise<Figures[]> {
  const progress = startProgress('measure', works.length * plan.rounds, 'runs');
  const figures: Figures[] = [];
  for (const { metric } of works) {
    const bySide: Figures = sides.map(() => []);
    for (let seed = 1; seed <= plan.rounds; seed++) {
      for (const [index, side] of sides.entries()) {
        bySide[index]?.push(await side.measure({ metric, ms: plan.ms, seed }));
      }
      progress.advance(1);
    }
    figures.push(bySide);
  }
  progress.stop();
  return figures;
}

/** Median of the rounds; null where there is none. */
function medianOf(rounds: Figures[number]): number | null {
  const values = rounds.filter((each) => each !== null);
  return values.length === 0 ? null : median(values);
}

/** One work as a row for people and as metrics. */
function judge(
  work: Work,
  [ours = [], ...others]: Figures,
  peers: readonly PeerName[],
): { row: string[]; metrics: Metric[] } {
  const { unit, ratio } = work;
  const higherIsBetter = unit !== 'µs';
  const metrics: Metric[] = [];
  const add = (rounds: Figures[number], store: Side['name'], suffix: string): string => {
    const figure = medianOf(rounds);
    if (figure === null) return '–';
    const at = { work: work.name, store };
    metrics.push({ ...metric(`${work.metric}${suffix}`, unit, figure, higherIsBetter), ...at });
    return numberText(figure);
  };
  const row = [work.name, unit, add(ours, 'rekindle', '')];
  let judged = work.target === undefined ? undefined : (medianOf(ours) ?? undefined);
  for (const [index, peer] of peers.entries()) {
    const theirs = others[index] ?? [];
    row.push(add(theirs, peer, `-${peer}`));
    const quotient = medianOf(ours.map((each, round) => dividedBy(each, theirs[round] ?? null)));
    row.push(quotient === null ? '–' : numberText(quotient));
    if (ratio === undefined || quotient === null) continue;
    const name = `${ratio.metric}-vs-${ratio.of === 'clients' ? clientOf(peer) : peer}`;
    metrics.push(metric(name, 'ratio', quotient, higherIsBetter));
    if (peer === 'redis') judged = quotient;
  }
  const target = work.target ?? ratio?.target;
  if (judged === undefined || target === undefined) return { row: [...row, '–', '–'], metrics };
  const met = higherIsBetter ? judged >= target : judged <= target;
  row.push(`${higherIsBetter ? '≥' : '≤'} ${numberText(target)}`, met ? 'yes' : 'NO');
  return { row, metrics };
}

function dividedBy(ours: number | null, theirs: number | null): number | null {
  return ours === null || theirs === null ? null : ours / theirs;
}

function numberText(figure: number): string {
  return figure >= 100 ? formatCount(Math.round(figure)) : figure.toFixed(2);
}

function result(
  options: ThroughputBenchOptions,
  figures: readonly Figures[],
  bytes: { rows: string[][]; metrics: Metric[] },
  plan: Plan & { pinned: boolean },
): BenchResult {
  const { memoryBytes, quick, peers } = options;
  const judged = works.map((work, index) => judge(work, figures[index] ?? [], peers));
  const cores = plan.pinned ? 'server on one core, client on another' : 'not pinned to cores';
  const text = [
    `bench throughput: ${formatCount(plan.objects)} objects of ${VALUE_BYTES} B, no replicas, ` +
      `${cores}, median of ${plan.rounds} rounds`,
    machineLine(),
    '',
    textTable(
      ['work', 'unit', 'rekindle', ...peers.flatMap((peer) => [peer, '×']), 'wanted', 'met'],
      judged.map(({ row }) => row),
    ),
    '',
    'bytes on the wire per object, sent + received by the client:',
    textTable(['work', 'rekindle', ...peers], bytes.rows),
  ].join('\n');
  const parameters = { memoryBytes, quick, peer: peers.join(',') || 'none', ...plan };
  const metrics = [...judged.flatMap(({ metrics: each }) => each), ...bytes.metrics];
  return { name: 'throughput', parameters, metrics, text, passed: true };
}

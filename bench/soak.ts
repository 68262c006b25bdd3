/**
 * `rekindle bench soak`: minutes of mixed load at a fixed rate on a cluster with R = 3, and whether
 * the resident memory of any process goes on growing. Live data is constant (soak-load.ts), all log
 * memory is touched before; the client is this process.
 *
 * Rule: memory is judged over the second half, by Theil and Sen's slope (drift.ts), as what that
 * adds up to in percent of the median. A call that failed, or a process that ended, fails the run;
 * how much memory drifts does not.
 */
import { writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { Histogram } from 'hdr-histogram-js';
import { connect } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { formatBytes, formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import type { Durability } from '../src/rpc/messages.js';
import { waitUntilTouched } from './cluster-health.js';
import { median } from './concurrency.js';
import { driftPercent, type Point, secondHalf } from './drift.js';
import { atFixedRate, isPast, percentileUs } from './fixed-rate.js';
import { evenTicks, lineChart } from './line-chart.js';
import { type ProcessToWatch, residentBytesOf } from './process-usage.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';
import { SoakLoad } from './soak-load.js';

export interface SoakBenchOptions extends BenchOptions {
  seconds: number;
  /** Operations a second. */
  rate: number;
  servers: number;
  durability: Durability;
  memoryBytes: number;
  svg: string | undefined;
}

const TOUCH_TIMEOUT_MS = 120_000;
const SAMPLE_MS = 1_000;
/** All pairs of them are looked at: longer runs take samples more rarely. */
const SAMPLES_MAX = 1_200;
const CLIENT = 'client';
const colors = ['#1f77b4', '#d62728', '#2ca02c', '#9467bd', '#ff7f0e', '#8c564b'] as const;

/** Resident bytes of processes over seconds. */
class MemoryWatch {
  readonly series: ReadonlyMap<string, Point[]>;
  /** The first process that was found gone. */
  ended: string | undefined;
  readonly #processes: readonly ProcessToWatch[];

  constructor(processes: readonly ProcessToWatch[]) {
    this.#processes = processes;
    this.series = new Map(processes.map(({ name }) => [name, []]));
  }

  async sampleUntil(isOver: () => boolean, everyMs: number): Promise<void> {
    const startMs = performance.now();
    while (!isOver()) {
      const seconds = (performance.now() - startMs) / 1000;
      for (const { name, pid } of this.#processes) {
        const bytes = residentBytesOf(pid);
        if (bytes === undefined) this.ended ??= name;
        else this.series.get(name)?.push([seconds, bytes]);
      }
      await delay(everyMs);
    }
  }
}

interface Memory {
  name: string;
  firstBytes: number;
  medianBytes: number;
  drift: number;
}

export async function runSoakBench(options: SoakBenchOptions): Promise<BenchResult> {
  const { seconds, rate, servers, durability, memoryBytes } = options;
  const cluster = await LocalCluster.start({ servers, replicas: 3, durability, memoryBytes });
  try {
    await using client = await connect(cluster.url, { timeoutMs: 30_000 });
    await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
    const load = new SoakLoad(await client.createTable('soak', { span: servers }), 1);
    await load.fill();
    const processes = cluster.processes().flatMap(({ name, pid }) => (pid ? [{ name, pid }] : []));
    const watch = new MemoryWatch([...processes, { name: CLIENT, pid: process.pid }]);
    const isLate = isPast(seconds * 1000);
    const isOver = (): boolean => isLate() || watch.ended !== undefined;
    const everyMs = Math.max(SAMPLE_MS, (seconds * 1000) / SAMPLES_MAX);
    const [times] = await Promise.all([
      atFixedRate(() => load.next(), rate, isOver),
      watch.sampleUntil(isOver, everyMs),
    ]);
    if (options.svg !== undefined) writeFileSync(options.svg, draw(watch.series));
    return result(options, load, times, watch);
  } finally {
    await cluster.stop();
  }
}

function judge(name: string, points: readonly Point[]): Memory {
  const later = secondHalf(points);
  return {
    name,
    firstBytes: points[0]?.[1] ?? Number.NaN,
    medianBytes: median(later.map(([, bytes]) => bytes)),
    drift: driftPercent(later),
  };
}

function result(
  options: SoakBenchOptions,
  load: SoakLoad,
  times: Histogram,
  { series, ended }: MemoryWatch,
): BenchResult {
  const { seconds, rate, servers, durability, memoryBytes, quick } = options;
  const memory = [...series].map(([name, points]) => judge(name, points));
  const driftOf = (ofClient: boolean): number =>
    Math.max(...memory.flatMap(({ name, drift }) => ((name === CLIENT) === ofClient ? drift : [])));
  const [server, client] = [driftOf(false), driftOf(true)];
  const [p50, p99] = [50, 99].map((at) => percentileUs(times, at) / 1000) as [number, number];
  const { errors, errorCount } = load;
  const rows = memory.map(({ name, firstBytes, medianBytes, drift }) => [
    ...[name, formatBytes(firstBytes), formatBytes(medianBytes), `${drift.toFixed(2)} %`],
  ]);
  const text = [
    `bench soak: ${formatCount(seconds)} s of mixed load, ${formatCount(rate)} operations a ` +
      `second, ${servers} servers, R = 3, ${durability}`,
    machineLine(),
    '',
    textTable(['process', 'resident at first', 'second half', 'drift'], rows),
    '',
    `${formatCount(times.totalCount)} operations, from when each was due: p50 ${formatMs(p50)}, ` +
      `p99 ${formatMs(p99)}; ${errorCount} failed`,
    ...[...errors].map(([what, count]) => `  ${count} × ${what}`),
    ...(ended === undefined ? [] : [`${ended} has ended`]),
  ].join('\n');
  const metrics = [
    metric('rss-drift-percent', '%', Math.max(server, client)),
    metric('rss-drift-percent-server', '%', server),
    metric('rss-drift-percent-client', '%', client),
    ...memory.map(({ name, medianBytes }) => metric(`rss-${name}`, 'B', medianBytes)),
    metric('operations', 'operations', times.totalCount, true),
    metric('failed-calls', 'operations', errorCount),
    metric('p99-ms', 'ms', p99),
  ];
  const parameters = { seconds, rate, servers, durability, memoryBytes, quick };
  return { name: 'soak', parameters, metrics, text, passed: errorCount === 0 && !ended };
}

function draw(all: ReadonlyMap<string, readonly Point[]>): string {
  const series = [...all].map(([name, points], index) => ({
    name,
    color: colors[index % colors.length] ?? 'black',
    points: points.map(([seconds, bytes]) => [seconds / 60, bytes / 2 ** 20] as const),
  }));
  const ticks = (axis: 0 | 1): number[] =>
    evenTicks(Math.max(...series.flatMap(({ points }) => points.map((point) => point[axis]))));
  return lineChart({
    ...{ title: 'Resident memory under constant load', linear: true, series },
    ...{ xTitle: 'minutes', yTitle: 'MB', xTicks: ticks(0), yTicks: ticks(1) },
  });
}

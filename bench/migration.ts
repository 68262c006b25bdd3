/**
 * `rekindle bench migration`: a tablet goes from server to server and back while it is read and
 * written, at a fixed rate and by the checked load: how fast, and what callers notice. Then it is
 * moved again and again, and each time a process that takes part is killed at another phase
 * (migration-kills.ts).
 *
 * Rule: nothing that was acknowledged is lost, no read is stale, no call fails, every object has
 * one owner at the end.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Histogram } from 'hdr-histogram-js';
import { connect } from '../src/client/index.js';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import { invariant } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { CheckedLoad, LIGHT_LOAD } from './checked-load.js';
import { waitUntilTouched } from './cluster-health.js';
import { median } from './concurrency.js';
import { Dataset, randomStream } from './dataset.js';
import { countWrong, writeDataset } from './dataset-transfer.js';
import { FaultFiles } from './fault-files.js';
import { atFixedRate, histogram, isPast, percentileUs } from './fixed-rate.js';
import { type KillOutcome, killAtEachPhase } from './migration-kills.js';
import { type MovingTablet, moveOn, TABLE, waitForMigration } from './moving-tablet.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';

export interface MigrationBenchOptions extends BenchOptions {
  servers: number;
  durability: Durability;
  memoryBytes: number;
  /** Of values of 1 KB in the tablet. */
  bytes: number;
  moves: number;
  /** Bytes a second of a move, 0: as fast as it can; default: the server's. */
  rate: number | undefined;
  /** Whether processes are killed afterwards. */
  kills: boolean;
}

const VALUE_BYTES = 1_000;
const READS_PER_SECOND = 500;
const WRITES_PER_SECOND = 200;
const P99_TARGET_MS = 5;
const SETTLE_MS = 1_000;
const TOUCH_TIMEOUT_MS = 240_000;
/** Backups compress what was written, and the cleaner may work. */
const WRITTEN_SETTLE_MS = 10_000;

interface Times {
  reads: Histogram;
  writes: Histogram;
}

interface Figures {
  before: Times;
  during: Times;
  megabytesPerSecond: number[];
  moveMs: number[];
}

export async function runMigrationBench(options: MigrationBenchOptions): Promise<BenchResult> {
  const { servers, durability, memoryBytes, bytes, rate } = options;
  const directory = makeTemporaryFolder('rekindle-migration-');
  const files = new FaultFiles(directory);
  const cluster = await LocalCluster.create({
    dataDirectory: directory,
    servers,
    replicas: 3,
    durability,
    memoryBytes,
    serverArguments: rate === undefined ? [] : ['--migration-rate', `${rate}`],
    environmentOf: (name) => files.environmentOf(name),
  });
  try {
    await cluster.startAll();
    await using client = await connect(cluster.url, { timeoutMs: 60_000 });
    const table = await client.createTable(TABLE, { span: 1 });
    const dataset = new Dataset('object', Math.ceil(bytes / VALUE_BYTES), VALUE_BYTES);
    await writeDataset(table, dataset);
    await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
    await delay(options.quick ? SETTLE_MS : WRITTEN_SETTLE_MS);
    const load = new CheckedLoad(table, LIGHT_LOAD, 1);
    return await measure(options, { cluster, client, files, table, dataset, load });
  } catch (error) {
    process.stderr.write(`${cluster.logTails()}\n`);
    throw error;
  } finally {
    await cluster.stop();
    removeTemporaryFolder(directory);
  }
}

async function measure(options: MigrationBenchOptions, moving: MovingTablet): Promise<BenchResult> {
  const { load, table, dataset } = moving;
  load.start();
  try {
    const figures = await moveAround(options, moving);
    const kills = options.kills ? await killAtEachPhase(moving, options.quick) : [];
    await load.stop();
    await load.readAll();
    return result(options, figures, kills, load, await countWrong(table, dataset));
  } finally {
    load.end();
  }
}

async function moveAround(options: MigrationBenchOptions, moving: MovingTablet): Promise<Figures> {
  const { moves, quick } = options;
  const progress = startProgress('move', moves, 'moves');
  const newTimes = (): Times => ({ reads: histogram(), writes: histogram() });
  const figures: Figures = {
    before: newTimes(),
    during: newTimes(),
    megabytesPerSecond: [],
    moveMs: [],
  };
  await callUntil(moving, figures.before, isPast(quick ? 4_000 : 15_000));
  for (let move = 0; move < moves; move++) {
    await delay(SETTLE_MS);
    const startMs = performance.now();
    const migrationId = await moveOn(moving);
    let over = false;
    const end = waitForMigration(moving.client, migrationId).finally(() => {
      over = true;
    });
    await Promise.all([end, callUntil(moving, figures.during, () => over)]);
    const { report, atMs } = await end;
    const why = report?.reason;
    invariant(report?.state === 'done', `a migration that nobody disturbs ends well: ${why}`);
    figures.moveMs.push(atMs - startMs);
    figures.megabytesPerSecond.push(report.bytes / 1_000 / (atMs - startMs));
    progress.advance(1);
  }
  progress.stop();
  return figures;
}

/** Reads and writes of the dataset's objects, each at its rate. */
async function callUntil(
  { table, dataset }: MovingTablet,
  { reads, writes }: Times,
  isOver: () => boolean,
): Promise<void> {
  const random = randomStream(7);
  const get = (): Promise<unknown> => table.get(dataset.key(random() % dataset.count));
  const put = (): Promise<unknown> => {
    const index = random() % dataset.count;
    return table.put(dataset.key(index), dataset.value(index));
  };
  await Promise.all([
    atFixedRate(get, READS_PER_SECOND, isOver, reads),
    atFixedRate(put, WRITES_PER_SECOND, isOver, writes),
  ]);
}

function timeRows(what: string, { reads, writes }: Times): string[][] {
  return Object.entries({ reads, writes }).map(([kind, times]) => [
    `${kind} ${what}`,
    formatCount(times.totalCount),
    ...[50, 99, 99.9].map((each) => formatMs(percentileUs(times, each) / 1000)),
    formatMs(times.maxValue / 1000),
  ]);
}

function timeMetrics(when: string, { reads, writes }: Times): Metric[] {
  return Object.entries({ reads, writes }).flatMap(([kind, times]) => [
    metric(`${when}-${kind}-p50-ms`, 'ms', percentileUs(times, 50) / 1000),
    metric(`${when}-${kind}-p99-ms`, 'ms', percentileUs(times, 99) / 1000),
    metric(`${when}-${kind}-max-ms`, 'ms', times.maxValue / 1000),
  ]);
}

function result(
  options: MigrationBenchOptions,
  figures: Figures,
  kills: readonly KillOutcome[],
  load: CheckedLoad,
  wrong: number,
): BenchResult {
  const { servers, durability, memoryBytes, bytes, moves, quick } = options;
  const { before, during, megabytesPerSecond, moveMs } = figures;
  const { checker, errorCount, errors } = load;
  const lost = checker.violationCount + wrong;
  const orphans = kills.reduce((sum, { orphans: count }) => sum + count, 0);
  const speed = median(megabytesPerSecond);
  const metrics = [
    metric('migration-mbps', 'MB/s', speed, true),
    metric('migration-ms', 'ms', median(moveMs)),
    ...timeMetrics('before', before),
    ...timeMetrics('migration', during),
    metric('failed-calls', 'calls', errorCount),
    metric('lost-writes', 'writes', lost),
    metric('orphans', 'objects and tablets', orphans),
  ];
  const timeTitles = ['calls', 'number', 'p50', 'p99', 'p99.9', 'max'];
  const killTitles = ['killed', 'at', 'the tablet', 'whole after', 'longest call', 'orphans'];
  const killRows = kills.map((each) => [
    each.who,
    each.at,
    each.moved ? 'moved' : 'stayed',
    formatMs(each.wholeMs),
    formatMs(each.longestCallMs),
    `${each.orphans}`,
  ]);
  const text = [
    `bench migration: a tablet of ${formatCount(bytes)} B in objects of 1 KB, ` +
      `${servers} servers, R = 3, ${durability}`,
    machineLine(),
    '',
    `${formatCount(speed)} MB/s, a move in ${formatMs(median(moveMs))} (median of ${moves})`,
    '',
    textTable(timeTitles, [...timeRows('before', before), ...timeRows('meanwhile', during)]),
    `p99 wanted: <= ${P99_TARGET_MS} ms. Times count from when a call was due.`,
    ...(kills.length > 0 ? ['', textTable(killTitles, killRows)] : []),
    '',
    `${formatCount(checker.writesAcknowledged)} acknowledged writes, ` +
      `${formatCount(checker.reads)} checked reads`,
    `${errorCount} calls failed, ${lost} writes lost, ${orphans} orphans`,
    ...[...errors].map(([what, count]) => `error ${what}: ${formatCount(count)}`),
    ...checker.violations.map((violation) => `VIOLATION ${violation}`),
  ].join('\n');
  const rate = options.rate ?? 'default';
  const parameters = { servers, durability, memoryBytes, bytes, moves, rate, quick };
  const passed = errorCount === 0 && lost === 0 && orphans === 0;
  return { name: 'migration', parameters, metrics, text, passed };
}

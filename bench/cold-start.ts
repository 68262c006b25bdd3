/**
 * `rekindle bench cold-start`: over and over, every process of a cluster is killed with SIGKILL at
 * a random moment of heavy writing, with `powerLoss` each disk then loses what was not flushed, and
 * the cluster is started again. The checker judges all that comes back: acknowledged writes, newest
 * values, deletions.
 *
 * A round ends in one of three ways: the cluster is whole and nothing is missing; a recovery waits
 * and says for what (`doubt`: nothing wrong was presented, but an operator is needed); or something
 * acknowledged is missing in a cluster that looks whole. Only the last is a violation, but in mode
 * `fsync` doubt is one too: there nothing may be lost. After doubt the next round has a new
 * cluster.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { type Client, connect } from '../src/client/index.js';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import { RekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { CheckedLoad, HEAVY_LOAD } from './checked-load.js';
import { waitUntilWhole } from './cluster-health.js';
import { randomStream } from './dataset.js';
import { DiskLayer, diskLayerLibrary } from './disk-layer.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';

export interface ColdStartOptions extends BenchOptions {
  rounds: number;
  /** Default: drawn, and printed. */
  seed: number | undefined;
  servers: number;
  durability: Durability;
  memoryBytes: number;
  powerLoss: boolean;
  /** The flushes of replicas do nothing: what this run must find. */
  flushIgnored: boolean;
  /** How long a restarted cluster may take to be whole. */
  wholeTimeoutMs: number;
}

/** The file of a backup that holds the replicas. */
const FRAMES = 'frames';
export const WHOLE_TIMEOUT_MS = 60_000;
const OPERATION_TIMEOUT_MS = 60_000;
const WRITING_MS_MIN = 200;
const WRITING_MS_SPAN = 1_800;
const WATCH_MS = 200;

interface Totals {
  acknowledged: number;
  deletionsAndWritesUnknown: number;
  reads: number;
  violations: string[];
  doubts: string[];
  wholeMs: number[];
  kept: number;
  dropped: number;
  torn: number;
}

/** One cluster and its load, for as many rounds as it survives. */
interface World {
  directory: string;
  layer: DiskLayer | undefined;
  cluster: LocalCluster;
  client: Client;
  load: CheckedLoad;
  /** Processes that ended and should not have. */
  ended: string[];
}

export async function runColdStart(options: ColdStartOptions): Promise<BenchResult> {
  const seed = options.seed ?? randomInt(2 ** 31);
  process.stderr.write(`cold-start: seed ${seed}\n`);
  const random = randomStream(seed);
  const totals: Totals = {
    acknowledged: 0,
    deletionsAndWritesUnknown: 0,
    reads: 0,
    violations: [],
    doubts: [],
    wholeMs: [],
    kept: 0,
    dropped: 0,
    torn: 0,
  };
  const start = performance.now();
  const progress = startProgress('cold start', options.rounds, 'rounds');
  let world: World | undefined;
  try {
    for (let round = 1; round <= options.rounds; round++) {
      world ??= await begin(options, random());
      const whole = await playRound(world, options, random, totals, round);
      const wholeMs = totals.wholeMs.at(-1) ?? 0;
      progress.advance(1, whole ? `round ${round}: whole after ${formatMs(wholeMs)}` : undefined);
      if (totals.violations.length > 0) break;
      if (!whole) {
        await finish(world, totals);
        world = undefined;
      }
    }
  } finally {
    progress.stop();
    if (world !== undefined) await finish(world, totals);
  }
  return result(options, totals, seed, performance.now() - start);
}

async function begin(options: ColdStartOptions, seed: number): Promise<World> {
  const { servers, durability, memoryBytes, powerLoss, flushIgnored } = options;
  const directory = makeTemporaryFolder('rekindle-cold-');
  const unflushed = flushIgnored ? FRAMES : undefined;
  const layer = powerLoss ? new DiskLayer(diskLayerLibrary(), directory, unflushed) : undefined;
  const ended: string[] = [];
  const cluster = await LocalCluster.start({
    onUnexpectedExit: ({ name, code, signal }) => ended.push(`${name}: ${signal ?? code}`),
    dataDirectory: directory,
    servers,
    durability,
    memoryBytes,
    replicas: 3,
    environmentOf: (name) => layer?.environmentOf(name) ?? {},
  });
  try {
    const client = await connect(cluster.url, { timeoutMs: OPERATION_TIMEOUT_MS });
    const table = await client.createTable('cold', { span: servers });
    const load = new CheckedLoad(table, HEAVY_LOAD, seed);
    return { directory, layer, cluster, client, load, ended };
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

async function finish(world: World, totals: Totals): Promise<void> {
  const { checker } = world.load;
  totals.acknowledged += checker.writesAcknowledged;
  totals.deletionsAndWritesUnknown += checker.writesUnknown;
  totals.reads += checker.reads;
  await world.client.close();
  await world.cluster.stop();
  removeTemporaryFolder(world.directory);
}

/** True if the cluster is whole again. */
async function playRound(
  world: World,
  options: ColdStartOptions,
  random: () => number,
  totals: Totals,
  round: number,
): Promise<boolean> {
  const { cluster, client, load } = world;
  load.start();
  await delay(WRITING_MS_MIN + (random() % WRITING_MS_SPAN));
  load.end();
  await cluster.killAll('SIGKILL');
  if (options.powerLoss) cutAll(world, random, totals);
  const start = performance.now();
  let failure: string | undefined;
  try {
    await startWhole(world, options.wholeTimeoutMs);
  } catch (error) {
    if (!(error instanceof RekindleError)) throw error;
    failure = `round ${round}: ${error.message.split('\n')[0]}${await waitedFor(client)}`;
  }
  if (failure !== undefined) {
    (options.durability === 'fsync' ? totals.violations : totals.doubts).push(failure);
    process.stderr.write(
      `${failure}\n${options.durability === 'fsync' ? cluster.logTails(8) : ''}`,
    );
    return false;
  }
  totals.wholeMs.push(performance.now() - start);
  // What was under way at the kill is repeated by the SDK, and ends now.
  await load.stop();
  await load.readAll();
  const { violations } = load.checker;
  totals.violations.push(...violations.map((violation) => `round ${round}: ${violation}`));
  return true;
}

function cutAll(world: World, random: () => number, totals: Totals): void {
  for (const { name } of world.cluster.processes()) {
    const report = world.layer?.cutPower(name, random());
    totals.kept += report?.kept ?? 0;
    totals.dropped += report?.dropped ?? 0;
    totals.torn += report?.torn ?? 0;
  }
}

/** Starts everything and waits until it is whole; rejects as soon as a process ends by itself. */
async function startWhole({ cluster, client, ended }: World, timeoutMs: number): Promise<void> {
  await cluster.startAll();
  const whole = waitUntilWhole(client, cluster.serverCount, timeoutMs);
  const over = new AbortController();
  const watch = async (): Promise<void> => {
    while (!over.signal.aborted) {
      if (ended.length > 0) {
        throw new RekindleError('INTERNAL', `ended by itself: ${ended.join(', ')}`);
      }
      await delay(WATCH_MS);
    }
  };
  await Promise.race([whole, watch()]).finally(() => over.abort());
}

/** What running recoveries say they wait for. */
async function waitedFor(client: Client): Promise<string> {
  try {
    const { recoveries } = await client.status();
    const waiting = recoveries.flatMap(({ waitingFor }) =>
      waitingFor === null ? [] : [waitingFor],
    );
    return waiting.length === 0 ? '' : `; waiting for ${waiting.slice(0, 6).join('; ')}`;
  } catch (error) {
    return `; no status: ${(error as Error).message}`;
  }
}

function result(
  options: ColdStartOptions,
  totals: Totals,
  seed: number,
  totalMs: number,
): BenchResult {
  const { rounds, servers, durability, memoryBytes, powerLoss, flushIgnored, quick } = options;
  const { violations, doubts, wholeMs } = totals;
  const slowestMs = Math.max(0, ...wholeMs);
  const flags = `${powerLoss ? ' --power-loss' : ''}${flushIgnored ? ' --flush-ignored' : ''}`;
  const repeat =
    `rekindle bench cold-start --rounds ${rounds} --seed ${seed} --servers ${servers} ` +
    `--memory ${memoryBytes / 2 ** 20}MB --durability ${durability}${flags}`;
  const what = powerLoss ? 'power cut' : 'kill -9 of all';
  const text = [
    `bench cold-start: ${servers} servers, R = 3, ${durability}, ${what}, seed ${seed}, ` +
      formatMs(totalMs),
    machineLine(),
    '',
    textTable(
      ['', ''],
      [
        ['rounds ended whole', `${wholeMs.length} of ${rounds}`],
        ['rounds ended in doubt', doubts.length],
        ['acknowledged writes', totals.acknowledged],
        ['writes of unknown outcome', totals.deletionsAndWritesUnknown],
        ['checked reads', totals.reads],
        ['unflushed blocks kept', totals.kept],
        ['unflushed blocks dropped', totals.dropped],
        ['unflushed blocks torn', totals.torn],
        ['longest from start to whole', formatMs(slowestMs)],
        ['violations', violations.length],
      ],
    ),
    ...doubts.map((doubt) => `DOUBT ${doubt}`),
    ...violations.slice(0, 20).map((violation) => `VIOLATION ${violation}`),
    violations.length === 0
      ? 'no acknowledged write was lost, no deleted object came back'
      : `FAILED: ${formatCount(violations.length)} violations`,
    `repeat with: ${repeat}`,
  ].join('\n');
  return {
    name: 'cold-start',
    parameters: { rounds, seed, servers, durability, memoryBytes, powerLoss, flushIgnored, quick },
    metrics: [
      metric('violations', '1', violations.length),
      metric('rounds in doubt', '1', doubts.length),
      metric('rounds whole', '1', wholeMs.length, true),
      metric('acknowledged writes', '1', totals.acknowledged, true),
      metric('unflushed blocks lost or torn', '1', totals.dropped + totals.torn),
      metric('longest from start to whole', 'ms', slowestMs),
    ],
    text,
    passed: violations.length === 0,
  };
}

/**
 * `rekindle bench chaos`: numbered writers and readers work while random servers are killed with
 * SIGKILL and restarted, and the checker (chaos-checker.ts) judges every answer. The same seed
 * draws the same victims, pauses and operations; what the machine does between is its own.
 *
 * One server is down at a time unless --down-at-once says more; fewer live servers than replicas
 * plus one stop writes until one is back.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { type Client, connect, type Table } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import { RekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { ChaosChecker, chaosValue } from './chaos-checker.js';
import { serverStats, waitUntilWhole } from './cluster-health.js';
import { randomStream } from './dataset.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';

export interface ChaosOptions extends BenchOptions {
  kills: number;
  /** Default: drawn, and printed. */
  seed: number | undefined;
  servers: number;
  durability: Durability;
  memoryBytes: number;
  downAtOnce: number;
}

const WRITERS = 32;
const KEYS_PER_WRITER = 32;
const KEYS = WRITERS * KEYS_PER_WRITER;
const READERS = 8;
/** Large enough that short runs overwrite their memory, and segments are cleaned meanwhile. */
const VALUE_BYTES_MAX = 16_000;
const READ_PAUSE_MS = 4;
const OPERATION_TIMEOUT_MS = 60_000;
const WHOLE_TIMEOUT_MS = 120_000;

interface Run {
  table: Table;
  checker: ChaosChecker;
  stopped: boolean;
  errors: Map<string, number>;
  longestMs: number;
}

function keyOf(keyIndex: number): string {
  return `chaos:${keyIndex}`;
}

export async function runChaos(options: ChaosOptions): Promise<BenchResult> {
  const seed = options.seed ?? randomInt(2 ** 31);
  process.stderr.write(`chaos: seed ${seed}\n`);
  const { servers, durability, memoryBytes } = options;
  const start = performance.now();
  const cluster = await LocalCluster.start({ servers, durability, memoryBytes, replicas: 3 });
  try {
    await using client = await connect(cluster.url, { timeoutMs: OPERATION_TIMEOUT_MS });
    const table = await client.createTable('chaos', { span: servers * 2 });
    const run: Run = {
      table,
      checker: new ChaosChecker(KEYS),
      stopped: false,
      errors: new Map(),
      longestMs: 0,
    };
    const work = Promise.all([
      ...Array.from({ length: WRITERS }, (_, writer) => write(run, writer, seed + writer)),
      ...Array.from({ length: READERS }, (_, reader) => read(run, seed + WRITERS + reader)),
    ]);
    const stop = (): void => {
      run.stopped = true;
    };
    const faults = injectFaults(cluster, client, options, seed).finally(stop);
    const [pauses] = await Promise.all([faults, work]).finally(stop);
    await readAll(run);
    const cleaned = await passesOf(client);
    return result(options, run, { seed, pauses, cleaned, totalMs: performance.now() - start });
  } catch (error) {
    process.stderr.write(`chaos: failed with seed ${seed}\n${cluster.logTails()}\n`);
    throw error;
  } finally {
    await cluster.stop();
  }
}

async function write(run: Run, writer: number, seed: number): Promise<void> {
  const { checker, table } = run;
  const random = randomStream(seed);
  while (!run.stopped) {
    const keyIndex = writer * KEYS_PER_WRITER + (random() % KEYS_PER_WRITER);
    const deletion = random() % 20 === 0;
    const number = checker.writeStarts(keyIndex, deletion);
    const start = performance.now();
    try {
      const { version } = deletion
        ? await table.delete(keyOf(keyIndex))
        : await table.put(
            keyOf(keyIndex),
            chaosValue(keyIndex, number, random() % VALUE_BYTES_MAX),
          );
      checker.writeAcknowledged(keyIndex, number, version);
    } catch (error) {
      countError(run, error);
      checker.writeUnknown();
    }
    run.longestMs = Math.max(run.longestMs, performance.now() - start);
  }
}

async function read(run: Run, seed: number): Promise<void> {
  const random = randomStream(seed);
  while (!run.stopped) {
    await readOne(run, random() % KEYS);
    await delay(random() % (2 * READ_PAUSE_MS));
  }
}

async function readOne(run: Run, keyIndex: number): Promise<void> {
  const start = run.checker.readStarts(keyIndex);
  const startMs = performance.now();
  try {
    run.checker.readEnds(start, await run.table.getEntry(keyOf(keyIndex)));
  } catch (error) {
    countError(run, error);
  }
  run.longestMs = Math.max(run.longestMs, performance.now() - startMs);
}

async function readAll(run: Run): Promise<void> {
  for (let keyIndex = 0; keyIndex < KEYS; keyIndex++) await readOne(run, keyIndex);
}

/** Cleaning passes that the servers have finished since they were started last. */
async function passesOf(client: Client): Promise<number> {
  const servers = await serverStats(client);
  return servers.reduce((sum, { master }) => sum + (master?.cleanerPassesReplicated ?? 0), 0);
}

/** Errors that the SDK throws on purpose are counted; anything else is a bug of the run. */
function countError(run: Run, error: unknown): void {
  if (!(error instanceof RekindleError)) throw error;
  const what = `${error.code} (${error.outcome})`;
  run.errors.set(what, (run.errors.get(what) ?? 0) + 1);
}

/** Milliseconds from each kill to a whole cluster. */
async function injectFaults(
  cluster: LocalCluster,
  client: Client,
  options: ChaosOptions,
  seed: number,
): Promise<number[]> {
  const random = randomStream(seed ^ 0x5eed);
  const progress = startProgress('kill', options.kills, 'kills');
  const wholeMs: number[] = [];
  for (let kills = 0; kills < options.kills; ) {
    await delay(200 + (random() % 1300));
    const victims = draw(random, cluster.serverCount, options.downAtOnce);
    const start = performance.now();
    for (const victim of victims) {
      await cluster.killServer(victim, 'SIGKILL');
      kills++;
      progress.advance(1);
      await delay(random() % 300);
    }
    // Short pauses restart a server before its recovery has ended, or even begun.
    await delay(random() % 2000);
    for (const victim of victims) await cluster.restartServer(victim);
    await waitUntilWhole(client, cluster.serverCount, WHOLE_TIMEOUT_MS);
    wholeMs.push(performance.now() - start);
  }
  progress.stop();
  return wholeMs;
}

/** `count` different numbers below `below`. */
function draw(random: () => number, below: number, count: number): number[] {
  const drawn = new Set<number>();
  while (drawn.size < Math.min(count, below)) drawn.add(random() % below);
  return [...drawn];
}

function result(
  options: ChaosOptions,
  run: Run,
  {
    seed,
    pauses,
    cleaned,
    totalMs,
  }: { seed: number; pauses: number[]; cleaned: number; totalMs: number },
): BenchResult {
  const { checker, errors, longestMs } = run;
  const { kills, servers, durability, memoryBytes, downAtOnce, quick } = options;
  const errorCount = [...errors.values()].reduce((sum, count) => sum + count, 0);
  const repeat =
    `rekindle bench chaos --kills ${kills} --seed ${seed} --servers ${servers} ` +
    `--durability ${durability} --down-at-once ${downAtOnce}`;
  const figures: [string, number | string][] = [
    ['kills', kills],
    ['acknowledged writes', checker.writesAcknowledged],
    ['writes of unknown outcome', checker.writesUnknown],
    ['checked reads', checker.reads],
    ['errors seen by clients', errorCount],
    ['cleaning passes', cleaned],
    ['longest operation', formatMs(longestMs)],
    ['longest from kill to whole', formatMs(Math.max(0, ...pauses))],
    ['violations', checker.violationCount],
  ];
  const text = [
    `bench chaos: ${servers} servers, R = 3, ${durability}, seed ${seed}, ${formatMs(totalMs)}`,
    machineLine(),
    '',
    textTable(['', ''], figures),
    ...[...errors].map(([what, count]) => `error ${what}: ${formatCount(count)}`),
    ...checker.violations.map((violation) => `VIOLATION ${violation}`),
    checker.violationCount === 0
      ? 'no acknowledged write was lost, went backwards or was torn'
      : 'FAILED',
    `repeat with: ${repeat}`,
  ].join('\n');
  return {
    name: 'chaos',
    parameters: { kills, seed, servers, durability, memoryBytes, downAtOnce, quick },
    metrics: [
      metric('violations', '1', checker.violationCount),
      metric('errors', '1', errorCount),
      metric('acknowledged writes', '1', checker.writesAcknowledged, true),
      metric('longest operation', 'ms', longestMs),
      metric('longest from kill to whole', 'ms', Math.max(0, ...pauses)),
    ],
    text,
    passed: checker.violationCount === 0,
  };
}

/**
 * `rekindle bench chaos`: the checked load (checked-load.ts) works while random servers are
 * killed with SIGKILL and restarted. The same seed
 * draws the same victims, pauses and operations; what the machine does between is its own.
 *
 * One server is down at a time unless --down-at-once says more; fewer live servers than replicas
 * plus one stop writes until one is back.
 */
import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { type Client, connect } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import type { Durability } from '../src/rpc/messages.js';
import { CheckedLoad, HEAVY_LOAD } from './checked-load.js';
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

const OPERATION_TIMEOUT_MS = 60_000;
const WHOLE_TIMEOUT_MS = 120_000;

export async function runChaos(options: ChaosOptions): Promise<BenchResult> {
  const seed = options.seed ?? randomInt(2 ** 31);
  process.stderr.write(`chaos: seed ${seed}\n`);
  const { servers, durability, memoryBytes } = options;
  const start = performance.now();
  const cluster = await LocalCluster.start({ servers, durability, memoryBytes, replicas: 3 });
  try {
    await using client = await connect(cluster.url, { timeoutMs: OPERATION_TIMEOUT_MS });
    const table = await client.createTable('chaos', { span: servers * 2 });
    const load = new CheckedLoad(table, HEAVY_LOAD, seed);
    load.start();
    const pauses = await injectFaults(cluster, client, options, seed).finally(() => load.end());
    await load.stop();
    await load.readAll();
    const cleaned = await passesOf(client);
    return result(options, load, { seed, pauses, cleaned, totalMs: performance.now() - start });
  } catch (error) {
    process.stderr.write(`chaos: failed with seed ${seed}\n${cluster.logTails()}\n`);
    throw error;
  } finally {
    await cluster.stop();
  }
}

/** Cleaning passes that the servers have finished since they were started last. */
async function passesOf(client: Client): Promise<number> {
  const servers = await serverStats(client);
  return servers.reduce((sum, { master }) => sum + (master?.cleanerPassesReplicated ?? 0), 0);
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
  load: CheckedLoad,
  {
    seed,
    pauses,
    cleaned,
    totalMs,
  }: { seed: number; pauses: number[]; cleaned: number; totalMs: number },
): BenchResult {
  const { checker, errorCount, errors, longestMs } = load;
  const { kills, servers, durability, memoryBytes, downAtOnce, quick } = options;
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

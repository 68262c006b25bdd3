/**
 * `rekindle bench detection`: how soon a dead server is declared crashed, and whether a live one
 * ever is. Servers are killed (SIGKILL) and stopped (SIGSTOP) in turn, each time on a cluster that
 * is whole and idle; the time counts until `status` shows the server as crashed, so the commit
 * of the verdict is in it. Then all cores are kept busy under a light load, and nobody dies.
 */
import { availableParallelism } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { type Client, connect, type Table } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { startProgress } from '../src/ops/progress.js';
import { formatMs, textTable } from '../src/ops/text-table.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { serverStats, waitFor, waitUntilWhole } from './cluster-health.js';
import { percentile } from './concurrency.js';
import { randomStream } from './dataset.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';

export interface DetectionOptions extends BenchOptions {
  servers: number;
  durability: Durability;
  memoryBytes: number;
  /** Kills, and stops. */
  rounds: number;
  /** Length of the run with all cores busy; 0: none. */
  saturateSeconds: number;
}

type Fault = 'killed' | 'stopped';

const POLL_MS = 2;
const DETECTION_TIMEOUT_MS = 30_000;
const WHOLE_TIMEOUT_MS = 120_000;
/**
 * At least; a random part on top lets faults fall anywhere between two pings. Silence is borne for
 * longer as long as a machine has been slow in the last 6 s (docs/coordinator.md, Patience), and
 * the restart of a server after the fault before made it slow.
 */
const IDLE_MS: Record<Fault, number> = { killed: 1_000, stopped: 6_000 };
const HOGS_PER_CORE = 2;
const LOAD_PAUSE_MS = 20;

/** What is demanded of an idle machine; docs/benchmarks.md has what was reached. */
const TARGETS: { fault: Fault; percentile: number; belowMs: number }[] = [
  { fault: 'killed', percentile: 100, belowMs: 300 },
  { fault: 'stopped', percentile: 50, belowMs: 600 },
];

export async function runDetectionBench(options: DetectionOptions): Promise<BenchResult> {
  const { servers, durability, memoryBytes } = options;
  await using cluster = await LocalCluster.start({ servers, durability, memoryBytes, replicas: 3 });
  await using client = await connect(cluster.url, { timeoutMs: 60_000 });
  const table = await client.createTable('detection', { span: servers });
  await table.put('key', 'value');
  const times: Record<Fault, number[]> = { killed: [], stopped: [] };
  const random = randomStream(options.rounds);
  const progress = startProgress('faults', 2 * options.rounds, 'faults');
  for (let round = 0; round < 2 * options.rounds; round++) {
    const fault: Fault = round % 2 === 0 ? 'killed' : 'stopped';
    // Not one that was restarted just now.
    const index = round % servers;
    await waitUntilWhole(client, servers, WHOLE_TIMEOUT_MS);
    await delay(IDLE_MS[fault] + (random() % 500));
    times[fault].push(await detect(cluster, client, index, fault));
    progress.advance(1);
  }
  progress.stop();
  await waitUntilWhole(client, servers, WHOLE_TIMEOUT_MS);
  const saturation =
    options.saturateSeconds > 0
      ? await saturate(cluster, client, table, options.saturateSeconds)
      : null;
  return result(options, times, saturation);
}

/** Milliseconds until the server is declared crashed. It runs again afterwards, under a new id. */
async function detect(
  cluster: LocalCluster,
  client: Client,
  index: number,
  fault: Fault,
): Promise<number> {
  const serverId = cluster.serverId(index);
  invariant(serverId !== undefined, 'the victim runs');
  const startMs = performance.now();
  if (fault === 'stopped') cluster.pauseServer(index);
  else await cluster.killServer(index, 'SIGKILL');
  for (;;) {
    const { servers } = await client.status();
    if (!servers.some((each) => each.serverId === serverId && each.status === 'up')) break;
    if (performance.now() - startMs > DETECTION_TIMEOUT_MS) {
      throw new RekindleError('TIMEOUT', `server ${serverId} was ${fault} and is still up`);
    }
    await delay(POLL_MS);
  }
  const ms = performance.now() - startMs;
  if (fault === 'stopped') {
    cluster.resumeServer(index);
    // It hears of its removal and exits by itself.
    await waitFor('the end of a zombie', WHOLE_TIMEOUT_MS, async () =>
      cluster.isRunning(index) ? undefined : true,
    );
  }
  await cluster.restartServer(index);
  return ms;
}

interface Saturation {
  seconds: number;
  /** Servers that were declared crashed although they ran. */
  falseDeaths: number;
  operations: number;
  longestMs: number;
  /** Lapses of read leases, of all servers together. */
  leaseLapses: number;
}

async function saturate(
  cluster: LocalCluster,
  client: Client,
  table: Table,
  seconds: number,
): Promise<Saturation> {
  const idsOf = async (): Promise<number[]> =>
    (await client.status()).servers.filter((s) => s.status === 'up').map((s) => s.serverId);
  const lapsesOf = async (): Promise<number> =>
    (await serverStats(client)).reduce(
      (sum, { master }) => sum + (master?.readLeaseLapses ?? 0),
      0,
    );
  const before = await idsOf();
  const lapsesBefore = await lapsesOf();
  const hogs = Array.from(
    { length: HOGS_PER_CORE * availableParallelism() },
    () => new Worker('for (;;);', { eval: true }),
  );
  let [operations, longestMs] = [0, 0];
  const start = performance.now();
  try {
    for (let atMs = start; atMs < start + seconds * 1_000; atMs = performance.now()) {
      await table.put('key', `${operations}`);
      await table.get('key');
      operations += 2;
      longestMs = Math.max(longestMs, performance.now() - atMs);
      await delay(LOAD_PAUSE_MS);
    }
  } finally {
    await Promise.all(hogs.map((hog) => hog.terminate()));
  }
  const after = new Set(await idsOf());
  const falseDeaths = before.filter((serverId) => !after.has(serverId)).length;
  if (falseDeaths > 0) process.stderr.write(`${cluster.logTails()}\n`);
  const leaseLapses = (await lapsesOf()) - lapsesBefore;
  return { seconds, falseDeaths, operations, longestMs, leaseLapses };
}

function result(
  options: DetectionOptions,
  times: Record<Fault, number[]>,
  saturation: Saturation | null,
): BenchResult {
  const metrics: Metric[] = [];
  const rows: string[][] = [];
  for (const fault of ['killed', 'stopped'] as const) {
    const row = [50, 90, 100].map((p) => percentile(times[fault], p));
    metrics.push(
      metric(`${fault}-p50-ms`, 'ms', row[0] ?? Number.NaN),
      metric(`${fault}-p90-ms`, 'ms', row[1] ?? Number.NaN),
      metric(`${fault}-max-ms`, 'ms', row[2] ?? Number.NaN),
    );
    const target = TARGETS.find((each) => each.fault === fault);
    const reached = target !== undefined && percentile(times[fault], target.percentile);
    const text = target === undefined ? '' : `${targetName(target.percentile)} < ${target.belowMs}`;
    const verdict = target === undefined || Number(reached) < target.belowMs ? '' : ' (missed)';
    rows.push([fault, `${times[fault].length}`, ...row.map(formatMs), `${text} ms${verdict}`]);
  }
  let text = `${machineLine()}
Time until a dead server is declared crashed, cluster of ${options.servers}, idle.

${textTable(['server', 'times', 'p50', 'p90', 'max', 'target'], rows)}`;
  if (saturation !== null) {
    const { seconds, falseDeaths, operations, longestMs, leaseLapses } = saturation;
    metrics.push(
      metric('false-deaths', 'servers', falseDeaths),
      metric('saturated-seconds', 's', seconds, true),
      metric('saturated-longest-ms', 'ms', longestMs),
      metric('saturated-lease-lapses', 'lapses', leaseLapses),
    );
    text += `

${HOGS_PER_CORE} busy loops a core for ${seconds} s: ${falseDeaths} live servers declared crashed, \
${leaseLapses} lapses of read leases, longest of ${operations} operations ${formatMs(longestMs)}`;
  }
  return {
    name: 'detection',
    parameters: { ...options },
    metrics,
    text,
    passed: (saturation?.falseDeaths ?? 0) === 0,
  };
}

function targetName(wanted: number): string {
  return wanted === 100 ? 'max' : `p${wanted}`;
}

/**
 * `rekindle bench recovery`: one master of five holds all the data, dies of SIGKILL, and the
 * others take over; once with small and once with large values. Shows the phases, what bounds
 * each, the rates, and how long keys were away for a client. With `--peer redis` the same data
 * are put into Redis, which is killed and started again.
 *
 * The servers first touch their memory, and all of them take some writes, as servers have that run
 * for a while: code that has never run is several times slower. After the recovery every object is
 * read and compared.
 */
import { writeFileSync } from 'node:fs';
import { type Client, connect } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { formatBytes, formatCount, formatMs } from '../src/ops/text-table.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import type { Durability, RecoveryReport } from '../src/rpc/messages.js';
import {
  serverStats,
  waitFor,
  waitForRecovery,
  waitUntilTouched,
  waitUntilWhole,
} from './cluster-health.js';
import { Dataset } from './dataset.js';
import { countWrong, writeDataset } from './dataset-transfer.js';
import { probeKeys, type Unavailability } from './key-probes.js';
import { ProcessUsage } from './process-usage.js';
import { recoveryTable } from './recovery-table.js';
import {
  type Timeline,
  timelineOf,
  timelineSvg,
  timelineText,
  usageTable,
} from './recovery-timeline.js';
import { measureRedisRestart, type RedisRestartTimes } from './redis-restart.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';

export interface RecoveryBenchOptions extends BenchOptions {
  /** Bytes of values on the master that dies. */
  bytes: number;
  /** Sizes of a value; a cluster of its own for each. */
  valueBytes: readonly number[];
  servers: number;
  durability: Durability;
  peer: 'redis' | undefined;
  /** Where the timelines go, `{size}` in it is replaced; undefined: drawn in the terminal only. */
  svg: string | undefined;
}

const SEGMENT_BYTES = 8 * 2 ** 20;
const RECOVERY_TIMEOUT_MS = 180_000;
const TOUCH_TIMEOUT_MS = 120_000;
const SEED = 1;
/** Header and key of an object, its slot in the hash table, alignment. */
const OVERHEAD_BYTES = 96;
/** Room for what a recovery master takes over, and for the reserve of the cleaner. */
const MEMORY_FACTOR = 1.4;
const MEMORY_EXTRA_BYTES = 192 * 2 ** 20;
/** What all servers have written before. */
const WARM_UP_OBJECTS = 400_000;
const WARM_UP_VALUE_BYTES = 100;

export async function runRecoveryBench(options: RecoveryBenchOptions): Promise<BenchResult> {
  const { bytes, servers, durability, quick, peer } = options;
  if (options.valueBytes.length > 1 && options.svg?.includes('{size}') === false) {
    const problem = 'two timelines do not fit into one file; write {size} into the name of --svg';
    throw new RekindleError('INVALID_ARGUMENT', problem);
  }
  const metrics: Metric[] = [];
  const texts = [machineLine()];
  let wrong = 0;
  for (const valueBytes of options.valueBytes) {
    const dataset = new Dataset('object', Math.floor(bytes / valueBytes), valueBytes);
    const outcome = await killAndMeasure(options, dataset);
    const redis = peer === undefined ? undefined : await measureRedisRestart(dataset);
    const suffix = sizeName(valueBytes);
    metrics.push(...metricsOf(suffix, outcome, redis));
    texts.push(textOf(options, outcome, redis));
    wrong += outcome.wrong;
    if (options.svg !== undefined) {
      const file = options.svg.replace('{size}', suffix);
      writeFileSync(file, timelineSvg(`Recovery of ${describe(dataset)}`, outcome.timeline));
      texts.push(`timeline: ${file}`);
    }
  }
  const values = options.valueBytes.join(',');
  return {
    name: 'recovery',
    parameters: { bytes, values, servers, durability, quick, replicas: 3, peer: peer ?? 'none' },
    metrics,
    text: texts.join('\n\n'),
    passed: wrong === 0,
  };
}

/** 100 -> "100b", 1024 -> "1kb": how metrics of a size are named. */
export function sizeName(bytes: number): string {
  return bytes % 1024 === 0 ? `${bytes / 1024}kb` : `${bytes}b`;
}

function describe({ count, valueBytes }: Dataset): string {
  return `${formatCount(count)} objects of ${valueBytes} B`;
}

interface Outcome {
  dataset: Dataset;
  report: RecoveryReport;
  timeline: Timeline;
  unavailable: Unavailability;
  memoryBytes: number;
  fillMs: number;
  /** All since the kill. */
  servedMs: number;
  fullyReplicatedMs: number;
  cpuSeconds: number;
  wrong: number;
}

async function killAndMeasure(options: RecoveryBenchOptions, dataset: Dataset): Promise<Outcome> {
  const { servers, durability } = options;
  const stored = dataset.count * (dataset.valueBytes + OVERHEAD_BYTES) * MEMORY_FACTOR;
  const memoryBytes = Math.ceil((stored + MEMORY_EXTRA_BYTES) / SEGMENT_BYTES) * SEGMENT_BYTES;
  await using cluster = await LocalCluster.start({ servers, replicas: 3, durability, memoryBytes });
  await using client = await connect(cluster.url, { timeoutMs: 60_000 });
  const everywhere = await client.createTable('bench-warm-up', { span: servers });
  await writeDataset(everywhere, new Dataset('warm', WARM_UP_OBJECTS, WARM_UP_VALUE_BYTES));
  const table = await client.createTable('bench-recovery', { span: 1 });
  const start = performance.now();
  await writeDataset(table, dataset);
  const fillMs = performance.now() - start;
  await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
  await waitUntilReplicated(client);

  const serverId = await ownerOf(client, 'bench-recovery');
  const index = cluster.indexOf(serverId);
  invariant(index !== undefined, 'the owner of the table runs in this cluster');
  const usage = new ProcessUsage(
    cluster.processes().flatMap(({ name, pid }) => (pid === undefined ? [] : [{ name, pid }])),
  );
  const killedAtMs = Date.now();
  await cluster.killServer(index, 'SIGKILL');
  const unavailable = await probeKeys(table, dataset, SEED, RECOVERY_TIMEOUT_MS);
  const report = await waitForRecovery(client, serverId, RECOVERY_TIMEOUT_MS);
  await waitUntilReplicated(client);
  const fullyReplicatedMs = Date.now() - killedAtMs;
  usage.stop();

  const wrong = await countWrong(table, dataset);
  await waitUntilWhole(client, servers - 1, RECOVERY_TIMEOUT_MS);
  const { cpuMs } = usage.between(killedAtMs, killedAtMs + fullyReplicatedMs);
  return {
    ...{ dataset, report, unavailable, memoryBytes, fillMs, fullyReplicatedMs, wrong },
    timeline: timelineOf(report, killedAtMs, usage),
    servedMs: servedAtMs(report) - killedAtMs,
    cpuSeconds: cpuMs / 1000,
  };
}

async function ownerOf(client: Client, name: string): Promise<number> {
  const table = (await client.listTables()).find((each) => each.name === name);
  const serverId = table?.tablets[0]?.serverId;
  invariant(serverId !== undefined, 'a created table has an owner');
  return serverId;
}

/** No master misses a replica or has one on its way. */
async function waitUntilReplicated(client: Client): Promise<void> {
  await waitFor('all segments on three backups', RECOVERY_TIMEOUT_MS, async () => {
    const servers = await serverStats(client);
    const whole = servers.every(
      ({ master }) =>
        master === null || (master.segmentsRecovering === 0 && master.backupWritesInFlight === 0),
    );
    return whole ? true : undefined;
  });
}

/** When the last tablet changed its owner: all phases but the release. */
function servedAtMs({ startedAtMs, phases }: RecoveryReport): number {
  const ms = phases.reduce((sum, each) => sum + (each.phase === 'release' ? 0 : each.ms), 0);
  return startedAtMs + ms;
}

function gigabytes({ dataset }: Outcome): number {
  return (dataset.count * dataset.valueBytes) / 1e9;
}

function metricsOf(suffix: string, outcome: Outcome, redis?: RedisRestartTimes): Metric[] {
  const { unavailable, servedMs, fullyReplicatedMs, cpuSeconds, dataset, wrong } = outcome;
  const named = (name: string, unit: string, value: number, higherIsBetter = false): Metric =>
    metric(`${name}-${suffix}`, unit, value, higherIsBetter);
  const again = (store: string) => ({ work: `served again, ${suffix}`, store });
  const metrics: Metric[] = [
    named('unavailable-min-ms', 'ms', unavailable.minMs),
    named('unavailable-p50-ms', 'ms', unavailable.p50Ms),
    named('unavailable-max-ms', 'ms', unavailable.maxMs),
    { ...named('served-ms', 'ms', servedMs), ...again('rekindle') },
    named('fully-replicated-ms', 'ms', fullyReplicatedMs),
    named('recovery-gbps', 'GB/s', gigabytes(outcome) / (servedMs / 1000), true),
    named('recovery-objects-per-s', '1/s', dataset.count / (servedMs / 1000), true),
    named('cpu-seconds-per-gb', 's/GB', cpuSeconds / gigabytes(outcome)),
    ...outcome.timeline.phases.flatMap(({ number, usage }) => [
      named(`phase-${number}-ms`, 'ms', usage.ms),
      named(`phase-${number}-cpu-seconds-per-gb`, 's/GB', usage.cpuMs / 1000 / gigabytes(outcome)),
    ]),
    named('wrong-objects', '1', wrong),
  ];
  if (redis === undefined) return metrics;
  const { aofMs, aofRewrittenMs, rdbMs } = redis;
  return [
    ...metrics,
    { ...named('redis-aof-restart-ms', 'ms', aofMs), ...again('redis, AOF') },
    {
      ...named('redis-aof-rewritten-restart-ms', 'ms', aofRewrittenMs),
      ...again('redis, AOF rewritten'),
    },
    { ...named('redis-rdb-restart-ms', 'ms', rdbMs), ...again('redis, RDB') },
    named('vs-redis-aof-restart', 'x', aofMs / servedMs, true),
    named('vs-redis-aof-rewritten-restart', 'x', aofRewrittenMs / servedMs, true),
    named('vs-redis-rdb-restart', 'x', rdbMs / servedMs, true),
  ];
}

function textOf(
  { servers, durability }: RecoveryBenchOptions,
  outcome: Outcome,
  redis: RedisRestartTimes | undefined,
): string {
  const { dataset, report, unavailable, servedMs, fullyReplicatedMs, wrong } = outcome;
  const { memoryBytes, fillMs, timeline, cpuSeconds } = outcome;
  const rate = gigabytes(outcome) / (servedMs / 1000);
  const lines = [
    `bench recovery: ${describe(dataset)} on one master of ${servers}, R = 3, ${durability}, ` +
      `${formatBytes(memoryBytes)} a server, filled in ${formatMs(fillMs)}`,
    recoveryTable(report),
    timelineText(timeline),
    usageTable(timeline),
    `since the kill: first key ${formatMs(unavailable.minMs)}, median key ` +
      `${formatMs(unavailable.p50Ms)}, last key ${formatMs(unavailable.maxMs)}, all tablets ` +
      `served ${formatMs(servedMs)} (${rate.toFixed(2)} GB/s of values), three copies of ` +
      `everything ${formatMs(fullyReplicatedMs)}, CPU ${cpuSeconds.toFixed(1)} s`,
    wrong === 0
      ? `all ${formatCount(dataset.count)} objects are right`
      : `${wrong} OBJECTS ARE WRONG`,
  ];
  if (redis !== undefined) {
    const { aofMs, aofRewrittenMs, rdbMs } = redis;
    const times = (ms: number): string => `${formatMs(ms)} (${(ms / servedMs).toFixed(1)} ×)`;
    lines.push(
      `redis, the same data, started at once: AOF as written ${times(aofMs)}, rewritten ` +
        `${times(aofRewrittenMs)}, RDB ${times(rdbMs)}; times all tablets served in brackets`,
    );
  }
  return lines.join('\n');
}

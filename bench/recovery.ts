/**
 * `rekindle bench recovery`: one master of five holds all the data, dies of SIGKILL, and the
 * others take over. Shows the phases, the rates, and what a client noticed: the longest time in
 * which a probe that reads every few milliseconds got no answer.
 *
 * The servers first touch their memory, as servers have that run for a while. After the recovery
 * every object is read and compared.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type Client, connect, type Table } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { formatBytes, formatCount, formatMs } from '../src/ops/text-table.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import type { Durability, RecoveryReport } from '../src/rpc/messages.js';
import { waitForRecovery, waitUntilTouched, waitUntilWhole } from './cluster-health.js';
import { Dataset } from './dataset.js';
import { countWrong, writeDataset } from './dataset-transfer.js';
import { megabytesPerSecond, objectsPerSecond, recoveryTable } from './recovery-table.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';

export interface RecoveryBenchOptions extends BenchOptions {
  /** Bytes of values on the master that dies. */
  bytes: number;
  valueBytes: number;
  servers: number;
  durability: Durability;
}

const SEGMENT_BYTES = 8 * 2 ** 20;
const PROBE_INTERVAL_MS = 5;
const RECOVERY_TIMEOUT_MS = 180_000;
const TOUCH_TIMEOUT_MS = 120_000;
/** Room for entry headers, keys, hash table, and for what a recovery master takes over. */
const MEMORY_FACTOR = 1.75;

export async function runRecoveryBench(options: RecoveryBenchOptions): Promise<BenchResult> {
  const memoryBytes =
    Math.ceil((options.bytes * MEMORY_FACTOR) / SEGMENT_BYTES) * SEGMENT_BYTES + 128 * 2 ** 20;
  await using cluster = await LocalCluster.start({
    servers: options.servers,
    replicas: 3,
    durability: options.durability,
    memoryBytes,
  });
  await using client = await connect(cluster.url, { timeoutMs: 60_000 });
  const table = await client.createTable('bench-recovery', { span: 1 });
  const count = Math.floor(options.bytes / options.valueBytes);
  const dataset = new Dataset('object', count, options.valueBytes);
  const start = performance.now();
  await writeDataset(table, dataset);
  const fillMs = performance.now() - start;
  await waitUntilTouched(client, TOUCH_TIMEOUT_MS);

  const serverId = await ownerOf(client, 'bench-recovery');
  const index = cluster.indexOf(serverId);
  invariant(index !== undefined, 'the owner of the table runs in this cluster');
  const probe = new Probe(table, dataset.key(0));
  await probe.firstAnswer();
  await cluster.killServer(index, 'SIGKILL');
  const report = await waitForRecovery(client, serverId, RECOVERY_TIMEOUT_MS);
  await probe.answerAfterNow();
  const unavailableMs = await probe.stop();

  const wrong = await countWrong(table, dataset);
  await waitUntilWhole(client, options.servers - 1, RECOVERY_TIMEOUT_MS);
  return result(options, { report, fillMs, unavailableMs, wrong, count, memoryBytes });
}

async function ownerOf(client: Client, name: string): Promise<number> {
  const table = (await client.listTables()).find((each) => each.name === name);
  const serverId = table?.tablets[0]?.serverId;
  invariant(serverId !== undefined, 'a created table has an owner');
  return serverId;
}

/** Reads one key again and again and keeps the longest time between two answers. */
class Probe {
  #stopped = false;
  #answers = 0;
  #longestMs = 0;
  #failure: unknown;
  readonly #done: Promise<void>;

  constructor(table: Table, key: string) {
    this.#done = this.#loop(table, key);
    // Rejections surface at `stop`; until then they must not count as unhandled.
    this.#done.catch((error: unknown) => {
      this.#failure = error;
    });
  }

  async #loop(table: Table, key: string): Promise<void> {
    let lastAnswer = performance.now();
    while (!this.#stopped) {
      await table.get(key, { timeoutMs: RECOVERY_TIMEOUT_MS });
      const now = performance.now();
      this.#longestMs = Math.max(this.#longestMs, now - lastAnswer);
      lastAnswer = now;
      this.#answers++;
      await delay(PROBE_INTERVAL_MS);
    }
  }

  async firstAnswer(): Promise<void> {
    await this.#atLeast(1);
    this.#longestMs = 0;
  }

  async answerAfterNow(): Promise<void> {
    await this.#atLeast(this.#answers + 2);
  }

  async #atLeast(answers: number): Promise<void> {
    const end = performance.now() + RECOVERY_TIMEOUT_MS;
    while (this.#answers < answers) {
      if (this.#failure !== undefined) throw this.#failure;
      if (performance.now() > end) throw new RekindleError('TIMEOUT', 'the probe got no answer');
      await delay(PROBE_INTERVAL_MS);
    }
  }

  async stop(): Promise<number> {
    this.#stopped = true;
    await this.#done;
    return this.#longestMs;
  }
}

interface Outcome {
  report: RecoveryReport;
  fillMs: number;
  unavailableMs: number;
  wrong: number;
  count: number;
  memoryBytes: number;
}

function result(options: RecoveryBenchOptions, outcome: Outcome): BenchResult {
  const { report, fillMs, unavailableMs, wrong, count, memoryBytes } = outcome;
  const text = [
    `bench recovery: ${formatCount(count)} objects of ${options.valueBytes} B on one master of ` +
      `${options.servers}, R = 3, ${options.durability}, ${formatBytes(memoryBytes)} a server`,
    machineLine(),
    `filled in ${formatMs(fillMs)}`,
    '',
    recoveryTable(report),
    `a reading client went without an answer for ${formatMs(unavailableMs)} at most`,
    wrong === 0 ? `all ${formatCount(count)} objects are right` : `${wrong} OBJECTS ARE WRONG`,
  ].join('\n');
  const { bytes, valueBytes, servers, durability, quick } = options;
  return {
    name: 'recovery',
    parameters: { bytes, valueBytes, servers, durability, quick, replicas: 3 },
    metrics: [
      metric('recovery total', 'ms', report.totalMs),
      ...report.phases.map((each) => metric(`phase ${each.number} ${each.phase}`, 'ms', each.ms)),
      metric('recovery throughput', 'MB/s', megabytesPerSecond(report), true),
      metric('recovery objects', '1/s', objectsPerSecond(report), true),
      metric('unavailable to a client', 'ms', unavailableMs),
      metric('wrong objects', '1', wrong),
    ],
    text,
    passed: wrong === 0,
  };
}

/**
 * `rekindle bench profile`: where the microseconds of a read and of a write go, on the servers and
 * in the client. Servers are sampled with perf, whose maps name compiled JavaScript; the client,
 * this process, with V8's own profilers of time and of allocations.
 *
 * Rule: samples only divide what the kernel says a process has used: the sum of a column is
 * processor time, and includes what sampling itself costs. No peer and no target:
 * docs/profiles.md reads it.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { Session } from 'node:inspector/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { connect, type Table } from '../src/client/index.js';
import {
  killAtExit,
  makeTemporaryFolder,
  removeTemporaryFolder,
} from '../src/cluster/left-behind.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { RekindleError } from '../src/rpc/errors.js';
import { waitUntilTouched } from './cluster-health.js';
import { repeatFor } from './concurrency.js';
import { Dataset, randomStream } from './dataset.js';
import { PERF_FIELDS, placeOf, readSamples, scriptsOf } from './perf-samples.js';
import { processorMsOf } from './process-usage.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';

export type ProfileWork = 'get' | 'put' | 'durable-put';
export const PROFILE_WORKS: readonly ProfileWork[] = ['get', 'put', 'durable-put'];

export interface ProfileBenchOptions extends BenchOptions {
  work: ProfileWork;
  inFlight: number;
}

/** Microseconds an operation, by place. */
type Column = Map<string, number>;

interface ServerProfile {
  /** By role. */
  columns: Map<string, Column>;
  /** Of the process that has the table, by function, with all that it calls. */
  functions: Column;
  operations: number;
}

const OBJECTS = 20_000;
const VALUE_BYTES = 100;
const MEMORY_BYTES = 512 * 2 ** 20;
const TOUCH_TIMEOUT_MS = 120_000;
const SAMPLES_PER_SECOND = 4_999;
const CLIENT_SAMPLE_US = 200;
const ALLOCATION_SAMPLE_BYTES = 4_096;
const FUNCTIONS_SHOWN = 16;
const value = Buffer.alloc(VALUE_BYTES, 'v');

type Load = (ms: number) => Promise<number>;

export async function runProfileBench(options: ProfileBenchOptions): Promise<BenchResult> {
  const { work, inFlight, quick } = options;
  if (spawnSync('perf', ['--version'], { stdio: 'ignore' }).status !== 0) {
    const missing = "perf is missing: Debian's package linux-perf has it";
    throw new RekindleError('INVALID_ARGUMENT', missing);
  }
  const durable = work === 'durable-put';
  const cluster = await LocalCluster.start({
    ...{ servers: durable ? 4 : 1, replicas: durable ? 3 : 0, memoryBytes: MEMORY_BYTES },
    durability: durable ? 'fsync' : 'replicated',
    environment: { NODE_OPTIONS: '--perf-basic-prof' },
  });
  try {
    await using client = await connect(cluster.url, { timeoutMs: 30_000 });
    await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
    const load = loadOf(await client.createTable('profile'), work, inFlight);
    await load(quick ? 6_000 : 20_000);
    const ms = quick ? 2_000 : 6_000;
    const servers = await profileServers(cluster.processes(), () => load(ms));
    const clientColumn = await profileClient(() => load(ms));
    const allocated = await allocatedBytes(() => load(ms));
    return result(options, servers, clientColumn, allocated);
  } finally {
    await cluster.stop();
  }
}

/** Runs for so many ms; how many operations that were. */
function loadOf(table: Table, work: ProfileWork, inFlight: number): Load {
  const dataset = new Dataset('object', OBJECTS, VALUE_BYTES);
  const random = randomStream(1);
  return async (ms) => {
    const rate = await repeatFor(ms, inFlight, async () => {
      const key = dataset.key(random() % dataset.count);
      await (work === 'get' ? table.get(key) : table.put(key, value));
      return 1;
    });
    return rate.operations;
  };
}

function add(column: Column, name: string, amount: number): void {
  column.set(name, (column.get(name) ?? 0) + amount);
}

async function profileServers(
  processes: readonly { name: string; pid: number | undefined }[],
  load: () => Promise<number>,
): Promise<ServerProfile> {
  const pids = processes.flatMap(({ name, pid }) =>
    name.startsWith('server') && pid !== undefined ? [pid] : [],
  );
  const folder = makeTemporaryFolder('rekindle-profile-');
  try {
    const file = join(folder, 'perf.data');
    const sampling = ['-F', `${SAMPLES_PER_SECOND}`, '-g', '-p', pids.join(','), '-o', file];
    const perf = spawn('perf', ['record', ...sampling], { stdio: 'ignore' });
    killAtExit(perf);
    const ended = once(perf, 'exit');
    const before = pids.map((pid) => processorMsOf([pid]));
    const operations = await load();
    const usedMs = pids.map((pid, index) => processorMsOf([pid]) - (before[index] ?? 0));
    perf.kill('SIGINT');
    await ended;
    const usedUs = new Map(pids.map((pid, index) => [pid, (usedMs[index] ?? 0) * 1_000]));
    return await divide(file, usedUs, operations);
  } finally {
    removeTemporaryFolder(folder);
  }
}

/** Gives the time that each process has used to the places where its samples lie. */
async function divide(
  file: string,
  usedUs: ReadonlyMap<number, number>,
  operations: number,
): Promise<ServerProfile> {
  const master = [...usedUs].reduce((most, each) => (each[1] > most[1] ? each : most))[0];
  const places = new Map<number, Column>([...usedUs.keys()].map((pid) => [pid, new Map()]));
  const counts: Column = new Map();
  const perf = spawn('perf', ['script', '-i', file, '-F', PERF_FIELDS], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  const ended = once(perf, 'exit');
  for await (const sample of readSamples(createInterface({ input: perf.stdout }))) {
    add(places.get(sample.pid) ?? new Map(), placeOf(sample), 1);
    if (sample.pid !== master || sample.tid !== sample.pid) continue;
    for (const name of scriptsOf(sample)) add(counts, name, 1);
  }
  const [code] = (await ended) as [number | null];
  const samples = sum(places.get(master) ?? new Map());
  if (code !== 0 || samples === 0) {
    throw new RekindleError('INTERNAL', `perf script has ended with ${code}, ${samples} samples`);
  }
  const columns = new Map<string, Column>();
  const backups = usedUs.size - 1;
  for (const [pid, column] of places) {
    const role = pid === master ? 'server' : 'a backup';
    const total = columns.get(role) ?? new Map<string, number>();
    columns.set(role, total);
    const each = (usedUs.get(pid) ?? 0) / operations / Math.max(1, sum(column));
    for (const [place, count] of column) {
      add(total, place, (count * each) / (pid === master ? 1 : backups));
    }
  }
  const each = (usedUs.get(master) ?? 0) / operations / samples;
  const functions = new Map([...counts].map(([name, count]) => [name, count * each] as const));
  return { columns, functions, operations };
}

function sum(column: Column): number {
  return [...column.values()].reduce((total, each) => total + each, 0);
}

/** Of this process, by V8's sampling profiler: the same as `node --cpu-prof`. */
async function profileClient(load: () => Promise<number>): Promise<Column> {
  const session = new Session();
  session.connect();
  await session.post('Profiler.enable');
  await session.post('Profiler.setSamplingInterval', { interval: CLIENT_SAMPLE_US });
  await session.post('Profiler.start');
  const before = process.cpuUsage();
  const operations = await load();
  const { user, system } = process.cpuUsage(before);
  const { profile } = await session.post('Profiler.stop');
  session.disconnect();
  const samples: Column = new Map();
  for (const { callFrame, hitCount = 0 } of profile.nodes) {
    const { functionName, url } = callFrame;
    if (functionName !== '(idle)' && functionName !== '(root)') {
      add(samples, clientPlace(functionName, url), hitCount);
    }
  }
  const each = (user + system) / operations / Math.max(1, sum(samples));
  return new Map([...samples].map(([place, count]) => [place, count * each]));
}

function clientPlace(functionName: string, url: string): string {
  if (functionName === '(garbage collector)') return 'garbage collection';
  if (functionName === '(program)') return 'kernel, Node, libuv, V8';
  if (url.startsWith('node:')) return 'JavaScript of Node';
  const part = /\/build\/(bench|src\/\w+)\//.exec(url)?.[1];
  return part === undefined ? 'native functions and builtins' : `JavaScript of ${part}`;
}

/** Bytes of this process's heap that an operation allocates, by where. */
async function allocatedBytes(load: () => Promise<number>): Promise<Column> {
  const session = new Session();
  session.connect();
  await session.post('HeapProfiler.startSampling', {
    samplingInterval: ALLOCATION_SAMPLE_BYTES,
    includeObjectsCollectedByMajorGC: true,
    includeObjectsCollectedByMinorGC: true,
  });
  const operations = await load();
  const { profile } = await session.post('HeapProfiler.stopSampling');
  session.disconnect();
  const bytes: Column = new Map();
  const nodes = [profile.head];
  for (let node = nodes.pop(); node !== undefined; node = nodes.pop()) {
    const { functionName, url } = node.callFrame;
    if (node.selfSize > 0) add(bytes, clientPlace(functionName, url), node.selfSize / operations);
    nodes.push(...node.children);
  }
  return bytes;
}

function result(
  options: ProfileBenchOptions,
  { columns, functions, operations }: ServerProfile,
  client: Column,
  allocated: Column,
): BenchResult {
  const { work, inFlight, quick } = options;
  const roles = [...columns].sort(([a], [b]) => (a === 'server' ? -1 : b === 'server' ? 1 : 0));
  const places = [...new Set(roles.flatMap(([, column]) => [...column.keys()]))];
  const weight = (place: string): number =>
    roles.reduce((total, [, column]) => total + (column.get(place) ?? 0), 0);
  places.sort((a, b) => weight(b) - weight(a));
  const shown = (figure: number | undefined): string => (figure ?? 0).toFixed(2);
  const server = places.map((place) => [place, ...roles.map(([, each]) => shown(each.get(place)))]);
  const sorted = (column: Column): [string, number][] => [...column].sort(([, a], [, b]) => b - a);
  const pairs = (column: Column): string[][] =>
    sorted(column).map(([name, figure]) => [name, shown(figure)]);
  const text = [
    `bench profile: ${work} of ${VALUE_BYTES} B, ${inFlight} in flight, ` +
      `${formatCount(operations)} operations while servers were sampled`,
    machineLine(),
    '',
    textTable(
      ['servers, µs of processor an operation', ...roles.map(([role]) => role)],
      [...server, ['sum', ...roles.map(([, column]) => shown(sum(column)))]],
    ),
    '',
    textTable(
      ['functions of the server, with what they call', 'µs'],
      pairs(new Map(sorted(functions).slice(0, FUNCTIONS_SHOWN))),
    ),
    '',
    textTable(
      ['client, µs of processor an operation', ''],
      [...pairs(client), ['sum', shown(sum(client))]],
    ),
    '',
    textTable(['client, bytes allocated an operation', ''], pairs(allocated)),
  ].join('\n');
  const metrics = [
    ...roles.map(([role, column]) => metric(`${work}, ${role}`, 'µs', sum(column))),
    ...roles.flatMap(([role, column]) =>
      [...column].map(([place, us]) => metric(`${work}, ${role}: ${place}`, 'µs', us)),
    ),
    metric(`${work}, client`, 'µs', sum(client)),
    ...[...client].map(([place, us]) => metric(`${work}, client: ${place}`, 'µs', us)),
    metric(`${work}, client: allocated`, 'B', sum(allocated)),
  ];
  return { name: 'profile', parameters: { work, inFlight, quick }, metrics, text, passed: true };
}

/**
 * `rekindle bench faults`: random schedules of faults (fault-schedule.ts), each against a cluster
 * of its own under checked load. Schedule i has the seed `seed + i`, which alone draws it
 * again.
 *
 * After the last fault everything is made good, what has ended is started again, and then: the
 * cluster is whole within a minute, nothing that was acknowledged is missing, nothing read was
 * stale, and no process has ended in a way that is not one of its own (a master that was declared
 * dead, a coordinator that could not commit).
 */
import { randomInt } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Client, connect } from '../src/client/index.js';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import type { ProcessExit } from '../src/cluster/managed-process.js';
import { startProgress } from '../src/ops/progress.js';
import { formatMs, textTable } from '../src/ops/text-table.js';
import { asRekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { CheckedLoad, type CheckedLoadShape } from './checked-load.js';
import { waitUntilWhole } from './cluster-health.js';
import { DiskLayer, diskLayerLibrary } from './disk-layer.js';
import { FaultFiles } from './fault-files.js';
import {
  COORDINATOR_TARGET,
  describeEvent,
  drawSchedule,
  type FaultEvent,
  type Harm,
} from './fault-schedule.js';
import { Network } from './network.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';

export interface FaultsOptions extends BenchOptions {
  schedules: number;
  /** Default: drawn, and printed. */
  seed: number | undefined;
  servers: number;
  durability: Durability;
  memoryBytes: number;
  /** Put the disk layer under all processes; needs cargo and a source checkout. */
  disk: boolean;
  /** Give each process a network namespace; needs root. */
  network: boolean;
}

/** Leaves the processor to the processes that start again: a schedule is to be short. */
const LOAD: CheckedLoadShape = {
  writers: 12,
  keysPerWriter: 16,
  readers: 4,
  valueBytesMax: 16_000,
  writePauseMs: 8,
  readPauseMs: 4,
};
const OPERATION_TIMEOUT_MS = 60_000;
const WHOLE_TIMEOUT_MS = 60_000;
/** Of frames on disk (docs/formats.md §4). */
const SLOTS_BYTES = 16_384;
const FRAME_BYTES = SLOTS_BYTES + 2 ** 23;
const ROT_AT = SLOTS_BYTES + 5_000;

/** Ends that a process may choose for itself. */
const OWN_ENDS: Record<'coordinator' | 'server', readonly number[]> = {
  coordinator: [2],
  server: [3],
};

interface World {
  directory: string;
  cluster: LocalCluster;
  client: Client;
  load: CheckedLoad;
  files: FaultFiles;
  layer: DiskLayer | undefined;
  network: Network | null;
  exits: ProcessExit[];
}

interface Outcome {
  seed: number;
  events: FaultEvent[];
  /** Empty: all was as it must be. */
  failures: string[];
  acknowledged: number;
  reads: number;
  longestMs: number;
  wholeMs: number;
}

export async function runFaults(options: FaultsOptions): Promise<BenchResult> {
  const first = options.seed ?? randomInt(2 ** 30);
  process.stderr.write(`faults: seeds from ${first}\n`);
  const library = options.disk ? diskLayerLibrary() : undefined;
  const outcomes: Outcome[] = [];
  const start = performance.now();
  const progress = startProgress('faults', options.schedules, 'schedules');
  for (let index = 0; index < options.schedules; index++) {
    const outcome = await playSchedule(options, first + index, library);
    outcomes.push(outcome);
    const failed = outcome.failures.length > 0;
    progress.advance(1, failed ? undefined : describeSuccess(outcome));
    if (failed) process.stderr.write(`${describeFailure(outcome, options)}\n`);
  }
  progress.stop();
  return result(options, first, outcomes, performance.now() - start);
}

async function playSchedule(
  options: FaultsOptions,
  seed: number,
  library: string | undefined,
): Promise<Outcome> {
  const world = await begin(options, seed, library);
  const shape = { ...options, network: world.network !== null };
  const events = drawSchedule(seed, shape);
  const failures: string[] = [];
  let wholeMs = 0;
  try {
    world.load.start();
    await Promise.all(events.map((event) => playEvent(world, event)));
    const healedMs = performance.now();
    await makeGood(world);
    await waitUntilWhole(world.client, world.cluster.serverCount, WHOLE_TIMEOUT_MS);
    wholeMs = performance.now() - healedMs;
    await world.load.stop();
    await world.load.readAll();
  } catch (error) {
    failures.push(`${asRekindleError(error).message.split('\n')[0]}${await waitedFor(world)}`);
    failures.push(world.cluster.logTails(25));
  }
  failures.push(...world.load.checker.violations, ...unexpectedExits(world));
  const { writesAcknowledged, reads } = world.load.checker;
  const { longestMs } = world.load;
  await finish(world);
  return { seed, events, failures, acknowledged: writesAcknowledged, reads, longestMs, wholeMs };
}

async function begin(
  options: FaultsOptions,
  seed: number,
  library: string | undefined,
): Promise<World> {
  const { servers, durability, memoryBytes } = options;
  const directory = makeTemporaryFolder('rekindle-faults-');
  const files = new FaultFiles(directory);
  const layer = library === undefined ? undefined : new DiskLayer(library, directory);
  const names = ['coordinator', ...Array.from({ length: servers }, (_, i) => `server-${i + 1}`)];
  const network = options.network ? Network.create(names) : null;
  const exits: ProcessExit[] = [];
  const cluster = await LocalCluster.create({
    ...{ dataDirectory: directory, servers, durability, memoryBytes, replicas: 3 },
    onUnexpectedExit: (exit) => exits.push(exit),
    environmentOf: (name) => ({ ...files.environmentOf(name), ...layer?.environmentOf(name) }),
    ...(network === null ? {} : { placement: (name: string) => network.placement(name) }),
  });
  try {
    await cluster.startAll();
    const client = await connect(cluster.url, { timeoutMs: OPERATION_TIMEOUT_MS });
    const table = await client.createTable('faults', { span: 3 * servers });
    const load = new CheckedLoad(table, LOAD, seed);
    return { directory, cluster, client, load, files, layer, network, exits };
  } catch (error) {
    await cluster.stop();
    network?.close();
    throw error;
  }
}

async function finish({ directory, cluster, client, load, network }: World): Promise<void> {
  load.end();
  await client.close();
  await cluster.stop();
  network?.close();
  removeTemporaryFolder(directory);
}

const nameOf = (target: number): string =>
  target === COORDINATOR_TARGET ? 'coordinator' : `server-${target + 1}`;

function isRunning({ cluster }: World, target: number): boolean {
  return target === COORDINATOR_TARGET ? cluster.coordinatorIsRunning() : cluster.isRunning(target);
}

async function playEvent(
  world: World,
  { atMs, lastsMs, harm, targets }: FaultEvent,
): Promise<void> {
  await delay(atMs);
  const begun: number[] = [];
  for (const target of targets) {
    // A process may have ended of what was done before.
    if (!isRunning(world, target)) continue;
    await beginHarm(world, harm, target);
    begun.push(target);
  }
  if (harm.kind === 'split' && begun.length === 2) world.network?.split(begun.map(nameOf));
  await delay(lastsMs);
  for (const target of begun) await endHarm(world, harm, target);
}

async function beginHarm(world: World, harm: Harm, target: number): Promise<void> {
  const { cluster, files, layer, network } = world;
  switch (harm.kind) {
    case 'kill':
      if (target === COORDINATOR_TARGET) await cluster.killCoordinator('SIGKILL');
      else await cluster.killServer(target, 'SIGKILL');
      return;
    case 'pause':
      if (target === COORDINATOR_TARGET) cluster.pauseCoordinator();
      else cluster.pauseServer(target);
      return;
    case 'disk':
      layer?.setFault(nameOf(target), harm.fault);
      return;
    case 'messages':
      await files.arm(nameOf(target), harm.faults);
      return;
    case 'rot':
      rot(join(world.directory, nameOf(target), 'backup', 'frames'));
      return;
    case 'cut':
      network?.cut(nameOf(target));
      return;
    case 'split':
  }
}

async function endHarm(world: World, harm: Harm, target: number): Promise<void> {
  const { cluster, files, layer, network } = world;
  switch (harm.kind) {
    case 'kill':
      await startAgain(world, target);
      return;
    case 'pause':
      if (!isRunning(world, target)) return;
      if (target === COORDINATOR_TARGET) cluster.resumeCoordinator();
      else cluster.resumeServer(target);
      return;
    case 'disk':
      layer?.setFault(nameOf(target), {});
      return;
    case 'messages':
      files.disarm(nameOf(target));
      return;
    case 'cut':
    case 'split':
      network?.join(nameOf(target));
      return;
    case 'rot':
  }
}

/** What does not start while other faults last is started when they are over. */
async function startAgain({ cluster, files }: World, target: number): Promise<void> {
  files.disarm(nameOf(target));
  try {
    if (target === COORDINATOR_TARGET) await cluster.restartCoordinator();
    else if (cluster.coordinatorIsRunning()) await cluster.restartServer(target);
  } catch (error) {
    const [message] = asRekindleError(error).message.split('\n');
    process.stderr.write(`${nameOf(target)} is started later: ${message}\n`);
  }
}

/** All faults are over; starts what has ended, also of those that end only now. */
async function makeGood(world: World): Promise<void> {
  const { cluster, files, client } = world;
  const end = performance.now() + WHOLE_TIMEOUT_MS;
  for (;;) {
    for (const { name, pid } of cluster.processes()) if (pid === undefined) files.disarm(name);
    await cluster.startAll();
    const status = await client.status();
    const up = status.servers.filter((server) => server.status === 'up').length;
    const running = cluster.processes().every(({ pid }) => pid !== undefined);
    if (running && up >= cluster.serverCount) return;
    if (performance.now() > end) return;
    await delay(200);
  }
}

/** Flips a byte in the data of every frame that is there. */
function rot(path: string): void {
  const frames = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  for (let at = ROT_AT; readSync(frames, byte, 0, 1, at) === 1; at += FRAME_BYTES) {
    byte.writeUInt8(byte.readUInt8() ^ 1);
    writeSync(frames, byte, 0, 1, at);
  }
  fsyncSync(frames);
  closeSync(frames);
}

function unexpectedExits({ exits }: World): string[] {
  return exits
    .filter(({ name, code }) => {
      const own = OWN_ENDS[name === 'coordinator' ? 'coordinator' : 'server'];
      return code === null || !own.includes(code);
    })
    .map(({ name, code, signal }) => `${name} ended with ${signal ?? `code ${code}`}`);
}

async function waitedFor({ client }: World): Promise<string> {
  try {
    const { recoveries, servers } = await client.status({ timeoutMs: 2_000 });
    const running = recoveries.filter(({ state }) => state !== 'done');
    const up = servers.filter(({ status }) => status === 'up').length;
    return `; ${up} servers up; running: ${JSON.stringify(running)}`;
  } catch (error) {
    return `; no status: ${(error as Error).message}`;
  }
}

function repeatCommand(options: FaultsOptions, seed: number, schedules: number): string {
  const { servers, durability, memoryBytes, disk, network } = options;
  return (
    `rekindle bench faults --schedules ${schedules} --seed ${seed} --servers ${servers} ` +
    `--memory ${memoryBytes / 2 ** 20}MB --durability ${durability}` +
    `${disk ? '' : ' --no-disk'}${network ? ' --network' : ''}`
  );
}

function describeSuccess({
  seed,
  events,
  acknowledged,
  reads,
  longestMs,
  wholeMs,
}: Outcome): string {
  return (
    `seed ${seed}: ${events.length} faults, ${acknowledged} writes and ${reads} reads right, ` +
    `the longest took ${formatMs(longestMs)}; whole ${formatMs(wholeMs)} after the last fault`
  );
}

function describeFailure({ seed, events, failures }: Outcome, options: FaultsOptions): string {
  return [
    `FAILED: schedule of seed ${seed}`,
    ...events.map((event) => `  ${describeEvent(event)}`),
    ...failures.slice(0, 30).map((failure) => `  ${failure}`),
    `repeat with: ${repeatCommand(options, seed, 1)}`,
  ].join('\n');
}

function result(
  options: FaultsOptions,
  first: number,
  outcomes: readonly Outcome[],
  totalMs: number,
): BenchResult {
  const { schedules, servers, durability, memoryBytes, disk, network, quick } = options;
  const failed = outcomes.filter(({ failures }) => failures.length > 0);
  const sum = (of: (outcome: Outcome) => number): number =>
    outcomes.reduce((total, outcome) => total + of(outcome), 0);
  const max = (of: (outcome: Outcome) => number): number => Math.max(0, ...outcomes.map(of));
  const kinds = new Map<string, number>();
  for (const { harm } of outcomes.flatMap(({ events }) => events)) {
    kinds.set(harm.kind, (kinds.get(harm.kind) ?? 0) + 1);
  }
  const rows: [string, number | string][] = [
    ['schedules', outcomes.length],
    ...[...kinds].map(([kind, count]): [string, number] => [`faults: ${kind}`, count]),
    ['acknowledged writes', sum(({ acknowledged }) => acknowledged)],
    ['checked reads', sum(({ reads }) => reads)],
    ['longest operation', formatMs(max(({ longestMs }) => longestMs))],
    ['longest from the last fault to whole', formatMs(max(({ wholeMs }) => wholeMs))],
    ['schedules that failed', failed.length],
  ];
  const text = [
    `bench faults: ${servers} servers, R = 3, ${durability}, ${formatMs(totalMs)}`,
    machineLine(),
    '',
    textTable(['', ''], rows),
    ...failed.map((outcome) => describeFailure(outcome, options)),
    failed.length === 0 ? 'nothing was lost, nothing read was stale' : 'FAILED',
    `repeat with: ${repeatCommand(options, first, schedules)}`,
  ].join('\n');
  return {
    name: 'faults',
    parameters: {
      ...{ schedules, seed: first, servers, durability, memoryBytes, disk, network, quick },
    },
    metrics: [
      metric('schedules failed', '1', failed.length),
      metric(
        'acknowledged writes',
        '1',
        sum(({ acknowledged }) => acknowledged),
        true,
      ),
      metric(
        'longest operation',
        'ms',
        max(({ longestMs }) => longestMs),
      ),
      metric(
        'longest from the last fault to whole',
        'ms',
        max(({ wholeMs }) => wholeMs),
      ),
    ],
    text,
    passed: failed.length === 0,
  };
}

/**
 * A cluster under checked load to which one case after the other of the catalogue is done: arm a
 * process, bring it to the step, see that the fault strikes, start again what has ended, and look
 * whether the cluster is whole and nothing that was acknowledged is missing.
 *
 * Processes are armed while they run, by a file of each (REKINDLE_FAULT_FILE), and disarmed before
 * anything is started again. A case that goes wrong costs the lane its cluster: the next case gets
 * a new one.
 *
 * With a standby, the state is in etcd, and a coordinator that has ended is started again only when
 * the other one has made the cluster whole.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { CheckedLoad, type CheckedLoadShape, LIGHT_LOAD } from '../../bench/checked-load.js';
import { serverStats, waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { type DiskFault, DiskLayer, diskLayerLibrary } from '../../bench/disk-layer.js';
import { EtcdCluster } from '../../bench/etcd.js';
import { FaultFiles, untilTrue } from '../../bench/fault-files.js';
import { type Client, connect } from '../../src/client/index.js';
import { LocalCluster } from '../../src/cluster/local-cluster.js';
import type { ProcessExit } from '../../src/cluster/managed-process.js';
import { inspectFrameFile } from '../../src/ops/inspector/frame-file.js';
import { RekindleError } from '../../src/rpc/errors.js';
import { hashKey } from '../../src/rpc/key-hash.js';
import type { SlotRange } from '../../src/rpc/messages.js';
import type { Case, Provocation } from './catalogue.js';

/** Several lanes share the machine: with LIGHT_LOAD the load takes half of one core a lane. */
const LOAD: CheckedLoadShape = { ...LIGHT_LOAD, writePauseMs: 200, readPauseMs: 16 };
const SERVERS = 5;
const MEMORY_BYTES = 128 * 2 ** 20;
const SPAN = 15;
const ATTEMPTS = 3;
const STRUCK_TIMEOUT_MS = 15_000;
/** More than a delay of the catalogue; a lost message costs its caller that much. */
const CALL_TIMEOUT_MS_MAX = 2_500;
const WHOLE_TIMEOUT_MS = 60_000;
/** Several tablets a server: dead versions take memory in a recovery, too much for one master. */
const FILLER_SPAN = 4 * SERVERS;
const FILLER_KEYS = 8;
const FILLERS_AT_ONCE = 4;
const FILLER_BYTES = 900_000;
const WATCH_MS = 100;
/** For calls that an end of a process may hold up. */
const PATIENT = { timeoutMs: 20_000 };
const DISK_FAULT_MS = 1_500;
const EIO = 5;
const COORDINATOR = 'coordinator';
const ZOMBIE_EXIT_CODE = 3;

interface World {
  directory: string;
  cluster: LocalCluster;
  client: Client;
  load: CheckedLoad;
  files: FaultFiles;
  layer: DiskLayer;
  exits: ProcessExit[];
  /** null: one coordinator, with a folder. */
  etcd: EtcdCluster | null;
}

export class FaultLane {
  readonly #standby: boolean;
  #world: World | undefined;
  #tables = 0;
  /** Turns, so that cases hit different servers. */
  #turn = 0;

  constructor({ standby = false } = {}) {
    this.#standby = standby;
  }

  async close(): Promise<void> {
    const world = this.#world;
    this.#world = undefined;
    if (world === undefined) return;
    world.load.end();
    await world.client.close();
    await world.cluster.stop();
    await world.etcd?.stop();
    rmSync(world.directory, { recursive: true, force: true });
  }

  /** Rejects with what was not as it must be. */
  async play(each: Case): Promise<void> {
    this.#world ??= await begin(this.#standby);
    const world = this.#world;
    try {
      await this.#play(world, each);
    } catch (error) {
      process.stderr.write(`${world.cluster.logTails(12)}\n`);
      await this.close();
      throw error;
    }
  }

  async #play(world: World, each: Case): Promise<void> {
    const { row } = each;
    const violationsBefore = world.load.checker.violationCount;
    world.exits.length = 0;
    let struck = false;
    for (let attempt = 0; attempt < ATTEMPTS && !struck; attempt++) {
      const victim = await busiestServer(world);
      const names = await this.#targets(world, each, victim);
      const before = names.map((name) => world.layer.struck(name));
      await armAll(world, names, each);
      const strikes = (): boolean =>
        names.some((name, index) => hasStruck(world, name, each, before[index] ?? 0));
      await this.#provoke(world, row.by, victim, strikes);
      struck = strikes();
      // The report comes a moment before the end.
      const ending = struck && mustEnd(each);
      if (ending) await untilTrue(() => world.exits.length > 0, STRUCK_TIMEOUT_MS);
      await disarm(world, names, each);
      await restartAll(world);
    }
    if (!struck) throw new Error(`${row.name} was not passed`);
    await whole(world);
    if (world.etcd !== null) await restartStandby(world);
    checkEnds(world, each);
    await world.load.readAll();
    const { violations, violationCount } = world.load.checker;
    if (violationCount > violationsBefore) throw new Error(violations.slice(-5).join('\n'));
  }

  /** Whom to arm: a process that is not the one that is killed anyway, one only if it will die. */
  async #targets(world: World, { row, kind }: Case, victim: number): Promise<string[]> {
    if (row.at === COORDINATOR) return [await leaderName(world)];
    const others = Array.from({ length: SERVERS }, (_, index) => index).filter(
      // The cleaner's steps are those of the master that has the load; what is merged goes there.
      (index) => (isOfVictim(row.name) ? index === victim : index !== victim),
    );
    // An open replica that is lost takes its backup from the candidates of that segment: always the
    // same one, or the cases together would take more than R = 3 leaves room for.
    if (row.name.includes('BACKUP_WRITE') && (kind === 'error' || kind === 'corrupt')) {
      return others.slice(-1).map(nameOf);
    }
    const dies = kind === 'crash' || (row.name in DISK_FAULTS && kind === 'error');
    if (!dies) return others.map(nameOf);
    const able = row.name.endsWith('IS_REPLICA_NEEDED') ? mastersOn(world, victim) : others;
    return [nameOf(able[this.#turn++ % able.length] ?? 0)];
  }

  async #provoke(
    world: World,
    by: Provocation,
    victim: number,
    struck: () => boolean,
  ): Promise<void> {
    switch (by) {
      case 'load':
        await untilTrue(struck, STRUCK_TIMEOUT_MS);
        return;
      case 'heads':
        return openHeads(world, victim, struck, `filler-${this.#tables++}`);
      case 'table':
        return useTable(world, `passing-${this.#tables++}`);
      case 'server-crash':
        await world.cluster.killServer(victim);
        await recovered(world, SERVERS - 1, struck);
        await restartAll(world);
        await untilTrue(struck, STRUCK_TIMEOUT_MS / 3);
        return;
      case 'zombie':
        world.cluster.pauseServer(victim);
        await recovered(world, SERVERS - 1, struck);
        world.cluster.resumeServer(victim);
        // Nobody has declared it dead if the coordinator died before.
        await untilTrue(() => world.exits.length > 0, STRUCK_TIMEOUT_MS);
        return;
      case 'merge':
        return mergeTablets(world, victim, `merging-${this.#tables++}`, struck);
      case 'split':
        return splitTablets(world, struck);
      case 'migrate':
        return moveTablets(world, victim, struck);
      case 'drain':
        return drainServer(world, victim, struck);
      case 'client': {
        await using client = await connect(world.cluster.url);
        await survive(world, client.table('load').get('some key'));
      }
    }
  }
}

function isOfVictim(name: string): boolean {
  return name.startsWith('clean-') || name.endsWith('MERGE_TABLET_OWNERSHIP');
}

/** Servers of whose logs this one has replicas: they are asked when it has started again. */
function mastersOn({ cluster }: World, index: number): number[] {
  const masters = new Set<number>();
  inspectFrameFile(join(cluster.dataDirectory, nameOf(index), 'backup', 'frames'), (report) => {
    for (const { masterId } of report.replicas) masters.add(masterId);
  });
  return [...masters].flatMap((id) => cluster.indexOf(id) ?? []).filter((at) => at !== index);
}

function nameOf(index: number): string {
  return `server-${index + 1}`;
}

const SERVER_NAMES = Array.from({ length: SERVERS }, (_, index) => nameOf(index));

/** What the disk layer does for the rows that are steps of a disk; `ms` of a delay. */
const DISK_FAULTS: Record<string, (ms: number) => DiskFault> = {
  'disk-write': (ms) => (ms > 0 ? { writeDelayMs: ms } : { writeErrno: EIO }),
  'disk-flush': (ms) => (ms > 0 ? { flushDelayMs: ms } : { flushErrno: EIO }),
  'disk-read': () => ({ readErrno: EIO }),
  'disk-grow': () => ({ full: 1 }),
};

/** Every server leads to the step, only those that are named are hurt there. */
async function armAll(world: World, names: readonly string[], { row, fault }: Case): Promise<void> {
  const { files, layer } = world;
  const disk = DISK_FAULTS[row.name];
  if (disk !== undefined) {
    for (const name of names) layer.setFault(name, disk(Number(fault.split(':')[1] ?? 0)));
    return;
  }
  const led = row.lead === undefined ? [] : SERVER_NAMES;
  const arm = (name: string): Promise<void> => {
    const lead = led.includes(name) ? [row.lead] : [];
    const hurt = names.includes(name) ? [`${row.name}=${fault}`] : [];
    return files.arm(name, [...lead, ...hurt].join(','));
  };
  await Promise.all([...new Set([...led, ...names])].map(arm));
}

function hasStruck({ files, layer }: World, name: string, each: Case, before: number): boolean {
  return each.row.name in DISK_FAULTS
    ? layer.struck(name) > before
    : files.hasStruck(name, each.row.name, each.kind);
}

/** A disk fault lasts a while; then the disk is replaced, and the process starts on the new one. */
async function disarm(world: World, names: readonly string[], { row, kind }: Case): Promise<void> {
  const { cluster, files, layer } = world;
  if (row.name in DISK_FAULTS) await delay(DISK_FAULT_MS);
  for (const name of new Set([...names, ...(row.lead === undefined ? [] : SERVER_NAMES)])) {
    files.disarm(name);
    layer.setFault(name, {});
    const index = cluster.processes().findIndex((each) => each.name === name) - 1;
    if (row.name in DISK_FAULTS && kind === 'error') await cluster.killServer(index);
  }
}

async function leaderName({ client, cluster }: World): Promise<string> {
  const { leader } = await client.status();
  return cluster.processes()[cluster.coordinatorAt(leader) ?? 0]?.name ?? COORDINATOR;
}

async function begin(standby: boolean): Promise<World> {
  const etcd = standby ? await EtcdCluster.start(1) : null;
  try {
    return await beginWith(etcd);
  } catch (error) {
    await etcd?.stop();
    throw error;
  }
}

async function beginWith(etcd: EtcdCluster | null): Promise<World> {
  const directory = mkdtempSync(join(tmpdir(), 'rekindle-faults-'));
  const exits: ProcessExit[] = [];
  const files = new FaultFiles(directory);
  const layer = new DiskLayer(diskLayerLibrary(), directory);
  const cluster = await LocalCluster.create({
    dataDirectory: directory,
    servers: SERVERS,
    memoryBytes: MEMORY_BYTES,
    ...(etcd === null
      ? {}
      : { coordinators: 2, storage: `etcd://${etcd.endpoints.join(',')}/faults` }),
    // As few segments as memory holds: then they are cleaned, not compacted.
    serverArguments: ['--disk-expansion', '1'],
    onUnexpectedExit: (exit) => exits.push(exit),
    environment: { REKINDLE_FAULT_TIMEOUT_MS: `${CALL_TIMEOUT_MS_MAX}` },
    environmentOf: (name) => ({ ...files.environmentOf(name), ...layer.environmentOf(name) }),
  });
  try {
    await cluster.startAll();
    const client = await connect(cluster.url, { timeoutMs: 60_000 });
    const table = await client.createTable('load', { span: SPAN });
    const load = new CheckedLoad(table, LOAD, 1);
    load.start();
    return { directory, cluster, client, load, files, layer, exits, etcd };
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

/** The one that owns most tablets: its death is a recovery by several masters. */
async function busiestServer({ cluster, client }: World): Promise<number> {
  const { tables } = await client.status();
  const counts = new Map<number, number>();
  for (const { serverId } of tables.flatMap(({ tablets }) => tablets)) {
    const index = cluster.indexOf(serverId);
    if (index !== undefined) counts.set(index, (counts.get(index) ?? 0) + 1);
  }
  return [...counts].sort(([, left], [, right]) => right - left)[0]?.[0] ?? 0;
}

/** Errors that the SDK throws on purpose are what a fault may look like to a client. */
async function tolerate<T>(operation: Promise<T>): Promise<T | undefined> {
  try {
    return await operation;
  } catch (error) {
    if (error instanceof RekindleError) return undefined;
    throw error;
  }
}

/** Large values for one server: a few are a segment, and make the cleaner work. */
async function openHeads(
  { client, cluster }: World,
  owner: number,
  struck: () => boolean,
  tableName: string,
): Promise<void> {
  const end = performance.now() + 4 * STRUCK_TIMEOUT_MS;
  const value = Buffer.alloc(FILLER_BYTES, 7);
  const table = await client.createTable(tableName, { span: FILLER_SPAN });
  const { tables } = await client.status();
  const { tableId, tablets } = tables.find(({ name }) => name === tableName) ?? {};
  const own = (tablets ?? []).filter(({ serverId }) => serverId === cluster.serverId(owner));
  const keys = Array.from({ length: 1_000 }, (_, index) => `filler-${index}`).filter((key) => {
    const slot = hashKey(tableId ?? 0, Buffer.from(key));
    return own.some(({ startSlot, endSlot }) => startSlot <= slot && slot <= endSlot);
  });
  const write = async (writer: number): Promise<void> => {
    for (let i = writer; !struck() && performance.now() < end; i += FILLERS_AT_ONCE) {
      await tolerate(table.put(keys[i % FILLER_KEYS] ?? 'filler', value));
    }
  };
  await Promise.all(Array.from({ length: FILLERS_AT_ONCE }, (_, writer) => write(writer)));
  await untilDropped(client, tableName);
}

/** With the armed process dead the drop may have to wait for its restart: not here. */
async function untilDropped(client: Client, tableName: string): Promise<void> {
  await tolerate(client.dropTable(tableName, { timeoutMs: 5_000 }));
}

async function useTable(world: World, tableName: string): Promise<void> {
  const { client } = world;
  const steps: (() => Promise<unknown>)[] = [
    () => client.createTable(tableName, { span: SERVERS, ...PATIENT }),
    () => client.table(tableName).put('key', 'value'),
    () => client.dropTable(tableName, PATIENT),
  ];
  for (const act of steps) await survive(world, act());
}

/** What has died of the fault may be needed for the answer, and struck is struck. */
async function survive<T>(world: World, operation: Promise<T>): Promise<T | undefined> {
  let over = false;
  const done = tolerate(operation).finally(() => {
    over = true;
  });
  await untilTrue(() => over || world.exits.length > 0, WHOLE_TIMEOUT_MS);
  if (world.exits.length > 0) await restartAll(world);
  return done;
}

/**
 * A table whose tablets all come to one server, and are merged. What is asked for is asked for
 * again as long as a process that was needed is dead.
 */
async function mergeTablets(
  world: World,
  owner: number,
  tableName: string,
  struck: () => boolean,
): Promise<void> {
  const { client, cluster } = world;
  const target = cluster.serverId(owner) ?? 0;
  const end = performance.now() + 4 * STRUCK_TIMEOUT_MS;
  await client.createTable(tableName, { span: 2, ...PATIENT });
  while (!struck() && performance.now() < end) {
    const { tables } = (await survive(world, client.status(PATIENT))) ?? { tables: [] };
    const { tablets } = tables.find(({ name }) => name === tableName) ?? { tablets: [] };
    const away = tablets.find(({ serverId }) => serverId !== target);
    if (away !== undefined) {
      await tolerate(client.migrateTablet(tableName, away.startSlot, target));
    } else {
      await survive(world, client.mergeTablets(tableName, PATIENT));
    }
    await delay(WATCH_MS);
  }
  await untilDropped(client, tableName);
}

/** Each server gets tablets of the load, and has its widest cut, until the fault has struck. */
async function splitTablets(world: World, struck: () => boolean): Promise<void> {
  const { client } = world;
  const end = performance.now() + 4 * STRUCK_TIMEOUT_MS;
  for (let turn = 0; !struck() && performance.now() < end; turn++) {
    const { tables, servers } = await client.status({ timeoutMs: 20_000 });
    const { tablets } = tables.find(({ name }) => name === 'load') ?? { tablets: [] };
    const idle = servers.find((one) => tablets.every(({ serverId }) => serverId !== one.serverId));
    const owner = servers[turn % servers.length];
    const own = tablets.filter(
      ({ serverId }) => idle !== undefined || serverId === owner?.serverId,
    );
    const [widest] = own.sort((left, right) => widthOf(right) - widthOf(left));
    if (idle !== undefined) {
      await tolerate(client.migrateTablet('load', widest?.startSlot ?? 0, idle.serverId));
    } else if (widest !== undefined) {
      const slot = Math.ceil((widest.startSlot + widest.endSlot) / 2);
      await survive(world, client.splitTablet('load', { slot, timeoutMs: 20_000 }));
    }
    await delay(WATCH_MS);
  }
}

function widthOf({ startSlot, endSlot }: SlotRange): number {
  return endSlot - startSlot;
}

/** Tablets of the load go to a server and to another one, until the fault has struck. */
async function moveTablets(world: World, avoided: number, struck: () => boolean): Promise<void> {
  const { client, cluster } = world;
  const end = performance.now() + 4 * STRUCK_TIMEOUT_MS;
  for (let turn = 0; !struck() && performance.now() < end; turn++) {
    const status = await survive(world, client.status(PATIENT));
    if (status === undefined) continue;
    const { tables, servers } = status;
    const { tablets } = tables.find(({ name }) => name === 'load') ?? { tablets: [] };
    const tablet = tablets[turn % tablets.length];
    const others = servers.filter(({ serverId }) => {
      return serverId !== tablet?.serverId && serverId !== cluster.serverId(avoided);
    });
    const target = others[turn % others.length];
    if (tablet === undefined || target === undefined) continue;
    const { startSlot } = tablet;
    await survive(world, client.migrateTablet('load', startSlot, target.serverId, PATIENT));
    await delay(WATCH_MS);
  }
}

/** A server is emptied, and is one like all others again, until the fault has struck. */
async function drainServer(world: World, victim: number, struck: () => boolean): Promise<void> {
  const { client, cluster } = world;
  const end = performance.now() + 4 * STRUCK_TIMEOUT_MS;
  const serverId = cluster.serverId(victim) ?? 0;
  const options = { timeoutMs: 20_000 };
  while (!struck() && performance.now() < end) {
    await survive(world, client.drainServer(serverId, options));
    await waitFor('a drain, or its end', WHOLE_TIMEOUT_MS, async () => {
      if (struck()) return true;
      const { drains } = await client.status({ timeoutMs: 2_000 });
      return drains.every(({ state }) => state === 'drained') || undefined;
    });
    await survive(world, client.drainServer(serverId, { ...options, cancel: true }));
  }
  // The fault may have struck the cancellation.
  await survive(world, client.drainServer(serverId, { ...options, cancel: true }));
}

/** The dead server has been recovered, or the fault has ended a process that this needs. */
async function recovered(world: World, servers: number, struck: () => boolean): Promise<void> {
  const { client, exits } = world;
  const over = waitFor('a recovery, or its end', WHOLE_TIMEOUT_MS, async () => {
    if (struck() && exits.length > 0) return true;
    const status = await client.status({ timeoutMs: 2_000 });
    const up = status.servers.filter((server) => server.status === 'up').length;
    return up <= servers && up === status.servers.length ? true : undefined;
  });
  await over.catch((error) => explain(world, error));
}

/** What the cluster waits for. */
async function explain({ client, cluster }: World, cause: unknown): Promise<never> {
  const { servers, tables, recoveries } = await client.status();
  const tablets = tables.flatMap((table) => table.tablets.filter((t) => t.status !== 'normal'));
  const running = recoveries.filter(({ state }) => state !== 'done');
  const names = tables.map(({ name }) => name);
  const stats = (await tolerate(serverStats(client)))?.map(({ serverId, master, backup }) => {
    return { serverId, master, backup };
  });
  const text = JSON.stringify({ servers, names, tablets, running, stats });
  throw new Error(`${text}\n${cluster.logTails()}`, { cause });
}

/** What ends only now (a master that learns that it was declared dead) is started again too. */
async function whole(world: World): Promise<void> {
  const { client } = world;
  let over = false;
  const watch = async (): Promise<void> => {
    for (; !over; await Promise.race([wait, delay(WATCH_MS)])) await restartAll(world);
  };
  const wait = waitUntilWhole(client, SERVERS, WHOLE_TIMEOUT_MS).finally(() => {
    over = true;
  });
  await Promise.all([wait, watch()]).catch((error) => explain(world, error));
}

/**
 * Starts what does not run; a coordinator that ends meanwhile too, for which servers that start
 * would wait. Disarmed first: a process reads its faults when it starts.
 */
async function restartAll({ cluster, files, etcd }: World): Promise<void> {
  if (cluster.processes().every(({ pid }) => pid !== undefined)) return;
  if (etcd !== null) return restartServers(cluster, files);
  const startCoordinator = async (): Promise<void> => {
    if (cluster.coordinatorIsRunning()) return;
    files.disarm(COORDINATOR);
    await cluster.restartCoordinator();
  };
  await startCoordinator();
  for (const { name, pid } of cluster.processes()) if (pid === undefined) files.disarm(name);
  let started = false;
  const servers = cluster.startAll().finally(() => {
    started = true;
  });
  const watch = async (): Promise<void> => {
    for (; !started; await Promise.race([servers, delay(WATCH_MS)])) await startCoordinator();
  };
  await Promise.all([servers, watch()]);
}

async function restartServers(cluster: LocalCluster, files: FaultFiles): Promise<void> {
  for (let index = 0; index < SERVERS; index++) {
    if (cluster.isRunning(index)) continue;
    files.disarm(nameOf(index));
    await cluster.restartServer(index);
  }
}

/** The leader of the next case has a standby again; its old record may outlive it for a while. */
async function restartStandby({ client, cluster, files }: World): Promise<void> {
  for (let index = 0; index < 2; index++) {
    if (cluster.coordinatorIsRunning(index)) continue;
    files.disarm(cluster.processes()[index]?.name ?? COORDINATOR);
    await cluster.restartCoordinator({}, index);
    await waitFor('a standby', WHOLE_TIMEOUT_MS, async () => {
      const { standbys } = await client.status();
      return standbys.some((address) => cluster.coordinatorAt(address) === index) || undefined;
    });
  }
}

/** A crash ends the process that was armed; nothing else ends one, but what the row names. */
function checkEnds({ exits }: World, { row, kind }: Case): void {
  const unexpected = exits.filter(({ name, code, signal }) => {
    if (code === ZOMBIE_EXIT_CODE && row.by === 'zombie') return false;
    if (kind === 'crash') return signal !== 'SIGKILL';
    return !(row.ends.includes(kind) && (name === COORDINATOR) === (row.at === COORDINATOR));
  });
  const shown = unexpected.map(({ name, code, signal }) => `${name} ended with ${signal ?? code}`);
  if (shown.length > 0) throw new Error(shown.join(', '));
  if (mustEnd({ row, kind }) && exits.length === 0) throw new Error('no process has ended');
}

function mustEnd({ row, kind }: Pick<Case, 'row' | 'kind'>): boolean {
  return kind === 'crash' || row.ends.includes(kind);
}

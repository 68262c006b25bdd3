/**
 * The whole coordinator on a real LMDB directory, with servers that exist only as answers to calls:
 * joining, tables, a crash with its recovery, a restart in the middle, refusals.
 */
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Coordinator, type CoordinatorOptions } from '../../src/coordinator/coordinator.js';
import type { ExternalStorage } from '../../src/coordinator/external-storage/external-storage.js';
import { LmdbStorage } from '../../src/coordinator/external-storage/lmdb.js';
import { restoreState } from '../../src/coordinator/state-copy.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { ProbeOutcome, ServerList } from '../../src/rpc/messages.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../../src/rpc/table.js';
import type { LinkPool, RpcEndpoint, RpcLink } from '../../src/rpc/transport.js';

type AnyHandler = (request: unknown, call: unknown) => unknown;

class FakeEndpoint implements RpcEndpoint {
  readonly handlers = new Map<string, AnyHandler>();

  handle(name: string, handler: unknown): void {
    this.handlers.set(name, handler as AnyHandler);
  }
  handleBinary(): void {
    assert.fail('the coordinator has no binary RPC');
  }
  listen = (): Promise<number> => Promise.resolve(0);
  close = (): Promise<void> => Promise.resolve();
  stats = (): Record<string, number> => ({});

  /** As a client would call it. */
  async call<K extends JsonRpcName>(name: K, request: RequestOf<K>): Promise<ReplyOf<K>> {
    const handler = this.handlers.get(name);
    assert.ok(handler, `${name} has a handler`);
    const peer = { role: 'tool', serverId: null, remoteAddress: '' };
    const call = { peer, deadlineMs: performance.now() + 10_000 };
    return structuredClone((await handler(request, call)) as ReplyOf<K>);
  }
}

/** A server as the coordinator sees it: it owns tablets, lists replicas, recovers partitions. */
class FakeServer {
  serverId = 0;
  alive = true;
  list: ServerList | null = null;
  stateCopy: RequestOf<'STORE_COORDINATOR_STATE'> | null = null;
  readonly tablets: string[] = [];
  readonly recovers: RequestOf<'RECOVER'>[] = [];
  readonly completed: number[] = [];
  leaseRemainderMs = 0;
  /** Answers RECOVERY_MASTER_FINISHED by itself, as a healthy recovery master. */
  finishes = true;

  constructor(
    readonly cluster: FakeCluster,
    readonly n: number,
  ) {}

  get address(): string {
    return `127.0.0.1:${7_000 + this.n}`;
  }

  async enlist(): Promise<number> {
    const { serverId, list } = await this.cluster.endpoint.call('ENLIST_SERVER', {
      nonce: `nonce-${this.n}`,
      replacesId: null,
      clusterId: null,
      address: this.address,
      host: `host-${this.n}`,
      rack: null,
      master: true,
      backup: true,
      memoryBytes: 1,
    });
    this.serverId = serverId;
    this.list = list;
    return serverId;
  }

  answer(name: string, request: unknown): unknown {
    switch (name) {
      case 'PING':
        return { serverListVersion: this.list?.version ?? 0, member: true, lagMs: 0 };
      case 'UPDATE_SERVER_LIST':
        this.list = (request as RequestOf<'UPDATE_SERVER_LIST'>).list;
        return { version: this.list.version };
      case 'STORE_COORDINATOR_STATE':
        this.stateCopy = request as RequestOf<'STORE_COORDINATOR_STATE'>;
        return {};
      case 'TAKE_TABLET_OWNERSHIP': {
        const { tableId, startSlot, endSlot } = request as RequestOf<'TAKE_TABLET_OWNERSHIP'>;
        this.tablets.push(`${tableId}:${startSlot}-${endSlot}`);
        return {};
      }
      case 'DROP_TABLET_OWNERSHIP': {
        const { tableId, startSlot, endSlot } = request as RequestOf<'DROP_TABLET_OWNERSHIP'>;
        const at = this.tablets.indexOf(`${tableId}:${startSlot}-${endSlot}`);
        if (at >= 0) this.tablets.splice(at, 1);
        return {};
      }
      case 'START_READING_DATA':
        return {
          leaseRemainderMs: this.leaseRemainderMs,
          replicas: [{ segmentId: 1, epoch: 0, length: 64, closed: false, primary: true }],
          digests: [{ segmentId: 1, epoch: 0, segmentIds: [1], tabletStats: [] }],
        };
      case 'RECOVER':
        this.recovers.push(request as RequestOf<'RECOVER'>);
        if (this.finishes) setImmediate(() => void this.finish(this.recovers.at(-1)));
        return {};
      case 'PROBE_SERVER':
        return { outcome: this.cluster.probe((request as RequestOf<'PROBE_SERVER'>).serverId) };
      case 'RECOVERY_COMPLETE':
        this.completed.push((request as RequestOf<'RECOVERY_COMPLETE'>).recoveryId);
        return {};
      default:
        return {};
    }
  }

  /** Reports success, again and again until the coordinator of the moment answers. */
  async finish(recover: RequestOf<'RECOVER'> | undefined): Promise<boolean> {
    assert.ok(recover);
    for (let attempt = 0; attempt < 1_000; attempt++) {
      try {
        return await this.report(recover);
      } catch (error) {
        if (!(error instanceof RekindleError) || !error.retryable) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    return assert.fail('no coordinator takes the report');
  }

  private async report(recover: RequestOf<'RECOVER'>): Promise<boolean> {
    const { committed } = await this.cluster.endpoint.call('RECOVERY_MASTER_FINISHED', {
      recoveryId: recover.recoveryId,
      partitionId: recover.partition.partitionId,
      generation: recover.generation,
      serverId: this.serverId,
      ok: true,
      error: null,
      ctimeSegmentId: 9,
      objects: 10,
      bytes: 1_000,
      readMs: 1,
      replayMs: 2,
      durableMs: 3,
    });
    return committed;
  }
}

class FakeLink implements RpcLink {
  readonly outstandingBytes = 0;
  readonly remote = null;
  connected = false;
  private readonly listeners: ((error: RekindleError) => void)[] = [];

  constructor(
    readonly cluster: FakeCluster,
    readonly address: string,
    readonly expectServerId: number | null,
  ) {}

  async call<K extends JsonRpcName>(name: K, request: RequestOf<K>): Promise<ReplyOf<K>> {
    await new Promise((resolve) => setImmediate(resolve));
    const server = this.cluster.servers.find((s) => s.address === this.address && s.alive);
    if (server === undefined) {
      const cause = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
      throw new RekindleError('CONNECTION_LOST', 'refused', { cause, outcome: 'not-applied' });
    }
    if (this.expectServerId !== null && server.serverId !== this.expectServerId) {
      const serverId = server.serverId === 0 ? null : server.serverId;
      throw new RekindleError('WRONG_SERVER', 'another server', { details: { serverId } });
    }
    this.connected = true;
    return structuredClone(server.answer(name, structuredClone(request)) as ReplyOf<K>);
  }
  callBinary = (): Promise<Uint8Array> => assert.fail('no binary calls');
  connect = (): Promise<never> => assert.fail('the coordinator calls without connecting first');
  flush = (): void => assert.fail('the coordinator does not flush links');
  onLost(listener: (error: RekindleError) => void): void {
    this.listeners.push(listener);
  }
  lose(): void {
    if (!this.connected) return;
    this.connected = false;
    for (const listener of this.listeners) listener(new RekindleError('CONNECTION_LOST', 'lost'));
  }
  close(): void {
    this.connected = false;
  }
}

class FakeCluster implements LinkPool {
  endpoint = new FakeEndpoint();
  readonly servers: FakeServer[] = [];
  readonly links = new Map<string, FakeLink>();
  coordinator: Coordinator | null = null;
  fatal: RekindleError | null = null;
  faults: string[] = [];
  /** The coordinator never gets past this fault point: to everybody it looks as if killed there. */
  hangAt: string | null = null;

  constructor(readonly directory: string) {}

  /** What a witness finds. */
  probe(serverId: number): ProbeOutcome {
    return this.servers.some((s) => s.serverId === serverId && s.alive) ? 'alive' : 'refused';
  }

  link(address: string, expectServerId: number | null = null): RpcLink {
    const key = `${address} ${expectServerId}`;
    const link = this.links.get(key) ?? new FakeLink(this, address, expectServerId);
    this.links.set(key, link);
    return link;
  }
  drop(address: string, expectServerId?: number): void {
    for (const [key, link] of this.links) {
      if (expectServerId !== undefined && link.expectServerId !== expectServerId) continue;
      if (link.address === address) this.links.delete(key);
    }
  }
  close(): void {
    this.links.clear();
  }

  options(storage: ExternalStorage): CoordinatorOptions {
    return {
      endpoint: this.endpoint,
      links: this,
      storage,
      config: { replicas: 2 },
      log: () => undefined,
      onFatal: (error) => {
        this.fatal = error;
      },
      faultPoint: (name) => {
        this.faults.push(name);
        return name === this.hangAt ? new Promise<void>(() => undefined) : undefined;
      },
    };
  }

  async start(): Promise<void> {
    const storage = await LmdbStorage.open(this.directory);
    this.endpoint = new FakeEndpoint();
    this.links.clear();
    this.coordinator = new Coordinator(this.options(storage));
    await this.coordinator.start();
  }

  async stop(): Promise<void> {
    await this.coordinator?.close();
    this.coordinator = null;
  }

  async add(count: number): Promise<void> {
    for (let i = 0; i < count; i++) {
      const server = new FakeServer(this, this.servers.length + 1);
      this.servers.push(server);
      await server.enlist();
    }
  }

  kill(server: FakeServer): void {
    server.alive = false;
    for (const link of [...this.links.values()]) if (link.address === server.address) link.lose();
  }

  status = (): Promise<ReplyOf<'GET_STATUS'>> => this.endpoint.call('GET_STATUS', {});

  owner(serverId: number | undefined): FakeServer {
    const server = this.servers.find((s) => s.serverId === serverId);
    assert.ok(server);
    return server;
  }
}

async function withCluster(run: (cluster: FakeCluster) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'rekindle-coordinator-'));
  const cluster = new FakeCluster(directory);
  try {
    await cluster.start();
    await run(cluster);
    assert.equal(cluster.fatal, null);
  } finally {
    await cluster.stop();
    await rm(directory, { recursive: true, force: true });
  }
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const limit = performance.now() + 10_000;
  while (!(await condition())) {
    assert.ok(performance.now() < limit, `not within 10 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const hasCode = (code: string) => (error: unknown) =>
  error instanceof RekindleError && error.code === code;

test('until the state is loaded everything answers RETRY', () =>
  withCluster(async (cluster) => {
    await cluster.stop();
    cluster.endpoint = new FakeEndpoint();
    const storage = await LmdbStorage.open(cluster.directory);
    cluster.coordinator = new Coordinator(cluster.options(storage));
    assert.equal(cluster.coordinator.clusterId, null);
    for (const name of cluster.endpoint.handlers.keys()) {
      const call = cluster.endpoint.call(name as 'GET_STATUS', {});
      await assert.rejects(call, hasCode('RETRY'), name);
    }
    await cluster.coordinator.start();
    assert.equal((await cluster.status()).term, 2);
  }));

test('servers join, get each list, hold copies; a table is created, shown and dropped', () =>
  withCluster(async (cluster) => {
    const create = { operationId: 'c1', name: 't', span: 3 };
    await assert.rejects(
      cluster.endpoint.call('CREATE_TABLE', create),
      hasCode('NOT_ENOUGH_BACKUPS'),
    );
    await cluster.add(5);
    const { table } = await cluster.endpoint.call('CREATE_TABLE', create);
    assert.deepEqual(
      table.tablets.map(({ status }) => status),
      ['normal', 'normal', 'normal'],
    );
    assert.equal(
      cluster.servers.reduce((sum, { tablets }) => sum + tablets.length, 0),
      3,
    );
    const found = await cluster.endpoint.call('GET_TABLE', { name: 't' });
    assert.deepEqual(found.table, table);
    await until('all have the list', () =>
      cluster.servers.every(({ list }) => list?.servers.length === 5),
    );
    await until('all hold the newest copy', async () => (await cluster.status()).stateCopies === 5);
    assert.deepEqual((await cluster.status()).warnings, []);

    const drop = { operationId: 'd1', name: 't' };
    assert.deepEqual(await cluster.endpoint.call('DROP_TABLE', drop), { existed: true });
    assert.deepEqual(await cluster.endpoint.call('DROP_TABLE', drop), { existed: true });
    assert.equal(
      cluster.servers.reduce((sum, { tablets }) => sum + tablets.length, 0),
      0,
    );
    await assert.rejects(
      cluster.endpoint.call('GET_TABLE', { tableId: table.tableId }),
      hasCode('TABLE_NOT_FOUND'),
    );
  }));

test('a killed server is noticed, recovered and leaves the list; its report stays', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    const create = { operationId: 'c', name: 't' };
    const { table } = await cluster.endpoint.call('CREATE_TABLE', create);
    const dead = cluster.owner(table.tablets[0]?.serverId);
    await until('it is watched', () => [...cluster.links.values()].every((l) => l.connected));
    cluster.kill(dead);
    await until('it is gone', async () => (await cluster.status()).servers.length === 4);
    const [report] = (await cluster.status()).recoveries;
    assert.equal(report?.state, 'done');
    assert.equal(report?.crashedServerId, dead.serverId);
    assert.deepEqual(
      report?.phases.map(({ number }) => number),
      [1, 2, 3, 4, 5, 6, 7, 8],
    );
    assert.equal(report?.objects, 10);
    const now = await cluster.endpoint.call('GET_TABLE', { name: 't' });
    assert.equal(now.table.tablets[0]?.status, 'normal');
    assert.notEqual(now.table.tablets[0]?.serverId, dead.serverId);
    const ping = await cluster.endpoint.call('PING', { callerServerId: dead.serverId });
    assert.equal(ping.member, false);
    const living = cluster.servers.filter(({ alive }) => alive);
    await until('backups hear of the end', () => living.every((s) => s.completed.length === 1));
  }));

test('no tablet changes hands before the last grant to its owner is over', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    const create = { operationId: 'c', name: 't' };
    const dead = cluster.owner(
      (await cluster.endpoint.call('CREATE_TABLE', create)).table.tablets[0]?.serverId,
    );
    for (const server of cluster.servers) server.leaseRemainderMs = 290;
    const startMs = performance.now();
    cluster.kill(dead);
    await until('it is recovered', async () => (await cluster.status()).servers.length === 4);
    assert.ok(performance.now() - startMs >= 290);
  }));

test('a server that does not know its new id yet is not taken for dead', () =>
  withCluster(async (cluster) => {
    const server = new FakeServer(cluster, 1);
    cluster.servers.push(server);
    const serverId = await server.enlist();
    server.serverId = 0;
    const hint = { serverId, reason: 'test' };
    await cluster.endpoint.call('HINT_SERVER_CRASHED', hint);
    for (let turn = 0; turn < 20; turn++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      assert.ok((await cluster.endpoint.call('VERIFY_MEMBERSHIP', { serverId })).member);
    }
    server.serverId = serverId;
    await until('it has the list', () => server.list?.servers.length === 1);
    server.serverId = serverId + 1;
    await until('another process has its address', async () => {
      const { member } = await cluster.endpoint.call('VERIFY_MEMBERSHIP', { serverId });
      return !member;
    });
  }));

test('a coordinator that restarts in the middle of a recovery finishes it', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    const create = { operationId: 'c', name: 't', span: 2 };
    const { table } = await cluster.endpoint.call('CREATE_TABLE', create);
    const dead = cluster.owner(table.tablets[0]?.serverId);
    for (const server of cluster.servers) server.finishes = false;
    cluster.kill(dead);
    const hint = { serverId: dead.serverId, reason: 'test' };
    await cluster.endpoint.call('HINT_SERVER_CRASHED', hint);
    await until('a partition is out', () => cluster.servers.some((s) => s.recovers.length > 0));
    const { tableId } = table;
    const before = await cluster.endpoint.call('GET_TABLE', { tableId });
    assert.equal(before.table.tablets[0]?.status, 'recovering');
    assert.equal(before.table.tablets[0]?.address, null);
    await cluster.stop();

    for (const server of cluster.servers) server.finishes = true;
    await cluster.start();
    await until('recovered', async () => (await cluster.status()).servers.length === 4);
    const after = await cluster.endpoint.call('GET_TABLE', { tableId });
    assert.ok(after.table.tablets.every(({ status }) => status === 'normal'));
    assert.ok(cluster.faults.includes('recover-plan-2'));
  }));

test('a restarted coordinator finds out by itself who died while it was away', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    await cluster.endpoint.call('CREATE_TABLE', { operationId: 'c', name: 't', span: 5 });
    await cluster.stop();
    const [, dead] = cluster.servers;
    assert.ok(dead);
    dead.alive = false;
    await cluster.start();
    await until('recovered', async () => (await cluster.status()).servers.length === 4);
    const { tables } = await cluster.endpoint.call('LIST_TABLES', {});
    assert.ok(tables[0]?.tablets.every(({ serverId }) => serverId !== dead.serverId));
  }));

test('an empty coordinator takes over the copy that a server holds', () =>
  withCluster(async (cluster) => {
    await cluster.add(3);
    await cluster.endpoint.call('CREATE_TABLE', { operationId: 'c', name: 'kept' });
    await until('copies', async () => (await cluster.status()).stateCopies === 3);
    const { clusterId } = await cluster.status();
    const copy = cluster.servers[0]?.stateCopy;
    await cluster.stop();
    await rm(cluster.directory, { recursive: true });

    await cluster.start();
    const data = { ...enlistWithData(clusterId) };
    await assert.rejects(cluster.endpoint.call('ENLIST_SERVER', data), hasCode('WRONG_CLUSTER'));
    await cluster.stop();
    const storage = await LmdbStorage.open(cluster.directory);
    await restoreState(storage, JSON.stringify(copy));
    await storage.close();
    await cluster.start();
    const status = await cluster.status();
    assert.equal(status.clusterId, clusterId);
    assert.deepEqual(
      status.tables.map(({ name }) => name),
      ['kept'],
    );
    const { serverId } = await cluster.endpoint.call('ENLIST_SERVER', data);
    assert.ok(serverId > 2 ** 32, 'an id of a new generation');
  }));

function enlistWithData(clusterId: string) {
  return {
    nonce: 'other',
    replacesId: null,
    clusterId,
    address: '127.0.0.1:9000',
    host: 'other',
    rack: null,
    master: true,
    backup: true,
    memoryBytes: 1,
  };
}

test('a coordinator whose storage was written by another stops at its next change', () =>
  withCluster(async (cluster) => {
    await cluster.add(1);
    await cluster.stop();
    const storage = await LmdbStorage.open(cluster.directory);
    cluster.endpoint = new FakeEndpoint();
    cluster.coordinator = new Coordinator(cluster.options(storage));
    await cluster.coordinator.start();
    const { revision } = storage.list('');
    await storage.commit(revision, [{ key: 'servers/77', value: undefined }]);
    const another = new FakeServer(cluster, 9);
    await assert.rejects(another.enlist(), hasCode('FENCED'));
    assert.equal((cluster.fatal as RekindleError | null)?.code, 'FENCED');
    await assert.rejects(cluster.status(), hasCode('SHUTTING_DOWN'));
    cluster.fatal = null;
  }));

/** Calls until it is answered or the coordinator hangs; a hung call is made again later. */
async function answered(cluster: FakeCluster, work: () => Promise<unknown>): Promise<boolean> {
  let done = false;
  const ended = work().then(() => {
    done = true;
  });
  await Promise.race([
    ended,
    until('an answer or the fault', () => done || cluster.faults.includes(cluster.hangAt ?? '')),
  ]);
  return done;
}

const FAULT_POINTS = [
  ...['enlist-1', 'enlist-2', 'create-1', 'create-2', 'create-3', 'create-4'],
  ...['drop-1', 'drop-2', 'drop-3', 'crash-1', 'crash-2', 'recover-fence-1'],
  ...['recover-plan-1', 'recover-plan-2', 'recover-plan-3', 'recover-sent-1'],
  ...['recover-own-1', 'recover-own-2', 'recover-release-1', 'recover-release-2'],
];

for (const name of FAULT_POINTS) {
  test(`killed at ${name}, the next coordinator finishes what was begun`, () =>
    withCluster(async (cluster) => {
      const restart = async (): Promise<void> => {
        await cluster.stop();
        cluster.hangAt = null;
        await cluster.start();
      };
      const perform = async (work: () => Promise<unknown>): Promise<void> => {
        if (await answered(cluster, work)) return;
        await restart();
        await work();
      };
      cluster.hangAt = name;
      for (let n = 1; n <= 5; n++) {
        const server = new FakeServer(cluster, n);
        cluster.servers.push(server);
        await perform(() => server.enlist());
      }
      assert.equal((await cluster.status()).servers.length, 5, 'no ghost servers');
      const create = (tableName: string) => () =>
        cluster.endpoint.call('CREATE_TABLE', { operationId: tableName, name: tableName, span: 5 });
      await perform(create('kept'));
      await perform(create('dropped'));
      await perform(async () => {
        const drop = { operationId: 'drop', name: 'dropped' };
        assert.deepEqual(await cluster.endpoint.call('DROP_TABLE', drop), { existed: true });
      });
      const dead = cluster.servers[2];
      assert.ok(dead);
      cluster.kill(dead);
      const hint = { serverId: dead.serverId, reason: 'test' };
      await cluster.endpoint.call('HINT_SERVER_CRASHED', hint);
      const recovered = async (): Promise<boolean> => {
        const { servers, tables } = await cluster.status();
        const owners = tables.flatMap(({ tablets }) => tablets.map(({ status }) => status));
        return servers.length === 4 && owners.every((status) => status === 'normal');
      };
      await until(
        'recovered or at the fault',
        async () =>
          (cluster.hangAt !== null && cluster.faults.includes(cluster.hangAt)) ||
          (await recovered()),
      );
      if (cluster.hangAt !== null) await restart();
      await until('recovered', recovered);
      assert.ok(cluster.faults.includes(name), 'the fault point was passed');
      const { tables } = await cluster.status();
      assert.deepEqual(
        tables.map((table) => table.name),
        ['kept'],
      );
      await until('the dropped table is gone everywhere', () =>
        cluster.servers.every(
          ({ alive, tablets }) => !alive || tablets.every((tablet) => tablet.startsWith('1:')),
        ),
      );
    }));
}

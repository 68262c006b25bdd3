/**
 * A whole coordinator on a real LMDB directory, with servers that exist only as answers to calls,
 * for the tests of its runtime.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Lead } from '../../src/coordinator/candidate.js';
import { Coordinator, type CoordinatorOptions } from '../../src/coordinator/coordinator.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import type { ExternalStorage } from '../../src/coordinator/external-storage/external-storage.js';
import { LmdbStorage } from '../../src/coordinator/external-storage/lmdb.js';
import { updatedList } from '../../src/coordinator/server-list-update.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { ProbeOutcome, ServerList } from '../../src/rpc/messages.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../../src/rpc/table.js';
import type { LinkPool, RpcEndpoint, RpcLink } from '../../src/rpc/transport.js';

type AnyHandler = (request: unknown, call: unknown) => unknown;

export class FakeEndpoint implements RpcEndpoint {
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
export class FakeServer {
  serverId = 0;
  alive = true;
  list: ServerList | null = null;
  stateCopy: RequestOf<'STORE_COORDINATOR_STATE'> | null = null;
  readonly tablets: string[] = [];
  readonly recovers: RequestOf<'RECOVER'>[] = [];
  readonly completed: number[] = [];
  leaseRemainderMs = 0;
  /** Of its log, on the backup that it is asked about. */
  replicas = 0;
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
        return this.takeList(request as RequestOf<'UPDATE_SERVER_LIST'>);
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
      case 'COUNT_REPLICAS':
        return { serverListVersion: this.list?.version ?? 0, replicas: this.replicas };
      case 'RECOVERY_COMPLETE':
        this.completed.push((request as RequestOf<'RECOVERY_COMPLETE'>).recoveryId);
        return {};
      default:
        return {};
    }
  }

  /** Everybody is told directly: nobody forwards. */
  private takeList({ update, forward }: RequestOf<'UPDATE_SERVER_LIST'>): unknown {
    assert.deepEqual(forward, []);
    this.list = updatedList(this.list, update) ?? this.list;
    return { version: this.list?.version ?? 0, behind: [], silent: [], untold: [] };
  }

  /** Reports success, again and again until the coordinator of the moment answers. */
  async finish(recover: RequestOf<'RECOVER'> | undefined): Promise<boolean> {
    assert.ok(recover);
    for (let attempt = 0; attempt < 1_000; attempt++) {
      try {
        return await this.report(recover);
      } catch (error) {
        if (!(error instanceof RekindleError) || !error.retryable) throw error;
        // A test may be over before a report that its coordinator has not answered.
        if (this.cluster.over) return false;
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

export class FakeCluster implements LinkPool {
  /** Nobody looks any more. */
  over = false;
  endpoint = new FakeEndpoint();
  readonly servers: FakeServer[] = [];
  readonly links = new Map<string, FakeLink>();
  storage: ExternalStorage | null = null;
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
    const storage = await this.open();
    this.endpoint = new FakeEndpoint();
    this.links.clear();
    this.coordinator = new Coordinator(this.options(storage));
    await this.coordinator.start(await winLead(storage));
  }

  async open(): Promise<ExternalStorage> {
    this.storage = await LmdbStorage.open(this.directory);
    return this.storage;
  }

  async stop(): Promise<void> {
    await this.coordinator?.close();
    this.coordinator = null;
    await this.storage?.close();
    this.storage = null;
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

/** As a candidate does it. */
export async function winLead(storage: ExternalStorage): Promise<Lead> {
  const candidacy = { term: 1, candidateId: randomUUID(), address: '127.0.0.1:7411' };
  const { leader, revision } = await storage.campaign(null, candidacy);
  assert.equal(leader.candidateId, candidacy.candidateId);
  const { pairs } = await storage.list();
  return { leadership: leader, revision, state: CoordinatorState.from(pairs) };
}

export async function withCluster(run: (cluster: FakeCluster) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'rekindle-coordinator-'));
  const cluster = new FakeCluster(directory);
  try {
    await cluster.start();
    await run(cluster);
    assert.equal(cluster.fatal, null);
  } finally {
    cluster.over = true;
    await cluster.stop();
    await rm(directory, { recursive: true, force: true });
  }
}

export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
): Promise<void> {
  const limit = performance.now() + 10_000;
  while (!(await condition())) {
    assert.ok(performance.now() < limit, `not within 10 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export const hasCode = (code: string) => (error: unknown) =>
  error instanceof RekindleError && error.code === code;

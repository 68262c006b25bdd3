/**
 * EXECUTE through the real service and replication, over a fake core and fake backups: one write
 * per backup for all that a turn appended, replies only behind all R acknowledgements, refusals
 * before anything is executed.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { MasterService } from '../../src/master/master-service.js';
import type { MigrationSource } from '../../src/master/migration-source.js';
import type { MigrationTarget } from '../../src/master/migration-target.js';
import { OwnershipNotes } from '../../src/master/ownership-notes.js';
import type { RecoveryMaster } from '../../src/master/recovery-master.js';
import { ReplicaManagerRuntime } from '../../src/master/replica-manager-runtime.js';
import type { MasterCore } from '../../src/native/contract.js';
import type { Log } from '../../src/ops/log.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { ServerList } from '../../src/rpc/messages.js';
import type { BinaryCall, RpcLink } from '../../src/rpc/transport.js';

const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  with: () => silent,
};

const openingBytes = 64;

class Cluster {
  appended = openingBytes;
  executed = 0;
  readOnly = false;
  writes: { serverId: number; offset: number; length: number; ack: () => void }[] = [];
  doubts: string[] = [];
  answerWith: RekindleError | null = null;
  autoAck = false;

  readonly core = {
    execute: (_body: Uint8Array, _reply: Uint8Array, _nowMs: number, results: Float64Array) => {
      this.executed += 1;
      if (!this.readOnly) this.appended += 32;
      results[0] = 8;
      results[1] = this.readOnly ? 0 : this.appended;
    },
    isReadOnly: () => this.readOnly,
    headsAfter: (segmentId: number) => (segmentId < 1 ? [1] : []),
    segmentState: (_segmentId: number, results: Float64Array) => {
      results.set([this.appended, 0, 0, openingBytes]);
    },
    chunk: (_segmentId: number, from: number, bytesMax: number, results: Float64Array) => {
      results[0] = from === 0 ? openingBytes : Math.min(from + bytesMax, this.appended);
      results[1] = 7;
    },
    segmentBytes: (_segmentId: number, from: number, end: number) => new Uint8Array(end - from),
    setDurable: () => undefined,
  } as unknown as MasterCore;

  leaseHeld = true;
  readonly lease = {
    holds: () => this.leaseHeld,
    holdsAt: () => this.leaseHeld,
    now: () => performance.now(),
    granted: (serverId: number, _sentAtMs: number, leaseMs: number) => {
      this.grants.push([serverId, leaseMs]);
    },
    setHolders: (serverIds: readonly number[] | null) => {
      this.holders = serverIds;
    },
  };
  grants: [serverId: number, leaseMs: number][] = [];
  holders: readonly number[] | null = null;

  readonly replication: ReplicaManagerRuntime = new ReplicaManagerRuntime({
    serverId: 1,
    replicas: 3,
    core: this.core,
    servers: { linkTo: (serverId) => this.#link(serverId) },
    coordinator: { call: async () => ({}) as never },
    log: silent,
    lease: this.lease,
    onDurable: (position) => this.service.onDurable(position),
    onFlushed: () => undefined,
    onMembershipDoubt: (reason) => this.doubts.push(reason),
  });

  readonly service: MasterService = new MasterService({
    core: this.core,
    replication: this.replication,
    recovery: {} as RecoveryMaster,
    migrationSource: {} as MigrationSource,
    migrationTarget: {} as MigrationTarget,
    notes: new OwnershipNotes({ note: () => undefined }),
    lease: this.lease,
    checkTerm: () => undefined,
    log: silent,
  });

  list(backups: number[]): void {
    const server = (serverId: number): ServerList['servers'][number] => ({
      serverId,
      address: `h${serverId}:1`,
      host: `h${serverId}`,
      rack: null,
      master: true,
      backup: true,
      status: 'up',
      memoryBytes: 1,
    });
    this.replication.applyServerList({
      version: 1,
      clusterId: 'c',
      term: 1,
      replicas: 3,
      durability: 'fsync',
      allowSameHost: false,
      copysets: [],
      servers: [1, ...backups].map(server),
    });
  }

  /** Replicates the opening, then leaves acknowledging to the test. */
  async open(): Promise<void> {
    this.list([2, 3, 4]);
    this.autoAck = true;
    this.replication.scheduleFlush();
    await until(() => this.replication.durablePosition === openingBytes);
    this.autoAck = false;
    this.writes = [];
  }

  execute(out: string[], name: string): void {
    const call: BinaryCall = {
      peer: { role: 'client', serverId: null, remoteAddress: '' },
      body: new Uint8Array(24),
      receivedMs: performance.now(),
      deadlineMs: performance.now() + 5_000,
      reply: () => out.push(name),
      replyInPlace: () => out.push(name),
      fail: (error) => out.push(`${name} ${error.code}`),
    };
    this.service.execute(call);
  }

  close(): void {
    this.replication.stop();
    this.service.close();
  }

  #link(serverId: number): RpcLink {
    const callBinary = (_name: string, parts: readonly Uint8Array[]): Promise<Uint8Array> => {
      if (this.answerWith !== null) return Promise.reject(this.answerWith);
      if (this.autoAck) return Promise.resolve(new Uint8Array(8).fill(1));
      const header = parts[0];
      assert.ok(header);
      const view = new DataView(header.buffer, header.byteOffset, header.byteLength);
      const offset = view.getUint32(24, true);
      const length = view.getUint32(28, true);
      assert.equal(parts[1]?.length ?? 0, length, 'the header names the bytes that follow');
      return new Promise((resolve) => {
        this.writes.push({
          serverId,
          offset,
          length,
          ack: () => resolve(new Uint8Array(8).fill(1)),
        });
      });
    };
    return { callBinary, flush: () => undefined } as unknown as RpcLink;
  }
}

async function until(done: () => boolean): Promise<void> {
  const limitMs = performance.now() + 5_000;
  while (!done()) {
    assert.ok(performance.now() < limitMs, 'in time');
    await sleep(2);
  }
}

test('one write a backup for all of a turn; replies in order behind the last ack', async () => {
  const cluster = new Cluster();
  await cluster.open();
  const out: string[] = [];
  for (const name of ['a', 'b', 'c']) cluster.execute(out, name);
  await until(() => cluster.writes.length > 0);
  assert.deepEqual(
    cluster.writes.map(({ offset, length }) => [offset, length]),
    [
      [openingBytes, 96],
      [openingBytes, 96],
      [openingBytes, 96],
    ],
  );
  // What comes while a write is under way is the next group: one outstanding write a replica.
  cluster.execute(out, 'd');
  await sleep(30);
  assert.equal(cluster.writes.length, 3);
  // Nor does one whose backup has answered get more before the others have: all begin together.
  const [first, second, third] = cluster.writes.splice(0);
  first?.ack();
  second?.ack();
  await sleep(60);
  assert.equal(cluster.writes.length, 0);
  assert.deepEqual(out, [], 'two of three acknowledgements are none');
  third?.ack();
  await until(() => cluster.writes.length === 3);
  assert.deepEqual(out, ['a', 'b', 'c']);
  assert.deepEqual(
    cluster.writes.map(({ offset, length }) => [offset, length]),
    Array.from({ length: 3 }, () => [openingBytes + 96, 32]),
  );
  for (const write of cluster.writes.splice(0)) write.ack();
  await until(() => out.length === 4);
  cluster.close();
});

test('too few backups: mutations are refused unexecuted, reads go on', () => {
  const cluster = new Cluster();
  cluster.list([2, 3]);
  const out: string[] = [];
  cluster.execute(out, 'write');
  assert.equal(cluster.executed, 0);
  cluster.readOnly = true;
  cluster.execute(out, 'read');
  assert.deepEqual(out, ['write NOT_ENOUGH_BACKUPS', 'read']);
  const { code, details, message } = cluster.replication.shortageError(50);
  assert.equal(code, 'NOT_ENOUGH_BACKUPS');
  assert.equal(message, 'a segment needs 3 more backups, 2 of the 2 up can be had');
  assert.deepEqual(details, { needed: 3, candidates: 2, others: 2, ruledOut: {} });
  cluster.close();
});

test('a stopped master answers RETRY and executes nothing', async () => {
  const cluster = new Cluster();
  await cluster.open();
  const out: string[] = [];
  cluster.service.stop();
  cluster.execute(out, 'a');
  cluster.service.resume();
  cluster.readOnly = true;
  cluster.execute(out, 'b');
  assert.deepEqual(out, ['a RETRY', 'b']);
  assert.equal(cluster.executed, 1);
  cluster.close();
});

test('a fenced write raises doubt and is never acknowledged', async () => {
  const cluster = new Cluster();
  await cluster.open();
  cluster.answerWith = new RekindleError('FENCED', 'fenced');
  const out: string[] = [];
  cluster.execute(out, 'a');
  await until(() => cluster.doubts.length > 0);
  assert.deepEqual(out, []);
  cluster.close();
  assert.deepEqual(out, ['a SHUTTING_DOWN']);
});

test('without a lease nothing leaves; with the lease it leaves in order', async () => {
  const cluster = new Cluster();
  await cluster.open();
  assert.deepEqual([...(cluster.holders ?? [])].sort(), [2, 3, 4]);
  const out: string[] = [];
  cluster.leaseHeld = false;
  cluster.execute(out, 'write');
  await until(() => cluster.writes.length === 3);
  for (const write of cluster.writes.splice(0)) write.ack();
  await until(() => cluster.replication.durablePosition === cluster.appended);
  cluster.readOnly = true;
  cluster.execute(out, 'read');
  await sleep(20);
  assert.deepEqual(out, [], 'executed, durable, and not told');
  assert.equal(cluster.service.counters().repliesWithoutLease, 1);
  cluster.service.onLease();
  assert.deepEqual(out, [], 'it does not hold yet');
  cluster.leaseHeld = true;
  cluster.service.onLease();
  assert.deepEqual(out.sort(), ['read', 'write']);
  cluster.close();
});

test('without a lease a read is sent away after a while, a write waits for longer', async () => {
  const cluster = new Cluster();
  await cluster.open();
  cluster.leaseHeld = false;
  const out: string[] = [];
  cluster.execute(out, 'write');
  await until(() => cluster.writes.length === 3);
  for (const write of cluster.writes.splice(0)) write.ack();
  cluster.readOnly = true;
  cluster.execute(out, 'read');
  await until(() => out.length > 0);
  assert.deepEqual(out, ['read RETRY']);
  cluster.close();
  assert.deepEqual(out, ['read RETRY', 'write SHUTTING_DOWN']);
});

/**
 * What replication owes the core's memory: segments are unpinned and drained only when no write of
 * theirs is under way, over a fake core and fake backups that answer when they are told to.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ReplicaManagerRuntime } from '../../src/master/replica-manager-runtime.js';
import type { MasterCore } from '../../src/native/contract.js';
import type { Log } from '../../src/ops/log.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { ServerList } from '../../src/rpc/messages.js';
import type { RpcLink } from '../../src/rpc/transport.js';

const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  with: () => silent,
};

const openingBytes = 64;
const segmentBytes = 500;

class Cluster {
  trace: string[] = [];
  heads = [1];
  sides = new Set<number>();
  /** Backups that take writes and say nothing, until `answer`. */
  silentBackups = new Set<number>();
  #silenced: ((error: RekindleError) => void)[] = [];
  #version = 0;

  readonly core = {
    headsAfter: (segmentId: number) => this.heads.filter((id) => id > segmentId),
    segmentState: (id: number, results: Float64Array) => {
      const closed = this.sides.has(id) || id < Math.max(...this.heads);
      const position = this.sides.has(id) ? 0 : (id - 1) * segmentBytes;
      results.set([closed ? segmentBytes : openingBytes, closed ? 1 : 0, position, openingBytes]);
    },
    chunk: (id: number, from: number, _bytesMax: number, results: Float64Array) => {
      if (from === 0) this.trace.push(`read ${id}`);
      const bytes =
        id < Math.max(...this.heads) || this.sides.has(id) ? segmentBytes : openingBytes;
      results.set([from === 0 ? openingBytes : bytes, 7, bytes]);
    },
    segmentBytes: (_id: number, from: number, end: number) => new Uint8Array(end - from),
    setDurable: () => undefined,
    unpinSegment: (id: number) => void this.trace.push(`unpin ${id}`),
  } as unknown as MasterCore;

  readonly replication = new ReplicaManagerRuntime({
    serverId: 1,
    replicas: 3,
    core: this.core,
    servers: { linkTo: (serverId) => this.#link(serverId) },
    coordinator: { call: async () => ({}) as never },
    log: silent,
    random: () => 0,
    lease: { now: () => 0, granted: () => undefined, setHolders: () => undefined },
    onDurable: () => undefined,
    onFlushed: () => undefined,
    onMembershipDoubt: () => undefined,
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
    this.#version += 1;
    this.replication.applyServerList({
      version: this.#version,
      clusterId: 'c',
      term: 1,
      replicas: 3,
      durability: 'fsync',
      allowSameHost: false,
      copysets: [],
      servers: [1, ...backups].map(server),
    });
  }

  openHead(): void {
    this.heads.push(this.heads.length + 1);
    this.replication.scheduleFlush();
  }

  /** The silent ones break off. */
  answer(): void {
    for (const reject of this.#silenced.splice(0)) {
      reject(new RekindleError('CONNECTION_LOST', 'gone'));
    }
  }

  async until(done: () => boolean): Promise<void> {
    const limitMs = performance.now() + 5_000;
    while (!done()) {
      assert.ok(performance.now() < limitMs, `in time, after ${this.trace.join(', ')}`);
      await sleep(2);
    }
  }

  #link(serverId: number): RpcLink {
    const callBinary = (): Promise<Uint8Array> =>
      this.silentBackups.has(serverId)
        ? new Promise((_resolve, reject) => this.#silenced.push(reject))
        : Promise.resolve(new Uint8Array(8).fill(1));
    return { callBinary, flush: () => undefined } as unknown as RpcLink;
  }
}

test('a head is unpinned once, when it is closed on all its backups', async () => {
  const cluster = new Cluster();
  cluster.list([2, 3, 4]);
  await cluster.until(() => cluster.replication.durablePosition === openingBytes);
  assert.ok(!cluster.trace.includes('unpin 1'));
  cluster.openHead();
  await cluster.until(() => cluster.trace.includes('unpin 1'));
  await sleep(50);
  assert.deepEqual(
    cluster.trace.filter((line) => line.startsWith('unpin')),
    ['unpin 1'],
  );
  cluster.replication.stop();
});

test('a closed replica that is lost is read from its first byte, then unpinned again', async () => {
  const cluster = new Cluster();
  cluster.list([2, 3, 4]);
  await cluster.until(() => cluster.replication.durablePosition === openingBytes);
  cluster.openHead();
  await cluster.until(() => cluster.trace.includes('unpin 1'));
  cluster.trace = [];
  cluster.list([3, 4, 5]);
  await cluster.until(() => cluster.trace.includes('unpin 1'));
  assert.ok(cluster.trace.indexOf('read 1') < cluster.trace.indexOf('unpin 1'));
  cluster.replication.stop();
});

test('a write to a lost backup that is still under way keeps the segment pinned', async () => {
  const cluster = new Cluster();
  cluster.silentBackups.add(2);
  cluster.list([2, 3, 4]);
  await sleep(30);
  cluster.list([3, 4, 5]);
  await cluster.until(() => cluster.replication.durablePosition === openingBytes);
  cluster.openHead();
  await cluster.until(() => cluster.replication.counters().segmentsBehind === 1);
  await sleep(30);
  assert.ok(!cluster.trace.includes('unpin 1'), 'the lost backup may still be sent its bytes');
  cluster.answer();
  await cluster.until(() => cluster.trace.includes('unpin 1'));
  cluster.replication.stop();
});

test('a drain waits for the writes under way and says what is to be freed', async () => {
  const cluster = new Cluster();
  cluster.list([2, 3, 4]);
  await cluster.until(() => cluster.replication.durablePosition === openingBytes);
  cluster.silentBackups.add(3);
  cluster.sides.add(9);
  cluster.replication.trackSides([9]);
  await sleep(30);
  let drained = false;
  const draining = cluster.replication.drain([9]).then((replicas) => {
    drained = true;
    return replicas;
  });
  await sleep(30);
  assert.ok(!drained, 'backup 3 has not answered');
  cluster.answer();
  const replicas = await draining;
  assert.deepEqual(
    replicas.map(({ segmentId, serverId }) => [segmentId, serverId]).sort(),
    [2, 3, 4].map((serverId) => [9, serverId]),
  );
  cluster.trace = [];
  await sleep(60);
  assert.deepEqual(cluster.trace, [], 'nothing of it is read any more');
  assert.deepEqual(cluster.replication.neededReplicas(3, [9]), []);
  cluster.replication.stop();
});

test('a stop ends a drain', async () => {
  const cluster = new Cluster();
  cluster.silentBackups.add(3);
  cluster.list([2, 3, 4]);
  cluster.sides.add(9);
  cluster.replication.trackSides([9]);
  await sleep(30);
  const draining = cluster.replication.drain([9]);
  cluster.replication.stop();
  await assert.rejects(draining, { code: 'SHUTTING_DOWN' });
});

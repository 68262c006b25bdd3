/**
 * The peers of benchmarks answer as a store must, and to the native load generator; each is skipped
 * where its program is not installed. Valkey's path is Redis's with another program.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { symlinkSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { test } from 'node:test';
import { Redis } from 'ioredis';
import { coreBinary } from '../../bench/core-binary.js';
import { Dataset, randomStream } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { type PeerName, startPeer } from '../../bench/peers.js';
import { RedisReplicas } from '../../bench/redis-replicas.js';
import { RedisServer } from '../../bench/redis-server.js';
import { SideProcess } from '../../bench/side-process.js';
import { Sides } from '../../bench/store-sides.js';
import { works } from '../../bench/throughput-works.js';
import { measureWireBytes, SocketTraffic, wireBytesTable } from '../../bench/wire-bytes.js';
import { runWireLoad } from '../../bench/wire-load.js';
import { makeTemporaryFolder, removeTemporaryFolder } from '../../src/cluster/left-behind.js';
import { withFolder } from './fixture.js';

const programs: Record<PeerName, string> = {
  redis: 'redis-server',
  valkey: 'valkey-server',
  memcached: 'memcached',
  etcd: 'etcd',
};
const MEMORY_BYTES = 64 * 2 ** 20;

function isInstalled(peer: PeerName): boolean {
  return spawnSync(programs[peer], ['--version']).status === 0;
}

function skipOf(peer: PeerName): string | false {
  return isInstalled(peer) ? false : `${programs[peer]} is not installed`;
}

const skip = skipOf('redis');

for (const peer of ['redis', 'valkey', 'memcached', 'etcd'] as const) {
  test(`${peer} as a store`, { skip: skipOf(peer), timeout: 60_000 }, async () => {
    const { store } = await startPeer(peer, MEMORY_BYTES);
    try {
      const dataset = new Dataset('object', 1_000, 100);
      await writeDataset(store, dataset);
      assert.equal(await countWrong(store, dataset), 0);
      assert.ok(dataset.matches(1, await store.get(dataset.key(1))));
      assert.equal(await store.get('absent'), undefined);
      const found = await store.getMany([dataset.key(2), 'absent', dataset.key(2)]);
      assert.deepEqual([found[0]?.length, found[1], found[2]?.length], [100, undefined, 100]);
      const large = new Dataset('large', 1, 2 ** 20);
      await store.put('large', large.value(0));
      assert.ok(large.matches(0, await store.get('large')));
      await store.putMany([
        ['twice', Buffer.from('1')],
        ['twice', Buffer.from('2')],
      ]);
      assert.deepEqual(Buffer.from((await store.get('twice')) ?? []), Buffer.from('2'));
    } finally {
      await store.close();
    }
  });
}

for (const peer of ['redis', 'memcached'] as const) {
  test(`${peer} and the load generator`, { skip: skipOf(peer), timeout: 300_000 }, async () => {
    const binary = coreBinary();
    const { store, address, dialect } = await startPeer(peer, MEMORY_BYTES);
    try {
      assert.ok(dialect !== null);
      const objects = { objects: 100, valueBytes: 100, tableId: 0, ms: 50 };
      await writeDataset(store, new Dataset('object', 100, 100));
      for (const work of ['read', 'write'] as const) {
        for (const operations of [1, 64]) {
          const load = { dialect, address, work, connections: 3, operations, ...objects };
          const { perSecond, messageP50Us } = await runWireLoad(binary, load, []);
          assert.ok(perSecond > 0 && messageP50Us > 0, `${work} ${operations}: ${perSecond}`);
        }
      }
      const wrong = { dialect, address, work: 'read', connections: 1, operations: 64 } as const;
      await assert.rejects(runWireLoad(binary, { ...wrong, ...objects, valueBytes: 99 }, []));
    } finally {
      await store.close();
    }
  });
}

test('a peer that speaks no dialect has no figure from the load generator', async () => {
  const work = works.find(({ metric }) => metric === 'server-reads-64');
  const [dataset, random] = [new Dataset('object', 1, 1), randomStream(1)];
  const side = { name: 'etcd', store: null as never, address: '', wire: null } as const;
  const round = { dataset, ms: 1, random, binary: '', pinning: null as never };
  assert.equal(await work?.measure(side, round), null);
});

test('bytes on the wire are those that Redis counts', { skip, timeout: 60_000 }, async () => {
  const traffic = new SocketTraffic();
  const { store, address } = await startPeer('redis', MEMORY_BYTES);
  try {
    const dataset = new Dataset('object', 1_000, 100);
    await writeDataset(store, dataset);
    const side = { name: 'redis', store, address, wire: null } as const;
    const loads = await measureWireBytes(side, traffic, dataset);
    const { metrics } = wireBytesTable([{ name: 'redis', loads }]);
    const bytes = new Map(metrics.map(({ name, value }) => [name, value]));
    // *2 $3 GET $16 and the key; $100 and the value. A SET has two lines and the value more.
    assert.equal(bytes.get('wire-bytes-per-get-1-redis'), 36 + 108);
    assert.equal(bytes.get('wire-bytes-per-put-1-redis'), 36 + 108 + 5);
    const { sent } = traffic.total(address);
    const observer = new Redis({ host: '127.0.0.1', port: Number(address.split(':')[1]) });
    const info = await observer.info('stats');
    observer.disconnect();
    const input = Number(/total_net_input_bytes:(\d+)/.exec(info)?.[1]);
    assert.ok(Math.abs(input / sent - 1) < 0.001, `redis: ${input}, sockets: ${sent}`);
  } finally {
    await store.close();
  }
});

test('valkey is started as redis is, by its own name', { skip, timeout: 60_000 }, async () => {
  const folder = makeTemporaryFolder('rekindle-test-');
  const path = process.env.PATH;
  try {
    const program = execFileSync('sh', ['-c', 'command -v redis-server'], { encoding: 'utf8' });
    symlinkSync(program.trim(), join(folder, 'valkey-server'));
    process.env.PATH = `${folder}${delimiter}${path}`;
    const { store } = await startPeer('valkey', MEMORY_BYTES);
    try {
      assert.equal(store.name, 'valkey no persistence');
      await store.put('a', Buffer.from('1'));
      assert.deepEqual(await store.get('a'), Buffer.from('1'));
    } finally {
      await store.close();
    }
  } finally {
    process.env.PATH = path;
    removeTemporaryFolder(folder);
  }
});

test('redis with two replicas: what is answered is on all three', {
  skip,
  timeout: 60_000,
}, async () => {
  const redis = await RedisReplicas.start();
  try {
    await Promise.all([
      redis.batched.put('a', Buffer.from('1')),
      redis.batched.putMany([['b', Buffer.from('2')]]),
      redis.each.put('c', Buffer.from('3')),
    ]);
    assert.deepEqual(await redis.get('a'), Buffer.from('1'));
    assert.equal(await redis.get('d'), undefined);
    for (const port of redis.ports) {
      const client = new Redis({ host: '127.0.0.1', port });
      assert.deepEqual(await client.mget('a', 'b', 'c'), ['1', '2', '3']);
      client.disconnect();
    }
  } finally {
    await redis.close();
  }
});

test('a program that is missing is named with its package', async () => {
  const path = process.env.PATH;
  process.env.PATH = '';
  try {
    await assert.rejects(startPeer('redis', MEMORY_BYTES), /apt install redis-server/);
    await assert.rejects(startPeer('valkey', MEMORY_BYTES), /apt install valkey-server/);
    await assert.rejects(startPeer('memcached', MEMORY_BYTES), /apt install memcached/);
  } finally {
    process.env.PATH = path;
  }
});

test('a store that fails in a process of its own keeps its code and has its name', async () => {
  const path = process.env.PATH;
  process.env.PATH = '';
  const name = 'memcached';
  const side = new SideProcess({ name, objects: 1, memoryBytes: MEMORY_BYTES, binary: '' });
  try {
    const message = /^memcached: this peer needs .* apt install memcached/;
    await assert.rejects(side.ready(), { code: 'INVALID_ARGUMENT', message });
  } finally {
    process.env.PATH = path;
    await side.stop();
  }
});

test('a server that cannot start is no endless wait', { skip, timeout: 30_000 }, async () => {
  await withFolder(async (folder) => {
    const server = await RedisServer.start(folder, ['--no-such-setting', '1']);
    await assert.rejects(server.client(), /redis-server has ended with exit code 1/);
  });
});

test('memcached has no replicas to compare with', { timeout: 60_000 }, async () => {
  const durability = 'replicated' as const;
  const options = { servers: 4, replicas: 3, durability, memoryBytes: MEMORY_BYTES } as const;
  await assert.rejects(Sides.start({ ...options, peers: ['memcached'] }), /--replicas 0/);
});

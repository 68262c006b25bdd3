/** Redis as a peer of benchmarks answers as a store must; skipped without redis-server. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { Redis } from 'ioredis';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { RedisStore } from '../../bench/redis-peer.js';
import { RedisReplicas } from '../../bench/redis-replicas.js';

const installed = spawnSync('redis-server', ['--version']).status === 0;
const skip = installed ? false : 'redis-server is not installed';

test('redis without persistence', { skip, timeout: 60_000 }, async () => {
  const store = await RedisStore.start();
  try {
    const dataset = new Dataset('object', 1_000, 100);
    await writeDataset(store, dataset);
    assert.equal(await countWrong(store, dataset), 0);
    assert.ok(dataset.matches(1, await store.get(dataset.key(1))));
  } finally {
    await store.close();
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

test('without redis-server the error names the package', { skip: installed }, async () => {
  await assert.rejects(RedisStore.start(), /apt install redis-server/);
});

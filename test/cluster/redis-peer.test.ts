/** The peer of the throughput benchmark answers as a store must; skipped without redis-server. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { RedisStore } from '../../bench/redis-peer.js';

const installed = spawnSync('redis-server', ['--version']).status === 0;
const skip = installed ? false : 'redis-server is not installed';

for (const persistence of ['none', 'always'] as const) {
  test(`redis, persistence ${persistence}`, { skip, timeout: 60_000 }, async () => {
    const store = await RedisStore.start(persistence);
    try {
      const dataset = new Dataset('object', 1_000, 100);
      await writeDataset(store, dataset);
      assert.equal(await countWrong(store, dataset), 0);
      assert.ok(dataset.matches(1, await store.get(dataset.key(1))));
    } finally {
      await store.close();
    }
  });
}

test('without redis-server the error names the package', { skip: installed }, async () => {
  await assert.rejects(RedisStore.start('none'), /apt install redis-server/);
});

/**
 * Reads and writes of one turn between real processes, durability fsync: while a write waits for a
 * backup that stands still, reads of other keys are answered; those of its own key keep their
 * order.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withCluster } from './fixture.js';

test('reads called beside a write are answered while its backups are waited for', {
  timeout: 60_000,
}, async () => {
  // With four servers every other one is a backup of the owner.
  const options = { servers: 4, memoryBytes: 128 * 2 ** 20, durability: 'fsync' as const };
  await withCluster(options, async (cluster, client) => {
    const table = await client.createTable('objects');
    const keys = Array.from({ length: 100 }, (_, i) => `key ${i}`);
    await table.putMany(keys.map((key) => [key, `old ${key}`]));
    const [tablet] = (await client.status()).tables[0]?.tablets ?? [];
    const owner = cluster.indexOf(tablet?.serverId ?? 0);
    assert.ok(owner !== undefined);
    const backup = (owner + 1) % 4;

    cluster.pauseServer(backup);
    let written = false;
    const before = table.get('key 0', { timeoutMs: 5_000 });
    const put = table.put('key 0', 'new').finally(() => {
      written = true;
    });
    let readBehind = false;
    const after = table.get('key 0').finally(() => {
      readBehind = true;
    });
    try {
      const reads = [table.getMany(keys.slice(1), { timeoutMs: 5_000 })];
      assert.equal(String(await before), 'old key 0');
      // Called while the write is under way, and once more beside another.
      reads.push(table.getMany(keys.slice(1), { timeoutMs: 5_000 }));
      const other = table.put('other', 'value');
      reads.push(table.getMany(keys.slice(1), { timeoutMs: 5_000 }));
      for (const values of await Promise.all(reads)) {
        assert.deepEqual(
          values.map(String),
          keys.slice(1).map((key) => `old ${key}`),
        );
      }
      assert.deepEqual({ written, readBehind }, { written: false, readBehind: false });
      cluster.resumeServer(backup);
      await Promise.all([put, other]);
    } finally {
      cluster.resumeServer(backup);
    }
    assert.equal(String(await after), 'new');
  });
});

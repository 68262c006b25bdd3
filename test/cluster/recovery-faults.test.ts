/**
 * A master that is paused, recovered by others and woken again: it ends by itself, and nothing that
 * clients were told is undone. A replica that rots does not hold up a recovery.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { waitFor, waitForRecovery, waitUntilWhole } from '../../bench/cluster-health.js';
import { connect } from '../../src/client/index.js';
import { flipBytes, withCluster } from './fixture.js';

test('a paused master that wakes after its recovery acknowledges nothing and exits', {
  timeout: 120_000,
}, async () => {
  const exits: (number | null)[] = [];
  const options = {
    servers: 5,
    memoryBytes: 128 * 2 ** 20,
    onUnexpectedExit: ({ code }: { code: number | null }) => exits.push(code),
  };
  await withCluster(options, async (cluster, client) => {
    const table = await client.createTable('objects');
    for (let i = 0; i < 200; i += 1) await table.put(`key-${i}`, 'old');
    const [tablet] = (await client.status()).tables[0]?.tablets ?? [];
    assert.ok(tablet !== undefined);
    const owner = cluster.indexOf(tablet.serverId);
    assert.ok(owner !== undefined);
    cluster.pauseServer(owner);
    // These lie in the sockets of the paused process, which will execute them when it wakes.
    await using second = await connect(cluster.url, { timeoutMs: 60_000 });
    const early = second.table('objects');
    const late = Array.from({ length: 100 }, (_, i) => early.put(`key-${i}`, `early ${i}`));
    await waitForRecovery(client, tablet.serverId, 60_000);
    await Promise.all(late);
    for (let i = 0; i < 100; i += 1) await table.put(`key-${i}`, `new ${i}`);
    cluster.resumeServer(owner);
    await waitFor('the end of the zombie', 20_000, async () => exits[0] ?? undefined);
    assert.deepEqual(exits, [3]);
    for (let i = 0; i < 200; i += 1) {
      assert.equal(await table.get(`key-${i}`).then(String), i < 100 ? `new ${i}` : 'old');
    }
    await cluster.restartServer(owner);
    await waitUntilWhole(client, 5, 60_000);
  });
});

test('a backup whose closed replicas have rotted does not hold up a recovery', {
  timeout: 120_000,
}, async () => {
  await withCluster({ servers: 5, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('objects');
    const value = randomBytes(100_000);
    for (let i = 0; i < 300; i += 1) await table.put(`key-${i}`, value);
    const [tablet] = (await client.status()).tables[0]?.tablets ?? [];
    assert.ok(tablet !== undefined);
    const owner = cluster.indexOf(tablet.serverId);
    assert.ok(owner !== undefined);
    // Two of four backups, so that some segment has a rotten primary and a rotten secondary.
    for (const offset of [1, 2]) flipBytes(cluster, (owner + offset) % 5);
    await cluster.killServer(owner);
    await waitForRecovery(client, tablet.serverId, 60_000);
    for (let i = 0; i < 300; i += 1) assert.deepEqual(await table.get(`key-${i}`), value);
  });
});

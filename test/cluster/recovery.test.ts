/** A server dies of SIGKILL: the others have all of its objects, and clients see no error. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitForRecovery, waitUntilWhole } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { withCluster } from './fixture.js';

test('all objects are there after the crash of one server', { timeout: 180_000 }, async () => {
  await withCluster({ servers: 5, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 10 });
    const dataset = new Dataset('object', 30_000, 500);
    await writeDataset(table, dataset);
    const serverId = cluster.serverId(1) ?? 0;
    await cluster.killServer(1);
    // Reads go on at once; those that need the dead server wait for its recovery.
    assert.equal(await countWrong(table, dataset), 0);
    const report = await waitForRecovery(client, serverId, 60_000);
    assert.ok(report.partitions.every(({ state }) => state === 'done'));
    assert.ok(report.objects > 0);
    assert.deepEqual(
      report.phases.map(({ number }) => number),
      [1, 2, 3, 4, 5, 6, 7, 8],
    );
    await cluster.restartServer(1);
    await waitUntilWhole(client, 5, 60_000);
    assert.equal(await countWrong(table, dataset), 0);
  });
});

test('the crash of two servers at once loses nothing', { timeout: 240_000 }, async () => {
  await withCluster({ servers: 6, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 12 });
    const dataset = new Dataset('object', 20_000, 500);
    await writeDataset(table, dataset);
    await Promise.all([cluster.killServer(0), cluster.killServer(3)]);
    assert.equal(await countWrong(table, dataset), 0);
    await waitUntilWhole(client, 4, 60_000);
  });
});

test('a recovery goes to masters that have the memory for it', { timeout: 240_000 }, async () => {
  const options = { servers: 4, replicas: 2, memoryBytes: 128 * 2 ** 20 };
  await withCluster(options, async (cluster, client) => {
    // One table a master; two of them are all but full, one is empty.
    const datasets = [1_200, 2_300, 2_300, 10].map((count, i) => {
      return new Dataset(`object-${i}`, count, 30_000);
    });
    for (const [i, dataset] of datasets.entries()) {
      await writeDataset(await client.createTable(`table-${i}`), dataset);
    }
    const { tables } = await client.status();
    const ownerOf = (i: number): number => tables[i]?.tablets[0]?.serverId ?? 0;
    assert.equal(new Set([0, 1, 2, 3].map(ownerOf)).size, 4);
    const crashed = ownerOf(0);
    await cluster.killServer(cluster.indexOf(crashed) ?? 0);
    const report = await waitForRecovery(client, crashed, 120_000);
    for (const { serverId } of report.partitions) assert.equal(serverId, ownerOf(3));
    assert.ok(report.partitions.length > 1, 'several for one master');
    for (const [i, dataset] of datasets.entries()) {
      assert.equal(await countWrong(client.table(`table-${i}`), dataset), 0);
    }
  });
});

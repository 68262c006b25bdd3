/**
 * The coordinator dies of SIGKILL during load: reads and writes go on without it; after its
 * restart tables can be created, and a server that died meanwhile is recovered.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { withCluster } from './fixture.js';

test('load goes on without a coordinator', { timeout: 240_000 }, async () => {
  await withCluster({ servers: 5, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 10 });
    const dataset = new Dataset('object', 10_000, 200);
    await writeDataset(table, dataset);

    let operations = 0;
    let stopped = false;
    const load = (async () => {
      for (let i = 0; !stopped; i = (i + 1) % dataset.count) {
        await table.put(dataset.key(i), dataset.value(i));
        assert.ok(dataset.matches(i, await table.get(dataset.key(i))));
        operations++;
        await delay(1);
      }
    })();
    try {
      await cluster.killCoordinator('SIGKILL');
      const before = operations;
      await Promise.race([
        load,
        waitFor('operations without a coordinator', 30_000, async () =>
          operations > before + 50 ? true : undefined,
        ),
      ]);
      await cluster.killServer(2, 'SIGKILL');
      await cluster.restartCoordinator();
      await Promise.race([load, waitUntilWhole(client, 4, 90_000)]);
    } finally {
      stopped = true;
    }
    await load;
    const created = await client.createTable('created-after', { span: 4 });
    await created.put('key', 'value');
    assert.equal(await countWrong(table, dataset), 0);
  });
});

/**
 * A coordinator with an empty store does not take over servers whose disks hold the data of
 * another cluster: it refuses them, nothing on the disks changes, and the old store still works.
 */
import assert from 'node:assert/strict';
import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { connect } from '../../src/client/index.js';
import { withCluster } from './fixture.js';

test('an empty coordinator refuses servers that hold data', { timeout: 240_000 }, async () => {
  await withCluster({ readyTimeoutMs: 30_000 }, async (cluster, client) => {
    const dataset = new Dataset('object', 5_000, 200);
    await writeDataset(await client.createTable('kept', { span: 4 }), dataset);
    await cluster.killAll('SIGTERM');

    const store = join(cluster.dataDirectory, 'coordinator');
    renameSync(store, `${store}-kept`);
    await cluster.restartCoordinator();
    await assert.rejects(cluster.restartServer(0), /WRONG_CLUSTER|another cluster/);
    await cluster.killAll('SIGKILL');

    rmSync(store, { recursive: true });
    renameSync(`${store}-kept`, store);
    await cluster.startAll();
    await using again = await connect(cluster.url, { timeoutMs: 90_000 });
    assert.equal(await countWrong(again.table('kept'), dataset), 0);
  });
});

/** The balancer spreads what lies on one server, under load, and then leaves the cluster alone. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { CheckedLoad, LIGHT_LOAD } from '../../bench/checked-load.js';
import { waitFor } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { rekindle, withCluster } from './fixture.js';

const MEMORY_BYTES = 128 * 2 ** 20;
const SERVERS = 4;
/** A quarter of the memory of one server, in four tablets. */
const OBJECTS = 32_000;
const OBJECT_BYTES = 1_000;
/** Three turns of the balancer. */
const QUIET_MS = 15_000;

test('tablets of a full server are spread over the others', { timeout: 140_000 }, async () => {
  const environment = { REKINDLE_BALANCE: '1' };
  const options = { servers: SERVERS, replicas: 2, memoryBytes: MEMORY_BYTES, environment };
  await withCluster(options, async (cluster, client) => {
    const { url } = cluster;
    const table = await client.createTable('objects', { span: 4 });
    const full = cluster.serverId(0) ?? 0;
    const gathered = await rekindle(['table', 'migrate', 'objects', '--to', `${full}`], { url });
    assert.equal(gathered.code, 0, gathered.stderr);
    const dataset = new Dataset('object', OBJECTS, OBJECT_BYTES);
    await writeDataset(table, dataset);
    const load = new CheckedLoad(await client.createTable('load'), LIGHT_LOAD, 3);
    load.start();
    const owners = async (): Promise<number[]> => {
      const tables = await client.listTables();
      const tablets = tables.find(({ name }) => name === 'objects')?.tablets ?? [];
      return tablets.map(({ serverId }) => serverId).sort((a, b) => a - b);
    };
    await waitFor('balance', 90_000, async () => {
      const { balance } = await client.status();
      const fills = balance.servers.map(({ fill }) => fill);
      // Loads from before the data are even too.
      if (balance.moves === 0 || fills.length < SERVERS) return undefined;
      return Math.max(...fills) - Math.min(...fills) < 0.1 || undefined;
    });
    const spread = await owners();
    assert.ok(new Set(spread).size >= 3, `tablets on servers ${spread}`);
    await delay(QUIET_MS);
    assert.deepEqual(await owners(), spread, 'it leaves a balanced cluster alone');
    await load.stop();
    await load.readAll();
    assert.equal(load.errorCount, 0, JSON.stringify([...load.errors]));
    assert.deepEqual(load.checker.violations, []);
    assert.equal(await countWrong(table, dataset), 0);
    const status = await rekindle(['status'], { url });
    assert.match(status.stdout, /balancer: .* tablets moved/);
  });
});

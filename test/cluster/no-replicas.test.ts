/**
 * A cluster without replicas: what is in a memory is only there. A server that dies takes its keys
 * along, the others go on, and an operator says when the lost ones may be written anew.
 */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { waitFor } from '../../bench/cluster-health.js';
import { rekindle, withCluster } from './fixture.js';

const KEYS = 200;
const OPTIONS = { servers: 2, replicas: 0, memoryBytes: 64 * 2 ** 20 };

test('without replicas a dead server takes its keys along, and no others', {
  timeout: 120_000,
}, async () => {
  await withCluster(OPTIONS, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 2 });
    const keys = Array.from({ length: KEYS }, (_, i) => `key-${i}`);
    const value = Buffer.from('value');
    await table.putMany(keys.map((key) => [key, value]));
    assert.match((await client.status()).notes.join(), /no replicas/);

    const serverId = cluster.serverId(0) ?? 0;
    await cluster.killServer(0);
    await waitFor('the recovery to say that the log is gone', 30_000, async () => {
      const { recoveries } = await client.status();
      return recoveries.find((each) => each.crashedServerId === serverId && each.gap?.headMissing);
    });
    const command = ['admin', 'accept-loss', `${serverId}`, '--segments', 'head'];
    const { code, stderr } = await rekindle(command, { url: cluster.url });
    assert.equal(code, 0, stderr);
    await waitFor('one owner of all', 30_000, async () => {
      const { tables } = await client.status();
      return tables[0]?.tablets.every((tablet) => tablet.serverId === cluster.serverId(1));
    });
    const kept = (await table.getMany(keys)).filter((found) => found !== undefined);
    assert.ok(kept.length > 0 && kept.length < KEYS, `${kept.length} of ${KEYS} are left`);
    assert.ok(kept.every((found) => value.equals(found as Buffer)));
    await table.putMany(keys.map((key) => [key, value]));
    assert.equal((await table.getMany(keys)).filter((found) => found === undefined).length, 0);
  });
});

/** What each thread does; they share nothing but the cluster. */
const THREAD = `
const { workerData, parentPort } = require('node:worker_threads');
import(workerData.library).then(async ({ connect }) => {
  const client = await connect(workerData.url);
  const table = client.table('objects');
  const keys = Array.from({ length: 500 }, (_, i) => workerData.name + i);
  await Promise.all(keys.map((key) => table.put(key, 'of ' + key)));
  const values = await table.getMany(keys);
  if (workerData.closes) await client.close();
  parentPort.postMessage(values.filter((value, i) => String(value) === 'of ' + keys[i]).length);
});`;

test('worker threads have clients of their own; one that ends takes its client along', {
  timeout: 60_000,
}, async () => {
  await withCluster(OPTIONS, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 2 });
    const library = new URL('../../src/client/index.js', import.meta.url).href;
    const threads = ['a', 'b', 'c'].map((name) => {
      const workerData = { url: cluster.url, library, name, closes: name !== 'c' };
      return new Worker(THREAD, { eval: true, workerData });
    });
    const answers = await Promise.all(threads.map((thread) => once(thread, 'message')));
    assert.deepEqual(answers, [[500], [500], [500]]);
    // Those that have closed their client end by themselves.
    const [a, b, c] = threads as [Worker, Worker, Worker];
    const ended = [a, b].map((thread) => (thread.threadId < 0 ? null : once(thread, 'exit')));
    await Promise.all([...ended, c.terminate()]);
    assert.equal((await table.getMany(['a0', 'b1', 'c2'])).filter(Boolean).length, 3);
  });
});

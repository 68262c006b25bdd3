/**
 * A cluster without replicas: what is in a memory is only there. A server that dies takes its keys
 * along, the others go on, and an operator says when the lost ones may be written anew.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
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

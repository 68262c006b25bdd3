/**
 * Tablets move between servers, and are cut, while they are read and written: nothing that was
 * acknowledged is lost, no read is stale, no call fails; removed keys stay removed; what was merged
 * stays whole.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CheckedLoad, LIGHT_LOAD } from '../../bench/checked-load.js';
import { waitFor, waitForRecovery } from '../../bench/cluster-health.js';
import type { Client } from '../../src/client/index.js';
import type { TabletInfo } from '../../src/rpc/messages.js';
import { rekindle, withCluster } from './fixture.js';

async function tabletsOf(client: Client, name: string): Promise<TabletInfo[]> {
  const tables = await client.listTables();
  return tables.find((table) => table.name === name)?.tablets ?? [];
}

/** Moves a tablet; the state in which the migration ended. */
async function move(client: Client, name: string, slot: number, to: number): Promise<string> {
  const migrationId = await client.migrateTablet(name, slot, to, { timeoutMs: 30_000 });
  return waitFor('the end of a migration', 60_000, async () => {
    const { migrations } = await client.status();
    const { state = 'running' } = migrations.find((each) => each.migrationId === migrationId) ?? {};
    return state === 'done' || state === 'aborted' ? state : undefined;
  });
}

test('a tablet moves under load, from server to server and back, and survives crashes', {
  timeout: 140_000,
}, async () => {
  await withCluster({ servers: 5, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('load', { span: 1 });
    const load = new CheckedLoad(table, LIGHT_LOAD, 7);
    load.start();
    const [tablet] = await tabletsOf(client, 'load');
    assert.ok(tablet !== undefined);
    const home = tablet.serverId;
    const others = [0, 1, 2, 3, 4].map((i) => cluster.serverId(i) ?? 0).filter((id) => id !== home);
    await table.put('removed at home', 'x');
    await table.delete('removed at home');
    for (const to of [...others.slice(0, 3), home, ...others.slice(0, 1)]) {
      assert.equal(await move(client, 'load', 0, to), 'done');
      assert.deepEqual(
        (await tabletsOf(client, 'load')).map(({ serverId }) => serverId),
        [to],
      );
      await load.readAll();
    }
    assert.equal(await table.get('removed at home'), undefined);
    assert.equal(load.errorCount, 0, JSON.stringify([...load.errors]));
    // The log of the last owner tells it all; what earlier owners have does not count.
    const [last = 0] = others;
    await cluster.killServer(cluster.indexOf(last) ?? 0);
    await waitForRecovery(client, last, 60_000);
    await load.stop();
    await load.readAll();
    assert.deepEqual(load.checker.violations, []);
    assert.equal(await table.get('removed at home'), undefined);
  });
});

test('all tablets of a table are brought together and merged', { timeout: 120_000 }, async () => {
  await withCluster({ servers: 5, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 8 });
    for (let i = 0; i < 200; i += 1) await table.put(`key-${i}`, `${i}`);
    const to = cluster.serverId(2) ?? 0;
    const url = cluster.url;
    const moved = await rekindle(['table', 'migrate', 'objects', '--to', `${to}`], { url });
    assert.equal(moved.code, 0, moved.stderr);
    assert.match(moved.stdout, /8 of 8 tablets/);
    const merged = await rekindle(['table', 'merge', 'objects'], { url });
    assert.equal(merged.code, 0, merged.stderr);
    assert.equal((await tabletsOf(client, 'objects')).length, 1);
    assert.deepEqual(await client.mergeTablets('objects').then(({ merged: runs }) => runs), 0);
    await table.put('key-0', 'after');
    const again = cluster.serverId(0) ?? 0;
    assert.equal(await move(client, 'objects', 0, again), 'done');
    await cluster.killServer(0);
    await waitForRecovery(client, again, 60_000);
    for (let i = 1; i < 200; i += 1) assert.equal(`${await table.get(`key-${i}`)}`, `${i}`);
    assert.equal(`${await table.get('key-0')}`, 'after');
    assert.ok(await client.dropTable('objects'));
  });
});

test('a tablet is cut under load, and its half goes elsewhere', { timeout: 140_000 }, async () => {
  await withCluster({ servers: 5, memoryBytes: 128 * 2 ** 20 }, async (cluster, client) => {
    const table = await client.createTable('load', { span: 1 });
    const load = new CheckedLoad(table, LIGHT_LOAD, 11);
    load.start();
    const [tablet] = await tabletsOf(client, 'load');
    assert.ok(tablet !== undefined);
    const home = tablet.serverId;
    // Another client than the load's: that one finds out by itself.
    const url = cluster.url;
    const split = await rekindle(['table', 'split', 'load'], { url });
    assert.equal(split.code, 0, split.stderr);
    assert.match(split.stdout, /2 tablets/);
    const at = 2 ** 30;
    assert.equal((await client.splitTablet('load', { slot: at })).tablets.length, 3);
    assert.equal((await client.splitTablet('load', { slot: at })).tablets.length, 3);
    const other = [0, 1, 2].map((i) => cluster.serverId(i) ?? 0).find((id) => id !== home) ?? 0;
    assert.equal(await move(client, 'load', at, other), 'done');
    const owners = (await tabletsOf(client, 'load')).map(({ serverId }) => serverId);
    assert.deepEqual(owners, [home, other, home]);
    await load.readAll();
    assert.equal(load.errorCount, 0, JSON.stringify([...load.errors]));
    // The other halves stay two when their owner dies.
    await cluster.killServer(cluster.indexOf(home) ?? 0);
    await waitForRecovery(client, home, 60_000);
    await load.stop();
    await load.readAll();
    assert.deepEqual(load.checker.violations, []);
    assert.ok(await client.dropTable('load'));
  });
});

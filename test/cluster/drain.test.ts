/**
 * Servers are emptied, stopped and restarted under load: no call fails, nothing is lost, nobody is
 * recovered. Drains outlive the leader, can be cancelled, and are refused where the others could
 * not do without the server.
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { CheckedLoad, LIGHT_LOAD } from '../../bench/checked-load.js';
import { waitFor, waitForRecovery, waitUntilWhole } from '../../bench/cluster-health.js';
import { withoutEtcd } from '../../bench/etcd.js';
import { leaderOf, withStandbys } from '../../bench/standbys.js';
import { type Client, connect } from '../../src/client/index.js';
import type { LocalCluster } from '../../src/cluster/local-cluster.js';
import type { ClusterStatus } from '../../src/rpc/messages.js';
import { backupStats, rekindle, withCluster } from './fixture.js';

const MEMORY_BYTES = 128 * 2 ** 20;
const LOAD = { ...LIGHT_LOAD, valueBytesMax: 16_000, writePauseMs: 20 };

/** The load goes on around `body`; afterwards nothing may have failed or be missing. */
async function underLoad(client: Client, body: () => Promise<void>): Promise<void> {
  const table = await client.createTable('load', { span: 10 });
  const load = new CheckedLoad(table, LOAD, 11);
  load.start();
  try {
    await body();
  } finally {
    load.end();
  }
  await load.stop();
  await load.readAll();
  assert.equal(load.errorCount, 0, JSON.stringify([...load.errors]));
  assert.deepEqual(load.checker.violations, []);
}

function tabletsOn({ tables }: ClusterStatus, serverId: number): number {
  const tablets = tables.flatMap((table) => table.tablets);
  return tablets.filter((tablet) => tablet.serverId === serverId).length;
}

/** Nobody misses it: no recovery, no absent disk; it starts again and is a server like others. */
async function stopAndStart(cluster: LocalCluster, client: Client, index: number): Promise<void> {
  const { recoveries } = await client.status();
  const serverId = cluster.serverId(index);
  await cluster.killServer(index, 'SIGTERM');
  await waitFor('the server to be gone', 20_000, async () => {
    const { servers } = await client.status();
    return !servers.some((server) => server.serverId === serverId) || undefined;
  });
  await cluster.restartServer(index);
  const status = await waitUntilWhole(client, cluster.serverCount, 30_000);
  assert.deepEqual(status.recoveries, recoveries);
}

test('a server is emptied under load, stopped without a recovery, and started again', {
  timeout: 120_000,
}, async () => {
  await withCluster({ servers: 5, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    const { url } = cluster;
    await underLoad(client, async () => {
      const victim = cluster.serverId(1) ?? 0;
      const drained = await rekindle(['drain', `${victim}`], { url });
      assert.equal(drained.code, 0, drained.stderr);
      assert.match(drained.stdout, /can be stopped/);
      const status = await client.status();
      assert.equal(tabletsOn(status, victim), 0);
      assert.deepEqual(
        status.drains.map(({ serverId, state, replicas }) => [serverId, state, replicas]),
        [[victim, 'drained', 0]],
      );
      assert.ok(status.notes.some((note) => note.includes('can be stopped')));
      // Its own log is all that the others hold of it, and it holds none of theirs.
      const { replicas } = await backupStats(client, victim);
      assert.equal(replicas, 0);
      await assert.rejects(client.migrateTablet('load', 0, victim), /drained/);
      await stopAndStart(cluster, client, 1);
      assert.deepEqual((await client.status()).drains, []);
    });
  });
});

test('a drain can be cancelled, and is refused where a server cannot be spared', {
  timeout: 120_000,
}, async () => {
  await withCluster({ servers: 5, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    const { url } = cluster;
    const [first = 0, second = 0] = [0, 1].map((index) => cluster.serverId(index) ?? 0);
    assert.equal((await rekindle(['drain', `${first}`], { url })).code, 0);
    const refused = await rekindle(['drain', `${second}`], { url });
    assert.equal(refused.code, 2);
    assert.match(refused.stderr, /cannot be drained/);
    const unknown = await rekindle(['drain', '77'], { url });
    assert.match(unknown.stderr, /77 is not up/);
    const cancelled = await rekindle(['drain', `${first}`, '--cancel'], { url });
    assert.equal(cancelled.code, 0, cancelled.stderr);
    assert.deepEqual((await client.status()).drains, []);
    const started = await rekindle(['drain', `${second}`, '--no-wait'], { url });
    assert.equal(started.code, 0, started.stderr);
    const table = await client.createTable('afterwards', { span: 10 });
    await table.put('key', 'value');
    assert.equal(tabletsOn(await client.status(), second), 0);
    assert.ok(tabletsOn(await client.status(), first) > 0);
  });
});

test('a drain goes on under the next leader', {
  skip: withoutEtcd,
  timeout: 140_000,
}, async () => {
  const options = { servers: 5, memoryBytes: MEMORY_BYTES, replicas: 3 };
  await withStandbys(options, async (cluster) => {
    await cluster.startAll();
    await using client = await connect(cluster.url, { timeoutMs: 30_000 });
    await underLoad(client, async () => {
      const victim = cluster.serverId(2) ?? 0;
      await client.drainServer(victim);
      await cluster.killCoordinator('SIGKILL', await leaderOf(client, cluster));
      await client.drainServer(victim);
      const drainOf = async () =>
        (await client.status()).drains.find(({ serverId }) => serverId === victim);
      assert.ok((await drainOf()) !== undefined);
      await waitFor('the drain', 60_000, async () => {
        return (await drainOf())?.state === 'drained' || undefined;
      });
      assert.equal(tabletsOn(await client.status(), victim), 0);
      await stopAndStart(cluster, client, 2);
    });
  });
});

test('a drain goes on when another server dies, and ends with its own', {
  timeout: 140_000,
}, async () => {
  await withCluster({ servers: 6, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    await underLoad(client, async () => {
      const [victim = 0, other = 0] = [0, 1].map((index) => cluster.serverId(index) ?? 0);
      await client.drainServer(victim);
      await cluster.killServer(1, 'SIGKILL');
      await waitForRecovery(client, other, 60_000);
      await cluster.restartServer(1);
      await waitFor('the drain', 60_000, async () => {
        const { drains } = await client.status();
        return drains[0]?.state === 'drained' || undefined;
      });
      assert.equal(tabletsOn(await client.status(), victim), 0);
      await stopAndStart(cluster, client, 0);
      const dying = cluster.serverId(2) ?? 0;
      await client.drainServer(dying);
      await cluster.killServer(2, 'SIGKILL');
      await waitForRecovery(client, dying, 60_000);
      await cluster.restartServer(2);
      const status = await waitUntilWhole(client, cluster.serverCount, 60_000);
      assert.deepEqual(status.drains, []);
    });
  });
});

test('all servers are restarted one after the other without a failed call', {
  timeout: 145_000,
}, async () => {
  await withCluster({ servers: 5, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    await underLoad(client, async () => {
      const before = (await client.status()).servers.map(({ serverId }) => serverId);
      const file = join(cluster.dataDirectory, 'to-restart');
      let over = false;
      const restarted: number[] = [];
      const restartAsTold = async (): Promise<void> => {
        while (!over) {
          await waitFor('another server or the end', 120_000, async () => {
            const told = existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : [];
            return over || told.length > restarted.length ? true : undefined;
          });
          if (over) return;
          const serverId = Number(readFileSync(file, 'utf8').trim().split('\n')[restarted.length]);
          restarted.push(serverId);
          const index = cluster.indexOf(serverId) ?? assert.fail(`${serverId} runs`);
          await cluster.killServer(index, 'SIGTERM');
          await cluster.restartServer(index);
        }
      };
      const command = `echo "$REKINDLE_SERVER_ID" >> '${file}'`;
      const url = cluster.url;
      const run = rekindle(['admin', 'rolling-restart', '--command', command], { url }).finally(
        () => {
          over = true;
        },
      );
      const [result] = await Promise.all([run, restartAsTold()]);
      assert.equal(result.code, 0, result.stderr);
      assert.match(result.stdout, /5 servers restarted/);
      assert.deepEqual(restarted, before);
      const { recoveries, servers } = await client.status();
      assert.deepEqual(recoveries, []);
      assert.ok(servers.every(({ serverId }) => !before.includes(serverId)));
    });
  });
});

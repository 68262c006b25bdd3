/**
 * A cluster that is made before its coordinator, and one whose coordinator's state is lost with all
 * its copies: what the logs of the masters say is enough to serve every acknowledged object again.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { waitForRecovery } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { EtcdCluster, withoutEtcd } from '../../bench/etcd.js';
import { type Client, connect } from '../../src/client/index.js';
import { LocalCluster } from '../../src/cluster/local-cluster.js';
import { rekindle, withCluster, withFolder } from './fixture.js';

const OPTIONS = { timeout: 240_000 };
const SETTINGS = ['--replicas', '2', '--allow-same-host'];
const MEMORY = 64 * 2 ** 20;

test('a cluster that init has made is the one that starts, and no other', OPTIONS, async () => {
  await withFolder(async (folder) => {
    const options = { dataDirectory: folder, servers: 3, replicas: 2, memoryBytes: MEMORY };
    await using cluster = await LocalCluster.create(options);
    const store = join(folder, 'coordinator');
    const made = await rekindle(['init', '--data', store, ...SETTINGS, '--json']);
    assert.equal(made.code, 0, made.stderr);
    const { clusterId } = JSON.parse(made.stdout);
    const again = await rekindle(['init', '--data', store]);
    assert.equal(again.code, 2);
    assert.match(again.stderr, new RegExp(`INVALID_ARGUMENT: .*${clusterId}`));

    await cluster.startAll();
    await using client = await connect(cluster.url, { timeoutMs: 30_000 });
    assert.equal((await client.status()).clusterId, clusterId);
    await (await client.createTable('kept')).put('key', 'value');
    await cluster.killAll();

    // The disks belong to it: another cluster, made by init as well, does not get them.
    renameSync(store, `${store}-kept`);
    assert.equal((await rekindle(['init', '--data', store, ...SETTINGS])).code, 0);
    await cluster.restartCoordinator();
    await assert.rejects(cluster.restartServer(0), /WRONG_CLUSTER/);
    await cluster.killAll();
    rmSync(store, { recursive: true });
    renameSync(`${store}-kept`, store);
    await cluster.startAll();
    await using later = await connect(cluster.url, { timeoutMs: 60_000 });
    assert.equal(String(await later.table('kept').get('key')), 'value');
  });
});

test('init fixes what an etcd holds', { ...OPTIONS, skip: withoutEtcd }, async () => {
  const etcd = await EtcdCluster.start(1);
  try {
    const storage = `etcd://${etcd.endpoints.join(',')}/${randomUUID()}`;
    const made = await rekindle(['init', '--storage', storage, ...SETTINGS, '--json']);
    assert.equal(made.code, 0, made.stderr);
    const { clusterId } = JSON.parse(made.stdout);
    const again = await rekindle(['init', '--storage', storage]);
    assert.equal(again.code, 2);
    assert.ok(again.stderr.includes(clusterId));
    const coordinator = ['coordinator', '--storage', storage, '--port', '0'];
    const other = await rekindle([...coordinator, '--replicas', '3']);
    assert.equal(other.code, 2);
    assert.match(other.stderr, /created with replicas = 2/);
    const options = { servers: 1, replicas: 2, storage, memoryBytes: MEMORY };
    await using cluster = await LocalCluster.start(options);
    await using client = await connect(cluster.url);
    const status = await client.status();
    assert.deepEqual([status.clusterId, status.replicas], [clusterId, 2]);
    const busy = await rekindle(['init', '--storage', storage]);
    assert.equal(busy.code, 2);
  } finally {
    await etcd.stop();
  }
});

const NAMES = ['plain', 'halved', 'moved', 'dropped'] as const;

async function fill(client: Client, dataset: Dataset): Promise<void> {
  for (const name of NAMES) {
    await writeDataset(await client.createTable(name, { span: 3 }), dataset);
  }
}

/** Drops, splits, moves and recovers tablets, so that owners follow owners. */
async function shuffle(cluster: LocalCluster, client: Client, dataset: Dataset): Promise<void> {
  const run = async (line: string): Promise<void> => {
    const { code, stderr } = await rekindle(line.split(' '), { url: cluster.url });
    assert.equal(code, 0, `${line}: ${stderr}`);
  };
  await run('table drop dropped');
  await run('table split halved');
  await run(`table migrate moved --to ${cluster.serverId(1)}`);
  await run(`table migrate halved --to ${cluster.serverId(2)}`);
  const killed = cluster.serverId(1) ?? 0;
  await cluster.killServer(1);
  await waitForRecovery(client, killed, 60_000);
  await cluster.restartServer(1);
  // Newer than all that the former owners have.
  await writeDataset(client.table('moved'), dataset);
  await writeDataset(client.table('halved'), dataset);
  await client.table('plain').put('late', 'here');
  await client.table('plain').put('gone', 'here');
  await client.table('plain').delete('gone');
}

test('the logs alone bring a cluster back', OPTIONS, async () => {
  await withFolder(async (folder) => {
    const options = { replicas: 2, servers: 4, memoryBytes: 3 * MEMORY };
    await withCluster({ ...options, dataDirectory: folder }, async (cluster, client) => {
      const dataset = new Dataset('object', 3_000, 200);
      await fill(client, new Dataset('object', 3_000, 100));
      await fill(client, dataset);
      await shuffle(cluster, client, dataset);
      const before = await client.status();
      await cluster.killAll();

      const disks = [1, 2, 3, 4].map((n) => join(cluster.dataDirectory, `server-${n}`));
      rmSync(join(folder, 'coordinator'), { recursive: true });
      for (const disk of disks) rmSync(join(disk, 'coordinator-state.json'), { force: true });
      const file = join(folder, 'state.json');
      const rebuild = (more: string[]) => rekindle(['admin', 'rebuild', ...disks, ...more]);
      const shown = await rebuild([]);
      assert.equal(shown.code, 1, shown.stderr);
      assert.match(shown.stdout, /Nothing was written/);
      const wrong = await rebuild(['--cluster', randomUUID(), '--out', file]);
      assert.equal(wrong.code, 2);
      const confirmed = ['--cluster', before.clusterId, '--out', file];
      // A kill may leave a head between two sets of backups.
      const written = await rebuild([...confirmed, '--incomplete']);
      assert.equal(written.code, 0, written.stdout + written.stderr);
      assert.doesNotMatch(written.stdout, /nobody has slots|dropped/);
      assert.equal((await rebuild([...confirmed, '--incomplete'])).code, 2, 'it is there');

      await cluster.restartCoordinator({ REKINDLE_RESTORE: file });
      await cluster.startAll();
      await using later = await connect(cluster.url, { timeoutMs: 90_000 });
      for (const name of ['plain', 'halved', 'moved']) {
        assert.equal(await countWrong(later.table(name), dataset), 0, name);
      }
      assert.equal(String(await later.table('plain').get('late')), 'here');
      assert.equal(await later.table('plain').get('gone'), undefined);
      const status = await later.status();
      assert.equal(status.clusterId, before.clusterId);
      assert.deepEqual(status.tables.map(({ name }) => name).sort(), ['halved', 'moved', 'plain']);
      const ids = (list: { tableId: number }[]): number[] => list.map(({ tableId }) => tableId);
      const fresh = await later.createTable('dropped');
      const created = (await later.status()).tables.find(({ name }) => name === 'dropped');
      assert.ok((created?.tableId ?? 0) > Math.max(...ids(before.tables)) + 1);
      assert.equal(await fresh.get(dataset.key(0)), undefined);
      const oldServers = before.servers.map(({ serverId }) => serverId);
      const up = status.servers.filter((server) => server.status === 'up');
      assert.ok(up.every(({ serverId }) => !oldServers.includes(serverId)));
    });
  });
});

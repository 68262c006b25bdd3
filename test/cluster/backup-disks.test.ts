/**
 * Disks under a running cluster: a replica that rots is found and written anew from its master's
 * memory; a disk that fails takes its frames out, and neither its process nor its master.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serverStats, waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { backupStats, flipBytes, rekindle, waitUntilReplicated, withCluster } from './fixture.js';

const memoryBytes = 256 * 2 ** 20;
const brief = { timeoutMs: 1_500 };

test('what rots on a disk is written anew from memory', { timeout: 240_000 }, async () => {
  const serverArguments = ['--scrub-rate', '400MB'];
  await withCluster({ servers: 5, memoryBytes, serverArguments }, async (cluster, client) => {
    const dataset = new Dataset('object', 40_000, 1_000);
    await writeDataset(await client.createTable('kept', { span: 4 }), dataset);
    // By chance a backup may have got no replica that is closed.
    const rotten = await waitFor('closed replicas scrubbed', 60_000, async () => {
      const servers = await serverStats(client);
      const scrubbed = servers.find(({ backup }) => {
        return (backup?.scrubPasses ?? 0) >= 2 && (backup?.scrubbedBytes ?? 0) > 2 ** 20;
      });
      return scrubbed && cluster.indexOf(scrubbed.serverId);
    });
    const victim = cluster.serverId(rotten) ?? 0;
    assert.equal((await backupStats(client, victim)).rotFound, 0);
    flipBytes(cluster, rotten);
    const found = await waitFor('rot found and freed', 60_000, async () => {
      const stats = await backupStats(client, victim);
      return (stats.rotFound ?? 0) > 0 && stats.replicasRotten === 0 ? stats : undefined;
    });
    assert.ok((found.framesBad ?? 0) > 0, 'its frames are not used again');
    await waitUntilReplicated(client);
    const status = await rekindle(['status', '--json'], { url: cluster.url });
    const { backups } = JSON.parse(status.stdout) as { backups: { rotFound: number }[] };
    assert.ok(backups.some(({ rotFound }) => rotFound > 0));
    // Two other servers die at once: what is left of some segments is on the victim and one other.
    const others = [(rotten + 2) % 5, (rotten + 3) % 5];
    await Promise.all(others.map((index) => cluster.killServer(index)));
    await Promise.all(others.map((index) => cluster.restartServer(index)));
    await waitUntilWhole(client, 5, 90_000);
    assert.equal(await countWrong(client.table('kept'), dataset), 0);
  });
});

test('a disk that fails costs no write and no server', { timeout: 240_000 }, async () => {
  await withCluster({ servers: 5, memoryBytes }, async (cluster, client) => {
    await cluster.killServer(0, 'SIGTERM');
    const faulty = await cluster.restartServer(0, { REKINDLE_DISK_FAULT: 'sync@25' });
    await waitUntilWhole(client, 5, 60_000);
    const table = await client.createTable('kept', { span: 5 });
    const dataset = new Dataset('object', 40_000, 1_000);
    await writeDataset(table, dataset);
    // How many writes share a flush depends on how fast they come.
    for (let round = 0; (await backupStats(client, faulty)).diskFailed === 0; round++) {
      assert.ok(round < 20, 'the flush that fails comes');
      await writeDataset(table, dataset);
    }
    const stats = await backupStats(client, faulty);
    assert.equal(stats.framesFree, 0, 'nothing is placed there any more');
    assert.ok(cluster.isRunning(0), 'the process goes on');
    const status = await rekindle(['status'], { url: cluster.url });
    assert.equal(status.code, 1);
    assert.match(status.stdout, new RegExp(`the disk of server ${faulty} has failed`));
    assert.match(status.stdout, /FAILED/);
    await waitUntilReplicated(client);
    assert.equal(await countWrong(table, dataset), 0, 'its own master serves, too');
    // With another disk, or this one mended: its former incarnation is recovered by the others.
    await cluster.killServer(0);
    await cluster.restartServer(0);
    await waitUntilWhole(client, 5, 90_000);
    assert.equal(await countWrong(table, dataset), 0);
    const mended = await rekindle(['status'], { url: cluster.url });
    assert.doesNotMatch(mended.stdout, /FAILED/);
  });
});

test('a client is told what rules the missing backups out', { timeout: 120_000 }, async () => {
  await withCluster({ servers: 4, memoryBytes }, async (cluster, client) => {
    const table = await client.createTable('kept', { span: 4 });
    await table.put('early', 'kept');
    await cluster.killServer(0, 'SIGTERM');
    // Late enough for the cluster to be whole before: some tens of syncs are for the recovery.
    const faulty = await cluster.restartServer(0, { REKINDLE_DISK_FAULT: 'sync@200' });
    await waitUntilWhole(client, 4, 60_000);
    const limitMs = performance.now() + 60_000;
    for (let round = 0; (await backupStats(client, faulty)).diskFailed !== 1; round += 1) {
      assert.ok(performance.now() < limitMs, 'the disk fails under writes');
      await Promise.allSettled([0, 1, 2, 3].map((i) => table.put(`${round} ${i}`, 'v', brief)));
    }
    // A master that has a failed disk itself still has three others; the others have two.
    const keys = Array.from({ length: 16 }, (_, index) => `late ${index}`);
    const refused = async () => {
      const outcomes = await Promise.allSettled(keys.map((key) => table.put(key, 'v', brief)));
      const reasons = outcomes.flatMap((each) => (each.status === 'rejected' ? [each.reason] : []));
      return reasons.find(({ code }) => code === 'NOT_ENOUGH_BACKUPS');
    };
    // What came before its master had heard of it is in the log, and waits: TIMEOUT.
    const refusal = await waitFor('a write is refused', 30_000, refused);
    assert.match(refusal.message, /with a failed disk/);
    assert.equal(refusal.details.ruledOut.diskFailed, 1);
    assert.equal(refusal.outcome, 'not-applied');
    assert.equal(String(await table.get('early')), 'kept', 'reads go on');
  });
});

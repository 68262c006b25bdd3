/**
 * A backup or a master dies at a step of the repair of rot (docs/replication.md §3): nothing is
 * lost, and no damaged replica is read.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { flipBytes, withCluster } from './fixture.js';

const victim = 0;
const FLIP_AGAIN_MS = 5_000;

for (const [point, dies] of [
  ['rot-1', victim],
  ['rot-2', 1],
  ['rot-3', 1],
  ['rot-4', victim],
] as const) {
  test(`${point}: ${dies === victim ? 'the backup' : 'a master'} dies`, {
    timeout: 180_000,
  }, async () => {
    const serverArguments = ['--scrub-rate', '400MB'];
    const options = { servers: 5, memoryBytes: 256 * 2 ** 20, serverArguments };
    await withCluster(options, async (cluster, client) => {
      await cluster.killServer(dies, 'SIGTERM');
      await cluster.restartServer(dies, { REKINDLE_FAULT: `${point}=crash` });
      await waitUntilWhole(client, 5, 60_000);
      // A tablet on each master, and two closed segments of each: by chance a backup may have no
      // replica of one, hardly of eight.
      const dataset = new Dataset('object', 90_000, 1_000);
      await writeDataset(await client.createTable('kept', { span: 5 }), dataset);
      // A closed segment of that master lies on three of the four others, hence on one of these.
      const damaged = dies === victim ? [victim] : [victim, 2];
      let flips = 0;
      let flipAtMs = 0;
      await waitFor('it died there', 60_000, async () => {
        // What was damaged may be replaced by an image that was being made: other bytes then.
        if (performance.now() >= flipAtMs) {
          flipAtMs = performance.now() + FLIP_AGAIN_MS;
          for (const index of damaged) flipBytes(cluster, index, 5_000 + flips);
          flips += 1;
        }
        return cluster.isRunning(dies) ? undefined : true;
      });
      await cluster.restartServer(dies);
      await waitUntilWhole(client, 5, 90_000);
      assert.equal(await countWrong(client.table('kept'), dataset), 0);
    });
  });
}

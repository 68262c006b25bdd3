/**
 * The whole cluster is gone and comes back in any order: what is missing is waited for and named;
 * one disk less than there are replicas costs nothing; and mode `replicated` says what it cannot
 * vouch for. The order follows from a seed that is printed; REKINDLE_SEED=n repeats it.
 */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { Dataset, randomStream } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import type { Client } from '../../src/client/index.js';
import type { RecoveryReport } from '../../src/rpc/messages.js';
import { rekindle, withCluster } from './fixture.js';

const MEMORY_BYTES = 128 * 2 ** 20;

function shuffled(count: number, random: () => number): number[] {
  const left = Array.from({ length: count }, (_, i) => i);
  return Array.from({ length: count }, () => left.splice(random() % left.length, 1)[0] ?? 0);
}

/** Recoveries that wait although every backup that is up has said what it has. */
async function waiting(client: Client): Promise<RecoveryReport[]> {
  const { recoveries } = await client.status();
  return recoveries.filter(({ gap }) => gap?.holders.every(({ state }) => state !== 'silent'));
}

/** Servers that own tablets. */
async function owners(client: Client): Promise<Set<number>> {
  const { tables } = await client.status();
  return new Set(tables.flatMap(({ tablets }) => tablets.map(({ serverId }) => serverId)));
}

test('in any order, with servers missing at first and one disk wiped, nothing is lost', {
  timeout: 300_000,
}, async (t) => {
  const seed = Number(process.env.REKINDLE_SEED ?? Date.now() % 1_000_000);
  t.diagnostic(`REKINDLE_SEED=${seed}`);
  const random = randomStream(seed);
  await withCluster({ servers: 5, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 10 });
    const dataset = new Dataset('object', 10_000, 1_000);
    await writeDataset(table, dataset);
    const order = shuffled(5, random);
    const [wiped = 0, second = 0] = order;
    const secondId = cluster.serverId(second) ?? 0;
    assert.ok((await owners(client)).has(secondId));
    await cluster.killAll();
    rmSync(join(cluster.dataDirectory, `server-${wiped + 1}`), { recursive: true });

    // The log of the second one lies on the four others, of which only the wiped one is there.
    await cluster.restartCoordinator();
    for (const index of [wiped, second]) {
      await delay(random() % 500);
      await cluster.restartServer(index);
    }
    const waits = await waitFor('the recovery that waits', 60_000, async () => {
      const found = (await waiting(client)).find((one) => one.crashedServerId === secondId);
      return found?.gap?.holders.length === 4 ? found : undefined;
    });
    const states = waits.gap?.holders.map(({ state }) => state) ?? [];
    assert.deepEqual(states.sort(), ['emptied', 'gone', 'gone', 'gone']);
    const text = (await rekindle(['status'], { url: cluster.url })).stdout;
    assert.match(text, new RegExp(`the recovery of server ${secondId} cannot go on:`));
    assert.match(text, /may have it: server \d+, host [^ ]+, 127\.0\.0\.1:\d+ \(gone\)/);

    for (const index of order.slice(2)) {
      await delay(random() % 1_500);
      await cluster.restartServer(index);
    }
    const { losses } = await waitUntilWhole(client, 5, 90_000);
    assert.equal(await countWrong(table, dataset), 0);
    assert.deepEqual(losses, []);
  });
});

test('replicated: after a clean stop nothing is in doubt, after a kill the doubt is named', {
  timeout: 300_000,
}, async () => {
  const options = { servers: 4, memoryBytes: MEMORY_BYTES, durability: 'replicated' as const };
  await withCluster(options, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 4 });
    const dataset = new Dataset('object', 2_000, 1_000);
    await writeDataset(table, dataset);
    await cluster.killAll('SIGTERM');
    await cluster.startAll();
    await waitUntilWhole(client, 4, 60_000);
    assert.equal(await countWrong(table, dataset), 0);

    await writeDataset(table, dataset);
    const logs = (await owners(client)).size;
    await cluster.killAll();
    await cluster.startAll();
    const waits = await waitFor('all recoveries to wait', 60_000, async () => {
      const found = await waiting(client);
      return found.length === logs ? found : undefined;
    });
    for (const { crashedServerId, gap } of waits) {
      assert.ok(gap !== null);
      assert.ok(gap.doubtful.length > 0, 'the heads may be cut short');
      const text = (await rekindle(['admin', 'accept-loss', `${crashedServerId}`], cluster)).stdout;
      for (const { segmentId, fromByte } of gap.doubtful) {
        assert.match(text, new RegExp(`segment ${segmentId} may lack bytes from ${fromByte} on`));
      }
      const segments = [...gap.missing, ...gap.doubtful.map(({ segmentId }) => segmentId)];
      const command = ['admin', 'accept-loss', `${crashedServerId}`, '--timeout', '20s'];
      const accepted = await rekindle([...command, '--segments', segments.join()], cluster);
      assert.equal(accepted.code, 0, accepted.stderr);
    }
    const { losses } = await waitUntilWhole(client, 4, 60_000);
    assert.equal(losses.length, logs);
    // Every object was flushed once before; of the second round some may be lost.
    assert.equal(await countWrong(table, dataset), 0);
    await table.put('after', 'the loss');
  });
});

/**
 * A large table is dropped beside another that is read: the objects go in turns on a thread of the
 * pool, so that the server answers all the while, and nothing of them is left at the end.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serverStats, waitFor } from '../../bench/cluster-health.js';
import { forEachBatch } from '../../bench/concurrency.js';
import { type Client, connect, type Table } from '../../src/client/index.js';
import { withCluster } from './fixture.js';

const objects = 1_500_000;
const valueBytes = 100;
const batch = 500;
const inFlight = 8;
/** A server that stands still for 400 ms may be declared crashed. */
const readMsMax = 100;

async function fill(table: Table): Promise<void> {
  const value = Buffer.alloc(valueBytes, 7);
  await forEachBatch(objects, batch, inFlight, async (from, to) => {
    const entries: [string, Uint8Array][] = [];
    for (let i = from; i < to; i += 1) entries.push([`key-${i}`.padEnd(24, '.'), value]);
    await table.putMany(entries);
  });
}

/** Reads one object after the other until `ended`; how long each took. */
async function readUntil(table: Table, ended: () => boolean): Promise<number[]> {
  const times: number[] = [];
  for (let i = 0; !ended(); i = (i + 1) % 100) {
    const startMs = performance.now();
    assert.equal(`${await table.get(`small-${i}`)}`, `${i}`);
    times.push(performance.now() - startMs);
  }
  return times.sort((a, b) => a - b);
}

async function masterStats(client: Client): Promise<Record<string, number>> {
  const [server] = await serverStats(client);
  assert.ok(server?.master !== undefined && server.master !== null);
  return server.master;
}

test('a table of 1.5 million objects is dropped while another is read', {
  timeout: 140_000,
}, async (t) => {
  const options = { servers: 1, replicas: 0, memoryBytes: 512 * 2 ** 20 };
  await withCluster(options, async (cluster, client) => {
    const [large, small] = [await client.createTable('large'), await client.createTable('small')];
    for (let i = 0; i < 100; i += 1) await small.put(`small-${i}`, `${i}`);
    await fill(large);
    assert.equal((await masterStats(client)).objects, objects + 100);
    // A client of its own: its only work is to read.
    await using reader = await connect(cluster.url);
    const readable = reader.table('small');
    let dropped = false;
    const startMs = performance.now();
    const drop = client.dropTable('large').finally(() => {
      dropped = true;
    });
    const times = await readUntil(readable, () => dropped);
    assert.ok(await drop);
    const dropMs = performance.now() - startMs;
    const at = (share: number): string => (times[Math.floor(times.length * share)] ?? 0).toFixed(2);
    const longestMs = times.at(-1) ?? 0;
    t.diagnostic(
      `dropped in ${dropMs.toFixed(0)} ms; ${times.length} reads meanwhile: ` +
        `p50 ${at(0.5)}, p99 ${at(0.99)}, longest ${longestMs.toFixed(1)} ms`,
    );
    assert.ok(longestMs < readMsMax, `a read took ${longestMs} ms`);
    const dead = await waitFor('the objects to be dead', 10_000, async () => {
      const { objects: left, deadBytes = 0, segmentsFree = 0 } = await masterStats(client);
      return left === 100 ? { deadBytes, segmentsFree } : undefined;
    });
    assert.ok(dead.deadBytes > objects * valueBytes || dead.segmentsFree > 30);
    // The same name is another table.
    const next = await client.createTable('large');
    assert.equal(await next.get('key-1'.padEnd(24, '.')), undefined);
  });
});

/**
 * The log cleaner in a cluster: far more is written than memory holds, nothing is lost or comes
 * back from the dead, also when a server is killed at any step of a cleaning pass
 * (docs/replication.md §6, fault points `clean-<n>`).
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { serverStats, waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { forEachBatch } from '../../bench/concurrency.js';
import { Dataset, randomStream } from '../../bench/dataset.js';
import type { Table } from '../../src/client/index.js';
import { rejectionCode, withCluster } from './fixture.js';

const MIB = 2 ** 20;
const batch = 64;
const inFlight = 16;

/** Objects that are overwritten in random batches; what each must be follows from its round. */
class Overwritten {
  readonly #table: Table;
  readonly #count: number;
  readonly #valueBytes: number;
  readonly #rounds: Uint32Array;
  readonly #random: () => number;
  bytesWritten = 0;

  constructor(table: Table, count: number, valueBytes: number, seed: number) {
    this.#table = table;
    this.#count = count;
    this.#valueBytes = valueBytes;
    this.#rounds = new Uint32Array(count / batch);
    this.#random = randomStream(seed);
  }

  async writeAll(): Promise<void> {
    await forEachBatch(this.#count / batch, 1, inFlight, (at) => this.#write(at));
  }

  /** Until `bytes` more have been written, or `stop` says so. */
  async overwrite(bytes: number, stop: () => boolean = () => false): Promise<void> {
    const end = this.bytesWritten + bytes;
    const busy = new Set<number>();
    const loop = async (): Promise<void> => {
      while (this.bytesWritten < end && !stop()) {
        const at = this.#random() % this.#rounds.length;
        // Two writers of one batch could not know whose value is the last.
        if (busy.has(at)) continue;
        busy.add(at);
        await this.#write(at);
        busy.delete(at);
      }
    };
    await Promise.all(Array.from({ length: inFlight }, loop));
  }

  async countWrong(): Promise<number> {
    let wrong = 0;
    await forEachBatch(this.#rounds.length, 1, inFlight, async (at) => {
      const dataset = this.#datasetOf(at);
      const values = await this.#table.getMany(this.#indexes(at).map((i) => dataset.key(i)));
      for (const [i, value] of values.entries()) {
        if (!dataset.matches(at * batch + i, value)) wrong += 1;
      }
    });
    return wrong;
  }

  async #write(at: number): Promise<void> {
    this.#rounds[at] = (this.#rounds[at] ?? 0) + 1;
    const dataset = this.#datasetOf(at);
    await this.#table.putMany(this.#indexes(at).map((i) => [dataset.key(i), dataset.value(i)]));
    this.bytesWritten += batch * this.#valueBytes;
  }

  #indexes(at: number): number[] {
    return Array.from({ length: batch }, (_, i) => at * batch + i);
  }

  /** The contents depend on the length, so every round has another one. */
  #datasetOf(at: number): Dataset {
    return new Dataset('object', this.#count, this.#valueBytes + (this.#rounds[at] ?? 0));
  }
}

test('five times the memory is written, and all of it is right', { timeout: 600_000 }, async () => {
  const memoryBytes = 96 * MIB;
  await withCluster({ servers: 5, memoryBytes }, async (cluster, client) => {
    const table = await client.createTable('objects', { span: 5 });
    const objects = new Overwritten(table, 12_800, 4_000, 1);
    await objects.writeAll();
    await objects.overwrite(5 * 5 * memoryBytes);
    assert.equal(await objects.countWrong(), 0);
    for (const { master, serverId } of await serverStats(client)) {
      assert.ok((master?.cleanerPassesReplicated ?? 0) > 0, `server ${serverId} has cleaned`);
    }
    await cluster.killServer(1);
    await objects.overwrite(16 * MIB);
    assert.equal(await objects.countWrong(), 0);
    await cluster.restartServer(1);
    await waitUntilWhole(client, 5, 60_000);
    await cluster.killAll();
    await cluster.startAll();
    await waitUntilWhole(client, 5, 120_000);
    assert.equal(await objects.countWrong(), 0);
  });
});

test('a server killed in the middle of a pass loses nothing', { timeout: 300_000 }, async () => {
  // Any of the steps; `npm run test:faults` plays all of them.
  const step = 1 + (randomBytes(1).readUInt8() % 7);
  const died: string[] = [];
  const options = {
    servers: 5,
    memoryBytes: 96 * MIB,
    // As few segments as memory holds: then they are cleaned, not compacted.
    serverArguments: ['--disk-expansion', '1'],
    onUnexpectedExit: ({ name }: { name: string }) => died.push(name),
  };
  await withCluster(options, async (cluster, client) => {
    await cluster.killServer(0);
    await cluster.restartServer(0, { REKINDLE_FAULT: `clean-${step}=crash` });
    await waitUntilWhole(client, 5, 60_000);
    died.length = 0;
    const table = await client.createTable('objects', { span: 5 });
    const objects = new Overwritten(table, 12_800, 4_000, step);
    await objects.writeAll();
    await objects.overwrite(2_000 * MIB, () => died.length > 0);
    assert.deepEqual(died, ['server-1'], `the pass came to step ${step}`);
    await objects.overwrite(16 * MIB);
    assert.equal(await objects.countWrong(), 0, `after a crash at step ${step}`);
    await waitUntilWhole(client, 4, 60_000);
    assert.equal(await objects.countWrong(), 0, `after the recovery from step ${step}`);
  });
});

test('a full store refuses writes, not deletes', { timeout: 300_000 }, async () => {
  const memoryBytes = 96 * MIB;
  await withCluster({ servers: 4, memoryBytes }, async (_cluster, client) => {
    const table = await client.createTable('objects');
    const value = Buffer.alloc(100_000, 1);
    let written = 0;
    const fill = async (): Promise<void> => {
      for (;;) await table.put(`key-${written}`, value).then(() => (written += 1));
    };
    assert.equal(await rejectionCode(fill()), 'OUT_OF_MEMORY');
    assert.ok(written * value.length > memoryBytes / 4, `${written} objects of 100 kB fit`);
    for (let i = 0; i < written; i += 2) await table.delete(`key-${i}`);
    // The memory comes back when the cleaner has made segments of what is left.
    await waitFor('memory for another object', 60_000, async () => {
      await table.put('another', value);
      return true;
    });
    for (let i = 0; i < written; i += 1) {
      const found = await table.get(`key-${i}`);
      assert.ok(i % 2 === 0 ? found === undefined : found !== undefined && value.equals(found));
    }
  });
});

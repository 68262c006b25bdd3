/**
 * Back-pressure from a backup's disk to a client's `put`, over real processes: a backup that is
 * stopped most of the time still counts as alive, so every write waits for it. Meanwhile the master
 * holds a few messages of what its clients want to write, and nothing acknowledged is lost.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { waitUntilTouched } from '../../bench/cluster-health.js';
import { residentBytesOf } from '../../bench/process-usage.js';
import type { Table } from '../../src/client/index.js';
import type { LocalCluster } from '../../src/cluster/local-cluster.js';
import { WsLink } from '../../src/rpc/ws-link.js';
import { withCluster } from './fixture.js';

const MIB = 2 ** 20;
const SERVERS = 4;
const WRITERS = 320;
const VALUE_BYTES = 128 * 1024;
/** Of the requests of one client that wait for backups: a few messages of 1 MiB. */
const WAITING_BYTES_MAX = 8 * MIB;
/** To R backups, of the head and of the one before it that is being closed. */
const BACKUP_WRITES_MAX = 2 * 3;
/** Less than the writers have to write at any moment (40 MiB). */
const GROWTH_BYTES_MAX = 32 * MIB;
const SLOW_MS = 5_000;
/** Well below what a failure detector takes for death. */
const STOPPED_MS = 120;
const RUNS_MS = 10;

/** Each writes a key of its own, over and over; resolves with what each has acknowledged last. */
async function writeUntil(table: Table, isOver: () => boolean): Promise<number[]> {
  const written = new Array<number>(WRITERS).fill(0);
  const write = async (writer: number): Promise<void> => {
    for (let number = 1; !isOver() || number === 1; number++) {
      const value = Buffer.alloc(VALUE_BYTES, writer & 0xff);
      value.writeUInt32LE(number, 0);
      await table.put(`writer-${writer}`, value, { timeoutMs: 60_000 });
      written[writer] = number;
    }
  };
  await Promise.all(written.map((_, writer) => write(writer)));
  return written;
}

async function slowDown(cluster: LocalCluster, index: number): Promise<void> {
  const endMs = performance.now() + SLOW_MS;
  while (performance.now() < endMs) {
    cluster.pauseServer(index);
    await delay(STOPPED_MS);
    cluster.resumeServer(index);
    await delay(RUNS_MS);
  }
}

test('a backup that hardly reads slows its writers and fills no memory', {
  timeout: 240_000,
}, async () => {
  await withCluster({ servers: SERVERS, memoryBytes: 512 * MIB }, async (cluster, client) => {
    await waitUntilTouched(client, 60_000);
    const table = await client.createTable('values', { span: 1 });
    const { servers, tables } = await client.status();
    const masterId = tables[0]?.tablets[0]?.serverId ?? 0;
    const master = cluster.indexOf(masterId) ?? 0;
    const address = servers.find(({ serverId }) => serverId === masterId)?.address ?? '';
    const pid = cluster.processes().find(({ name }) => name === `server-${master + 1}`)?.pid ?? 0;
    const identity = () => ({ role: 'tool', clusterId: null, serverId: null }) as const;
    const link = new WsLink(address, { identity });
    try {
      let over = false;
      const warm = await writeUntil(table, () => true);
      assert.ok(warm.every((number) => number === 1));
      const residentBefore = residentBytesOf(pid) ?? 0;
      const writing = writeUntil(table, () => over);
      let [residentMost, waitingMost, inFlightMost] = [0, 0, 0];
      const slow = slowDown(cluster, (master + 1) % SERVERS).finally(() => {
        over = true;
      });
      while (!over) {
        const stats = await link.call('GET_SERVER_STATS', {});
        residentMost = Math.max(residentMost, residentBytesOf(pid) ?? 0);
        waitingMost = Math.max(waitingMost, stats.endpoint.requestBytesInFlight ?? 0);
        inFlightMost = Math.max(inFlightMost, stats.master?.backupWritesInFlight ?? 0);
        await delay(50);
      }
      await slow;
      const written = await writing;
      assert.ok(
        waitingMost > VALUE_BYTES && waitingMost < WAITING_BYTES_MAX,
        `${waitingMost} wait`,
      );
      assert.ok(inFlightMost > 0 && inFlightMost <= BACKUP_WRITES_MAX, `${inFlightMost} writes`);
      const grownBytes = residentMost - residentBefore;
      assert.ok(grownBytes < GROWTH_BYTES_MAX, `the master has grown by ${grownBytes} bytes`);
      const status = await client.status();
      assert.equal(status.servers.filter((server) => server.status === 'up').length, SERVERS);
      assert.equal(status.recoveries.length, 0, 'the slow one was never taken for dead');
      for (const [writer, number] of written.entries()) {
        const found = await table.get(`writer-${writer}`);
        assert.equal(found && Buffer.from(found).readUInt32LE(0), number);
      }
    } finally {
      link.close();
    }
  });
});

/**
 * Read leases between real processes: a master that was stopped and recovered meanwhile tells
 * nobody what it finds in its memory when it goes on; reads outlive a lost backup; a process may
 * end at each step of the protocol.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  serverStats,
  waitFor,
  waitForRecovery,
  waitUntilWhole,
} from '../../bench/cluster-health.js';
import type { Client } from '../../src/client/index.js';
import type { LocalCluster } from '../../src/cluster/local-cluster.js';
import type { RekindleError } from '../../src/rpc/errors.js';
import { OP_READ, OP_WRITE } from '../../src/rpc/execute-codec.js';
import { RPC } from '../../src/rpc/table.js';
import { withCluster } from './fixture.js';
import { executeBody, RawConnection, rawMessage } from './raw-connection.js';

const memoryBytes = 128 * 2 ** 20;
const keys = 50;

/** Index and id of the server that owns the only tablet of the only table. */
async function ownerOf(cluster: LocalCluster, client: Client) {
  const [table] = (await client.status()).tables;
  const [tablet] = table?.tablets ?? [];
  assert.ok(table !== undefined && tablet !== undefined);
  const index = cluster.indexOf(tablet.serverId);
  assert.ok(index !== undefined);
  return { index, serverId: tablet.serverId, tableId: table.tableId };
}

test('a master that is stopped, recovered and woken answers none of the reads in its socket', {
  timeout: 120_000,
}, async () => {
  const exits: (number | null)[] = [];
  const options = {
    servers: 5,
    memoryBytes,
    onUnexpectedExit: ({ code }: { code: number | null }) => exits.push(code),
  };
  await withCluster(options, async (cluster, client) => {
    const table = await client.createTable('objects');
    for (let i = 0; i < keys; i += 1) await table.put(`key-${i}`, 'old');
    const { index, serverId, tableId } = await ownerOf(cluster, client);
    const raw = await RawConnection.greeted(cluster.serverPort(index));
    const send = (callId: number, op: number): void => {
      const key = Buffer.from(`key-${callId % keys}`);
      const operation = { op, tableId, key, ...(op === OP_WRITE && { rpcId: callId }) };
      const body = executeBody(4_711, [operation]);
      raw.send(rawMessage(RPC.EXECUTE.opcode, body, { callId }));
    };
    send(1, OP_READ);
    assert.equal((await raw.next())?.status, 0, 'the owner answers while it is one');

    cluster.pauseServer(index);
    for (let callId = 10; callId < 310; callId += 1) send(callId, OP_READ);
    for (let callId = 1_010; callId < 1_060; callId += 1) send(callId, OP_WRITE);
    await waitForRecovery(client, serverId, 60_000);
    for (let i = 0; i < keys; i += 1) await table.put(`key-${i}`, 'new');
    cluster.resumeServer(index);
    const told: number[] = [];
    for (let message = await raw.next(20_000); message; message = await raw.next(20_000)) {
      if (message.status === 0) told.push(message.callId);
    }
    assert.deepEqual(told, [], 'no value and no acknowledgement after the recovery');
    await waitFor('the end of the zombie', 20_000, async () => exits[0] ?? undefined);
    assert.deepEqual(exits, [3]);
    for (let i = 0; i < keys; i += 1) assert.equal(String(await table.get(`key-${i}`)), 'new');
  });
});

test('a lost backup costs no reads: the coordinator vouches, and nobody when it is gone too', {
  timeout: 120_000,
}, async () => {
  // With four servers every other one is a backup of every head, and none can take its place.
  await withCluster({ servers: 4, memoryBytes }, async (cluster, client) => {
    const table = await client.createTable('objects');
    await table.put('key', 'value');
    const { index } = await ownerOf(cluster, client);
    const byCoordinator = async (): Promise<true | undefined> => {
      const stats = await serverStats(client);
      const owner = stats.find(({ serverId }) => serverId === cluster.serverId(index));
      return owner?.master?.readLeaseByCoordinator === 1 ? true : undefined;
    };
    assert.equal(await byCoordinator(), undefined);
    await cluster.killServer((index + 1) % 4);
    await waitFor('a lease from the coordinator', 10_000, byCoordinator);
    assert.equal(String(await table.get('key')), 'value');

    await cluster.killCoordinator('SIGKILL');
    await waitFor('the end of that lease', 10_000, async () => {
      const [read] = await Promise.allSettled([table.get('key', { timeoutMs: 300 })]);
      if (read.status === 'fulfilled') return undefined;
      // The second, if the client has asked meanwhile who owns the key.
      const { code } = read.reason as RekindleError;
      assert.ok(code === 'TIMEOUT' || code === 'COORDINATOR_UNAVAILABLE', code);
      return true;
    });
    await cluster.restartCoordinator();
    assert.equal(String(await table.get('key')), 'value');
  });
});

interface Fault {
  point: string;
  /** What it is that dies there, in words. */
  what: string;
}

/** Writes some objects, lets the body hurt the cluster, and finds them all on four servers. */
async function survives(client: Client, hurt: () => Promise<void>): Promise<void> {
  const table = await client.createTable('objects', { span: 5 });
  for (let i = 0; i < keys; i += 1) await table.put(`key-${i}`, `${i}`);
  await hurt();
  await waitUntilWhole(client, 4, 60_000);
  for (let i = 0; i < keys; i += 1) assert.equal(String(await table.get(`key-${i}`)), `${i}`);
  await table.put('afterwards', 'value');
}

const duringService: Fault[] = [
  { point: 'lease-1', what: 'a master about to ask for a grant' },
  { point: 'lease-2', what: 'a backup that has granted and not answered' },
];

const duringFence: Fault[] = [
  { point: 'lease-3', what: 'a backup that grants no more, before the fence is durable' },
  { point: 'lease-4', what: 'a fenced backup, before it has said so' },
];

for (const { point, what } of [...duringService, ...duringFence]) {
  test(`${point}: ${what} dies`, { timeout: 120_000 }, async () => {
    let ended = false;
    const onUnexpectedExit = (): void => {
      ended = true;
    };
    const options = { servers: 5, memoryBytes, onUnexpectedExit };
    await withCluster(options, async (cluster, client) => {
      await cluster.killServer(0);
      await cluster.restartServer(0, { REKINDLE_FAULT: `${point}=crash` });
      await waitUntilWhole(client, 5, 60_000);
      const fencing = duringFence.some((each) => each.point === point);
      await survives(client, async () => {
        if (fencing) await cluster.killServer(1);
        await waitFor(`the end at ${point}`, 30_000, async () => (ended ? true : undefined));
        // With fewer than four servers nothing can be recovered.
        if (fencing) await cluster.restartServer(1);
      });
    });
  });
}

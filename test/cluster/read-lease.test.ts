/**
 * Read leases between real processes: a master that was stopped and recovered meanwhile tells
 * nobody what it finds in its memory when it goes on; reads outlive a lost backup; a process may
 * end at each step of the protocol.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { waitFor, waitForRecovery } from '../../bench/cluster-health.js';
import type { Client } from '../../src/client/index.js';
import type { LocalCluster } from '../../src/cluster/local-cluster.js';
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

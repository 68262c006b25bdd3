/**
 * Whatever a client sends: a typed error or a closed connection, few lines in the log, and a
 * server that serves on with bounded memory.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { connect as connectSocket } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { type Client, connect } from '../../src/client/index.js';
import type { LocalCluster } from '../../src/cluster/local-cluster.js';
import { STATUS } from '../../src/rpc/status.js';
import { rejectionCode, withCluster } from './fixture.js';
import {
  executeBody,
  helloBody,
  RawConnection,
  rawMessage,
  resultStatuses,
} from './raw-connection.js';

const HELLO = 0x01;
const GET_TABLE = 0x15;
const EXECUTE = 0x40;
const READ = 1;
const WRITE = 2;
const MEBIBYTE = 2 ** 20;
const OPTIONS = { timeout: 180_000 };

async function stillServes(client: Client): Promise<void> {
  const table = client.table('survivor');
  await table.put('key', 'value');
  assert.equal(Buffer.from((await table.get('key')) ?? []).toString(), 'value');
}

test('the SDK refuses what cannot be stored, by code', OPTIONS, async () => {
  await withCluster({}, async (cluster, client) => {
    const table = await client.createTable('survivor');
    assert.equal(await rejectionCode(table.put('', 'v')), 'INVALID_KEY');
    assert.equal(await rejectionCode(table.put(Buffer.alloc(65_536), 'v')), 'INVALID_KEY');
    const tooLarge = Buffer.alloc(MEBIBYTE + 1);
    assert.equal(await rejectionCode(table.put('k', tooLarge)), 'VALUE_TOO_LARGE');
    const longest = Buffer.alloc(65_535, 1);
    await table.put(longest, Buffer.alloc(MEBIBYTE, 2));
    assert.equal((await table.get(longest))?.length, MEBIBYTE);
    assert.equal(await rejectionCode(client.table('nowhere').get('k')), 'TABLE_NOT_FOUND');

    const foreign = `${cluster.url}/?cluster=00000000-0000-4000-8000-000000000000`;
    assert.equal(await rejectionCode(listTables(foreign)), 'WRONG_CLUSTER');
    assert.equal(
      await rejectionCode(listTables('rekindle://127.0.0.1:1')),
      'COORDINATOR_UNAVAILABLE',
    );
    await stillServes(client);
  });
});

async function listTables(url: string): Promise<void> {
  await using client = await connect(url, { timeoutMs: 2_000 });
  await client.listTables();
}

test('bytes on the wire that no SDK would send', OPTIONS, async (context) => {
  await withCluster({}, async (cluster, client) => {
    await client.createTable('survivor', { span: cluster.serverCount });
    const ports = [cluster.coordinatorPort, cluster.serverPort(0)];
    for (const port of ports) {
      const name = port === cluster.coordinatorPort ? 'coordinator' : 'server';
      await context.test(`${name}: refusals at the handshake`, () => refusesHandshakes(port));
      await context.test(`${name}: bodies that are not JSON`, () => refusesBadJson(port));
    }
    await context.test('operations outside the limits', () => refusesOperations(cluster));
    await context.test('garbage is closed and logged a few times', () => endsGarbage(cluster));
    await stillServes(client);
    assert.ok(cluster.isRunning(0));
  });
});

async function refusesHandshakes(port: number): Promise<void> {
  const refused = async (bytes: Buffer, status?: number): Promise<void> => {
    const connection = await RawConnection.open(port);
    connection.send(bytes);
    const answer = await connection.next();
    if (answer !== undefined) {
      assert.equal(answer.kind, 2, 'an error reply');
      if (status !== undefined) assert.equal(answer.status, status);
      connection.close();
    }
  };
  await refused(rawMessage(HELLO, helloBody(), { magic: 0x1234 }));
  await refused(rawMessage(HELLO, helloBody(), { version: 9 }));
  const future = helloBody({ protocol: { min: 98, max: 99 } });
  await refused(rawMessage(HELLO, future), STATUS.PROTOCOL_MISMATCH.number);
  const foreign = helloBody({ clusterId: '00000000-0000-4000-8000-000000000000' });
  await refused(rawMessage(HELLO, foreign), STATUS.WRONG_CLUSTER.number);
  await refused(rawMessage(GET_TABLE, Buffer.from('{"name":"x"}'))); // before any HELLO
  await refused(rawMessage(HELLO, Buffer.from('not JSON')));
  await refused(randomBytes(3));
  const deep = Buffer.alloc(5_000_000, '[');
  await refused(rawMessage(HELLO, deep), STATUS.MALFORMED_REQUEST.number);
}

async function refusesBadJson(port: number): Promise<void> {
  const connection = await RawConnection.greeted(port);
  connection.send(rawMessage(0x02, Buffer.from('{"callerServerId":{}}'), { callId: 7 }));
  const answer = await connection.next();
  if (answer !== undefined) {
    assert.equal(answer.kind, 2);
    assert.equal(answer.callId, 7);
    connection.send(rawMessage(0x7777, Buffer.alloc(0), { callId: 8 }));
    const unknown = await connection.next();
    if (unknown !== undefined) assert.equal(unknown.status, STATUS.UNSUPPORTED_OPCODE.number);
  }
  connection.close();
}

async function refusesOperations(cluster: LocalCluster): Promise<void> {
  const connection = await RawConnection.greeted(cluster.serverPort(0));
  const key = Buffer.from('key');
  const operations = [
    { op: WRITE, tableId: 1, key: Buffer.alloc(0), value: Buffer.from('v'), rpcId: 1 },
    { op: WRITE, tableId: 1, key, value: Buffer.alloc(MEBIBYTE + 1), rpcId: 2 },
    { op: READ, tableId: 999_999, key },
  ];
  connection.send(rawMessage(EXECUTE, executeBody(77, operations), { callId: 3 }));
  const answer = await connection.next();
  assert.ok(answer !== undefined);
  if (answer.kind === 1) {
    const [emptyKey, largeValue, unknownTable] = resultStatuses(answer.body);
    assert.equal(emptyKey, STATUS.INVALID_KEY.number);
    assert.equal(largeValue, STATUS.VALUE_TOO_LARGE.number);
    assert.equal(unknownTable, STATUS.UNKNOWN_TABLET.number);
  } else {
    assert.equal(answer.status, STATUS.MALFORMED_REQUEST.number, answer.body.toString());
  }
  const whole = executeBody(77, [{ op: READ, tableId: 1, key }]);
  connection.send(rawMessage(EXECUTE, whole.subarray(0, whole.length - 9), { callId: 4 }));
  const cut = await connection.next();
  assert.equal(cut?.status, STATUS.MALFORMED_REQUEST.number);
  connection.close();
}

async function endsGarbage(cluster: LocalCluster): Promise<void> {
  const log = join(cluster.logDirectory, 'server-1.log');
  const linesBefore = readFileSync(log, 'utf8').split('\n').length;
  for (let i = 0; i < 40; i++) {
    const socket = connectSocket(cluster.serverPort(0), '127.0.0.1');
    socket.on('error', () => undefined); // a reset is as good an answer as a close
    socket.write(randomBytes(2000));
    socket.resume();
    await Promise.race([
      new Promise((resolve) => socket.once('close', resolve)),
      delay(500), // it may wait for the end of what could be an HTTP head
    ]);
    socket.destroy();
    const greeted = await RawConnection.greeted(cluster.serverPort(0));
    greeted.send(randomBytes(100));
    assert.ok(await greeted.ends());
  }
  const lines = readFileSync(log, 'utf8').split('\n').length - linesBefore;
  assert.ok(lines < 40, `${lines} lines logged about 80 broken connections`);
}

function residentBytes(pid: number): number {
  const kilobytes = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  return Number(kilobytes) * 1024;
}

test('a client that never reads is cut off; memory stays bounded', OPTIONS, async () => {
  await withCluster({}, async (cluster, client) => {
    const table = await client.createTable('survivor', { span: 1 });
    await table.put('large', Buffer.alloc(MEBIBYTE, 1));
    const [info] = await client.listTables();
    const owner = cluster.indexOf(info?.tablets[0]?.serverId ?? -1);
    assert.ok(info !== undefined && owner !== undefined);
    const pid = cluster.processes()[owner + 1]?.pid ?? 0;
    const before = residentBytes(pid);

    const connection = await RawConnection.greeted(cluster.serverPort(owner));
    connection.socket.pause();
    const read = { op: READ, tableId: info.tableId, key: Buffer.from('large') };
    const request = executeBody(
      78,
      Array.from({ length: 8 }, () => read),
    );
    let peak = before;
    for (let callId = 2; callId < 102; callId++) {
      connection.send(rawMessage(EXECUTE, request, { callId }));
      await delay(10);
      peak = Math.max(peak, residentBytes(pid));
    }
    const grown = Math.round((peak - before) / MEBIBYTE);
    assert.ok(grown < 256, `grew by ${grown} MiB for 800 MiB of unread replies`);
    const log = join(cluster.logDirectory, `server-${owner + 1}.log`);
    const end = performance.now() + 30_000;
    while (!readFileSync(log, 'utf8').includes('its peer does not read')) {
      assert.ok(performance.now() < end, 'cut off within 30 s of silence');
      await delay(100);
    }
    connection.socket.resume();
    assert.ok(await connection.ends(30_000));
    await stillServes(client);
  });
});

test('many large values at once are no reason to be cut off', OPTIONS, async () => {
  await withCluster({}, async (cluster, client) => {
    const table = await client.createTable('large', { span: 1 });
    const keys = Array.from({ length: 12 }, (_, index) => `key ${index}`);
    await table.putMany(keys.map((key, index) => [key, Buffer.alloc(MEBIBYTE, index)]));
    const many = Array.from({ length: 200 }, (_, index) => keys[index % keys.length] ?? '');
    const values = await Promise.all([table.getMany(many), table.getMany(many)]);
    for (const [index, value] of values.flat().entries()) {
      assert.equal(value?.length, MEBIBYTE);
      assert.equal(value?.[MEBIBYTE - 1], (index % many.length) % keys.length);
    }
    for (let index = 0; index < cluster.serverCount; index++) {
      const log = join(cluster.logDirectory, `server-${index + 1}.log`);
      assert.doesNotMatch(readFileSync(log, 'utf8'), /does not read/);
    }
  });
});

test('a full server says so and what to do; it reads, deletes and lives', OPTIONS, async () => {
  await withCluster({}, async (_cluster, client) => {
    const table = await client.createTable('full', { span: 1 });
    const value = Buffer.alloc(100_000, 1);
    let stored = 0;
    const fill = async (): Promise<void> => {
      for (; stored < 2_000; stored++) await table.put(`key ${stored}`, value);
    };
    await assert.rejects(fill(), {
      code: 'OUT_OF_MEMORY',
      outcome: 'not-applied',
      message: /memory/,
    });
    assert.ok(stored > 150, `${stored} objects of 100 KB in 64 MB`);
    assert.equal((await table.get('key 0'))?.length, value.length);
    const keys = Array.from({ length: stored }, (_, index) => `key ${index}`);
    const deleted = await table.deleteMany(keys);
    assert.ok(deleted.every(({ version }) => version > 0));
    assert.ok((await table.getMany(keys)).every((each) => each === undefined));
  });
});

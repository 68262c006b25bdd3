/**
 * Endpoint and links over real sockets: what is refused, what is bounded, and how calls end.
 */
import assert from 'node:assert/strict';
import { connect as connectSocket } from 'node:net';
import { after, test } from 'node:test';
import WebSocket from 'ws';
import { RekindleError } from '../../src/rpc/errors.js';
import { HEADER_BYTES, writeHeader } from '../../src/rpc/frame.js';
import type { LinkIdentity } from '../../src/rpc/link-connection.js';
import { parseRequest } from '../../src/rpc/request-schemas.js';
import { RPC } from '../../src/rpc/table.js';
import type { BinaryCall } from '../../src/rpc/transport.js';
import { UwsEndpoint } from '../../src/rpc/uws-endpoint.js';
import { WsLink, type WsLinkOptions } from '../../src/rpc/ws-link.js';
import { helloBody } from '../cluster/raw-connection.js';
import { CLUSTER, rejectsWith, startEndpoint, until } from './rpc-fixture.js';

const CLIENT: LinkIdentity = { role: 'client', clusterId: null, serverId: null };
const open: { close(): unknown }[] = [];
after(async () => {
  for (const each of open) await each.close();
});

function link(address: string, options: Partial<WsLinkOptions> = {}): WsLink {
  const made = new WsLink(address, { identity: () => CLIENT, ...options });
  open.push(made);
  return made;
}

const start: typeof startEndpoint = async (options, prepare) => {
  const started = await startEndpoint(options, prepare);
  open.push(started.endpoint);
  return started;
};

const echo = (call: BinaryCall): void => call.reply(call.body);

test('JSON and binary calls are answered; errors keep code and details', async () => {
  const { address, lines } = await start({}, (endpoint) => {
    endpoint.handle('PING', async ({ callerServerId }) => {
      if (callerServerId === 1) {
        throw new RekindleError('RETRY', 'later', { retryAfterMs: 9, details: { a: 1 } });
      }
      if (callerServerId === 2) throw new TypeError('a bug');
      return { serverListVersion: 3, member: true, lagMs: 0 };
    });
    endpoint.handleBinary('EXECUTE', echo);
  });
  const caller = link(address);
  assert.deepEqual(await caller.call('PING', { callerServerId: null }), {
    serverListVersion: 3,
    member: true,
    lagMs: 0,
  });
  assert.deepEqual(caller.remote, { role: 'server', clusterId: CLUSTER, serverId: 7 });
  const retry = await rejectsWith(caller.call('PING', { callerServerId: 1 }), 'RETRY');
  assert.deepEqual([retry.retryAfterMs, retry.details], [9, { a: 1 }]);
  await rejectsWith(caller.call('PING', { callerServerId: 2 }), 'INTERNAL');
  assert.equal(lines.filter(({ level }) => level === 'error').length, 1);
  await rejectsWith(caller.call('PING', { callerServerId: 'x' as never }), 'MALFORMED_REQUEST');
  await rejectsWith(caller.call('GET_STATUS', {}), 'UNSUPPORTED_OPCODE');
  const reply = await caller.callBinary('EXECUTE', [Buffer.from('ab'), Buffer.from('cd')]);
  assert.equal(Buffer.from(reply).toString(), 'abcd');
});

test('handlers that hold the event loop up are counted, by RPC', async () => {
  const { address, endpoint } = await start({}, (it) => {
    it.handleBinary('EXECUTE', (call) => {
      const end = performance.now() + (call.body.length === 0 ? 0 : 4);
      while (performance.now() < end);
      call.reply(call.body);
    });
  });
  const caller = link(address);
  for (let i = 0; i < 50; i++) await caller.callBinary('EXECUTE', []);
  for (let i = 0; i < 3; i++) await caller.callBinary('EXECUTE', [Buffer.from('slow')]);
  const stats = endpoint.stats();
  const held = stats['handlersOver1Ms.EXECUTE'] ?? 0;
  assert.ok(held >= 3 && held < 53, `${held} of 53 calls`);
  assert.ok((stats.handlersOver1Ms ?? 0) >= held && (stats.handlerLongestMs ?? 0) >= 4);
});

test('large bodies leave as fragments of one message and come back whole', async () => {
  const { address } = await start({}, (endpoint) => endpoint.handleBinary('EXECUTE', echo));
  const caller = link(address);
  const parts = [1_000_000, 0, 7, 5_000_000].map((length, i) => Buffer.alloc(length, i + 1));
  const reply = await caller.callBinary('EXECUTE', parts);
  assert.ok(Buffer.concat(parts).equals(Buffer.from(reply)));
  await rejectsWith(
    caller.callBinary('EXECUTE', [Buffer.alloc(16 * 1024 * 1024)]),
    'REQUEST_TOO_LARGE',
    'not-applied',
  );
});

test('replies made after the handler all arrive, each to its own call', async () => {
  const { address } = await start({}, (endpoint) => {
    endpoint.handleBinary('EXECUTE', (call) => {
      const copy = Buffer.from(call.body);
      setImmediate(() => call.reply(copy));
    });
  });
  const callers = [link(address), link(address)];
  const calls = Array.from({ length: 3_000 }, async (_, i) => {
    const body = Buffer.from(`${i}:`.repeat(1 + (i % 50)));
    const reply = await callers[i % 2]!.callBinary('EXECUTE', [body]);
    assert.ok(body.equals(Buffer.from(reply)));
  });
  await Promise.all(calls);
});

test('handshakes that do not fit are refused with a reason, and calls fail with it', async () => {
  const { address } = await start();
  const wrongCluster = link(address, {
    identity: () => ({ ...CLIENT, clusterId: '99999999-2222-4333-8444-555555555555' }),
  });
  const ping = { callerServerId: null };
  const refused = await rejectsWith(wrongCluster.call('PING', ping), 'WRONG_CLUSTER');
  assert.match(refused.message, new RegExp(CLUSTER));
  await rejectsWith(wrongCluster.call('PING', ping), 'WRONG_CLUSTER', 'not-applied');
  const wrongServer = link(address, { expectServerId: 8 });
  await rejectsWith(wrongServer.call('PING', ping), 'WRONG_SERVER', 'not-applied');
});

function message(opcode: number, body: string, version = 1): Buffer {
  const bytes = Buffer.concat([Buffer.alloc(HEADER_BYTES), Buffer.from(body)]);
  writeHeader(bytes, 0, opcode, 0, 1, 0);
  bytes[2] = version;
  return bytes;
}

/** Sends one message on a fresh WebSocket; resolves with what came back when it is closed. */
function probe(address: string, data: Buffer | string | null): Promise<Buffer[]> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(`ws://${address}/`);
    const replies: Buffer[] = [];
    socket.on('open', () => data !== null && socket.send(data));
    socket.on('message', (reply) => replies.push(reply as Buffer));
    socket.on('error', reject);
    socket.on('close', () => resolve(replies));
  });
}

test('peers that break the protocol are closed and logged once', async () => {
  const { address, lines, endpoint } = await start({ limits: { helloTimeoutMs: 200 } });
  const hello = helloBody({ protocol: { min: 2, max: 9 } });
  const [refusal] = await probe(address, message(RPC.HELLO.opcode, hello.toString()));
  assert.equal(refusal?.readUInt16LE(6), 15, 'PROTOCOL_MISMATCH');
  assert.match(refusal.subarray(HEADER_BYTES).toString(), /protocol 2 to 9/);
  assert.deepEqual(await probe(address, message(RPC.PING.opcode, '{}')), []);
  assert.deepEqual(await probe(address, message(RPC.HELLO.opcode, '{}', 9)), []);
  assert.deepEqual(await probe(address, 'text'), []);
  assert.deepEqual(await probe(address, Buffer.from('garbage of some length')), []);
  assert.deepEqual(await probe(address, null), [], 'silent: closed after the HELLO time');
  await until('all gone', () => endpoint.stats().connections === 0);
  assert.equal(endpoint.stats().protocolErrors, 6);
  assert.equal(lines.length, 1, JSON.stringify(lines));
});

test('garbage on the port closes the socket and leaves the server well', async () => {
  const { address, port, lines } = await start({}, (endpoint) =>
    endpoint.handleBinary('EXECUTE', echo),
  );
  for (let i = 0; i < 3; i++) {
    await new Promise<void>((resolve, reject) => {
      const socket = connectSocket(port, '127.0.0.1', () => {
        socket.write(Buffer.concat([Buffer.alloc(600, 0xf7), Buffer.from('\r\n\r\n\r\n')]));
      });
      socket.on('error', reject);
      socket.on('data', () => undefined);
      socket.on('close', () => resolve());
    });
  }
  await until('logged', () => lines.length > 0);
  assert.equal(lines.length, 1);
  const reply = await link(address).callBinary('EXECUTE', [Buffer.from('still here')]);
  assert.equal(Buffer.from(reply).toString(), 'still here');
});

test('a message over the limit closes the connection', async () => {
  const { address, endpoint } = await start();
  const socket = new WebSocket(`ws://${address}/`);
  await new Promise((resolve) => socket.on('open', resolve));
  socket.on('error', () => assert.ok(true));
  socket.send(Buffer.alloc(17 * 1024 * 1024));
  await until('closed', () => endpoint.stats().connections === 0);
});

test('a client that never reads is cut off and memory stays bounded', async () => {
  const big = Buffer.alloc(1_000_000, 1);
  const { address, endpoint, lines } = await start(
    { limits: { unreadBytesMax: 8_000_000 } },
    (each) => each.handleBinary('EXECUTE', (call) => call.reply(big)),
  );
  const socket = new WebSocket(`ws://${address}/`);
  let transport: import('node:net').Socket | undefined;
  socket.on('upgrade', (response) => {
    transport = response.socket;
  });
  await new Promise((resolve) => socket.on('open', resolve));
  socket.on('error', () => assert.ok(true));
  socket.send(message(RPC.HELLO.opcode, helloBody().toString()));
  await new Promise((resolve) => socket.once('message', resolve));
  transport?.pause();
  let worstUnread = 0;
  for (let i = 0; i < 200 && endpoint.stats().connections === 1; i++) {
    socket.send(message(RPC.EXECUTE.opcode, 'x'));
    await new Promise((resolve) => setTimeout(resolve, 2));
    worstUnread = Math.max(worstUnread, endpoint.stats().unreadBytes ?? 0);
  }
  await until('cut off', () => endpoint.stats().connections === 0);
  assert.ok(worstUnread <= 9_100_000, `${worstUnread} bytes buffered`);
  assert.equal(endpoint.stats().unreadBytes, 0);
  assert.equal(lines.filter(({ message: text }) => /does not read/.test(text)).length, 1);
  socket.terminate();
});

test('a caller that reads is not cut off when replies come faster than it reads', async () => {
  const big = Buffer.alloc(10_000_000, 1);
  const { address, endpoint } = await start({}, (each) =>
    each.handleBinary('EXECUTE', (call) => call.reply(big)),
  );
  const caller = link(address);
  await caller.connect();
  const calls = Array.from({ length: 16 }, () => caller.callBinary('EXECUTE', [Buffer.from('x')]));
  const results = await Promise.allSettled(calls);
  assert.ok(results.some(({ status }) => status === 'fulfilled'));
  for (const result of results) {
    if (result.status === 'rejected') assert.equal(result.reason.code, 'RETRY');
  }
  assert.equal(endpoint.stats().slowReadersClosed, 0);
  await caller.callBinary('EXECUTE', [Buffer.from('x')]);
});

test('a caller that stops to read is cut off after a while, however little waits', async () => {
  const { address, endpoint, lines } = await start({ limits: { unreadTimeoutMs: 300 } }, (each) =>
    each.handleBinary('EXECUTE', (call) => call.reply(Buffer.alloc(8_000_000))),
  );
  const socket = new WebSocket(`ws://${address}/`);
  socket.on('error', () => assert.ok(true));
  let transport: import('node:net').Socket | undefined;
  socket.on('upgrade', (response) => {
    transport = response.socket;
  });
  await new Promise((resolve) => socket.on('open', resolve));
  const ids = { clusterId: null, serverId: null, expectServerId: null, credential: null };
  const hello = { protocol: { min: 1, max: 1 }, features: [], role: 'client', ...ids };
  socket.send(message(RPC.HELLO.opcode, JSON.stringify(hello)));
  await new Promise((resolve) => socket.once('message', resolve));
  transport?.pause();
  for (let i = 0; i < 2; i++) socket.send(message(RPC.EXECUTE.opcode, 'x'));
  await until('cut off', () => endpoint.stats().connections === 0);
  assert.equal(endpoint.stats().unreadBytes, 0);
  assert.equal(lines.filter(({ message: text }) => /does not read/.test(text)).length, 1);
  socket.terminate();
});

test('JSON that is long or deep is refused without being parsed', () => {
  const startMs = performance.now();
  const deep = Buffer.alloc(15_000_000, '[');
  for (const name of ['HELLO', 'PING', 'UPDATE_SERVER_LIST', 'RECOVER'] as const) {
    assert.throws(() => parseRequest(name, deep), { code: 'MALFORMED_REQUEST' });
  }
  const objects = Buffer.from('{"a":'.repeat(1_000_000));
  assert.throws(() => parseRequest('RECOVER', objects), /nested deeper/);
  assert.ok(performance.now() - startMs < 2_000, 'parsing any of them takes seconds');

  // Brackets in strings are text, also after escapes.
  const state = `\\"${'[{'.repeat(50_000)}\\`;
  const copy = { revision: 1, term: 1, state };
  const body = Buffer.from(JSON.stringify(copy));
  assert.ok(body.length > 65_536);
  assert.doesNotMatch(refusalOf('STORE_COORDINATOR_STATE', body), /nested/);
  const segmentIds = Array.from({ length: 100_000 }, (_, index) => index);
  const free = { masterId: 1, segmentIds };
  assert.deepEqual(parseRequest('BACKUP_FREE', Buffer.from(JSON.stringify(free))), free);
});

function refusalOf(name: Parameters<typeof parseRequest>[0], body: Buffer): string {
  try {
    parseRequest(name, body);
    return '';
  } catch (error) {
    return (error as Error).message;
  }
}

test('requests over the bounds get RETRY at both ends', async () => {
  const held: BinaryCall[] = [];
  const { address } = await start({ limits: { requestsInFlightMax: 3 } }, (endpoint) => {
    endpoint.handleBinary('EXECUTE', (call) => held.push(call));
  });
  const caller = link(address, { outstandingBytesMax: 1_000_000 });
  const calls = [1, 2, 3].map(() => caller.callBinary('EXECUTE', [Buffer.from('x')]));
  await until('held', () => held.length === 3);
  const busy = await rejectsWith(caller.callBinary('EXECUTE', [Buffer.from('x')]), 'RETRY');
  assert.ok((busy.retryAfterMs ?? 0) > 0);
  for (const call of held) call.reply(Buffer.from('done'));
  await Promise.all(calls);
  assert.equal(caller.outstandingBytes, 0);

  const big = caller.callBinary('EXECUTE', [Buffer.alloc(900_000)]);
  const over = caller.callBinary('EXECUTE', [Buffer.alloc(200_000)]);
  await rejectsWith(over, 'RETRY', 'not-applied');
  await until('held', () => held.length === 4);
  held[3]!.reply(Buffer.from('done'));
  await big;
});

test('deadlines, aborts and lost connections end a call with the right outcome', async () => {
  const held: BinaryCall[] = [];
  const { address, endpoint, port } = await start({}, (each) =>
    each.handleBinary('EXECUTE', (call) => held.push(call)),
  );
  const caller = link(address);
  const body = [Buffer.from('x')];
  await rejectsWith(caller.callBinary('EXECUTE', body, { timeoutMs: 50 }), 'TIMEOUT', 'unknown');
  const budgetMs = held[0]!.deadlineMs - performance.now();
  assert.ok(budgetMs < 50, `the server knows the caller's budget: ${budgetMs}`);

  const abort = new AbortController();
  const aborted = caller.callBinary('EXECUTE', body, { signal: abort.signal });
  await until('sent', () => held.length === 2);
  abort.abort();
  await rejectsWith(aborted, 'ABORTED', 'unknown');
  const never = caller.callBinary('EXECUTE', body, { signal: AbortSignal.abort() });
  await rejectsWith(never, 'ABORTED', 'not-applied');

  let losses = 0;
  caller.onLost(() => {
    losses += 1;
  });
  const lost = caller.callBinary('EXECUTE', body);
  await until('sent', () => held.length === 3);
  await Promise.all([endpoint.close(), rejectsWith(lost, 'CONNECTION_LOST', 'unknown')]);
  assert.equal(losses, 1);
  assert.equal(caller.outstandingBytes, 0);
  const refused = caller.callBinary('EXECUTE', body);
  await rejectsWith(refused, 'CONNECTION_LOST', 'not-applied');

  const { log } = { log: () => undefined };
  const again = new UwsEndpoint({
    identity: () => ({ role: 'server', clusterId: CLUSTER, serverId: 7 }),
    log,
  });
  again.handleBinary('EXECUTE', echo);
  await again.listen('127.0.0.1', port);
  open.push(again);
  const endMs = performance.now() + 5_000;
  for (;;) {
    try {
      await caller.callBinary('EXECUTE', body);
      break;
    } catch (error) {
      assert.equal((error as RekindleError).code, 'CONNECTION_LOST');
      assert.ok(performance.now() < endMs, 'the link reconnects');
    }
  }
  caller.close();
  await rejectsWith(caller.callBinary('EXECUTE', body), 'CLIENT_CLOSED', 'not-applied');
});

test('a second listener on a port and nonsense addresses are typed errors', async () => {
  const { endpoint, port } = await start();
  const { endpoint: second } = await start();
  assert.notEqual(endpoint, second);
  const third = new UwsEndpoint({
    identity: () => ({ role: 'server', clusterId: null, serverId: null }),
    log: () => undefined,
  });
  open.push(third);
  await rejectsWith(third.listen('127.0.0.1', port), 'INVALID_ARGUMENT');
  const nonsense = link('no port here');
  await rejectsWith(nonsense.call('PING', { callerServerId: null }), 'INVALID_ARGUMENT');
});

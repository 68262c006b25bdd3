/**
 * The SDK against a coordinator and masters of this process: results, typed errors, coalescing,
 * and what it does when masters move, refuse, vanish or hang.
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { bytes, type Client, connect, json, strings, views } from '../../src/client/index.js';
import { type ExecuteRequest, encodeExecuteReply, OP_READ } from '../../src/rpc/execute-codec.js';
import { FakeCluster, type FakeMaster, rejectsWith, result, until } from './rpc-fixture.js';

const open: { close(): unknown }[] = [];
after(async () => {
  for (const each of open.reverse()) await each.close();
});

async function start(masters = 1, query = ''): Promise<{ cluster: FakeCluster; client: Client }> {
  const cluster = await FakeCluster.start(masters);
  open.push(cluster);
  const client = await connect(`${cluster.url}${query}`);
  open.push(client);
  return { cluster, client };
}

test('put, get, delete, versions and conditions', async () => {
  const { client } = await start();
  const table = await client.createTable('t');
  assert.equal(await table.get('k'), undefined);
  const { version } = await table.put('k', 'one');
  assert.equal((await table.get('k'))?.toString(), 'one');
  assert.deepEqual(await table.getEntry(Buffer.from('k')), { value: Buffer.from('one'), version });
  await rejectsWith(table.put('k', 'x', { ifAbsent: true }), 'OBJECT_EXISTS', 'not-applied');
  await rejectsWith(table.put('new', 'x', { ifExists: true }), 'OBJECT_NOT_FOUND');
  const wrong = await rejectsWith(table.put('k', 'x', { ifVersion: 999 }), 'WRONG_VERSION');
  assert.equal(wrong.details?.version, version);
  await rejectsWith(table.put('absent', 'x', { ifVersion: 3 }), 'WRONG_VERSION');
  await rejectsWith(table.put('k', 'x', { ifVersion: 1, ifAbsent: true }), 'INVALID_ARGUMENT');
  const next = await table.put('k', 'two', { ifVersion: version });
  assert.ok(next.version > version);
  assert.deepEqual(await table.delete('k'), { version: next.version });
  assert.deepEqual(await table.delete('k'), { version: 0 });
  assert.deepEqual(
    (await client.listTables()).map(({ name }) => name),
    ['t'],
  );
  assert.equal(await client.dropTable('t'), true);
});

test('typed tables by codec', async () => {
  const { client } = await start();
  const table = await client.createTable('t');
  await table.with(json).put('j', { a: [1, 2] });
  assert.deepEqual(await table.with(json).get('j'), { a: [1, 2] });
  assert.equal(await table.with(strings).get('j'), '{"a":[1,2]}');
  await table.put('bad', 'no json');
  await rejectsWith(table.with(json).get('bad'), 'INVALID_ARGUMENT');
});

test('values are bytes of their own, or views of their message if asked for', async () => {
  const { client } = await start();
  const table = await client.createTable('t');
  const keys = Array.from({ length: 100 }, (_, number) => `key ${number}`);
  const value = (key: string): Buffer => Buffer.alloc(5_000, key);
  await table.putMany(keys.map((key) => [key, value(key)] as const));
  for (const [codec, sharing] of [
    [views, true],
    [bytes, false],
  ] as const) {
    const values = await table.with(codec).getMany(keys);
    assert.deepEqual(values, keys.map(value));
    const memories = new Set(values.map((each) => each?.buffer));
    assert.equal(memories.size < keys.length / 2, sharing, `${memories.size} pieces of memory`);
    // The memory of the replies to these is used again: nothing may change in what was read.
    const others = [...keys].reverse();
    const later = await Promise.all([others, keys, others].map((each) => table.getMany(each)));
    assert.deepEqual(values, keys.map(value));
    assert.deepEqual(later, [others.map(value), keys.map(value), others.map(value)]);
  }
});

test('keys outside ASCII, and long ones, are found as text and as bytes', async () => {
  const { client } = await start();
  const table = await client.createTable('t');
  for (const key of ['plain', 'schlüssel', '鍵', '\u{1f511}', 'x'.repeat(65_535)]) {
    await table.put(key, key.slice(0, 10));
    assert.equal((await table.get(Buffer.from(key)))?.toString(), key.slice(0, 10));
    await table.put(Buffer.from(key), 'again');
    assert.equal((await table.get(key))?.toString(), 'again');
  }
  await rejectsWith(table.get('x'.repeat(65_536)), 'INVALID_KEY');
  await rejectsWith(table.get('鍵'.repeat(30_000)), 'INVALID_KEY');
});

test('what is no signal, list or entry is refused, and holds up no close', async () => {
  const { client } = await start();
  const table = await client.createTable('t');
  const signal = {} as AbortSignal;
  await rejectsWith(table.put('k', 'v', { signal }), 'INVALID_ARGUMENT', 'not-applied');
  await rejectsWith(table.getMany(['k'], { signal }), 'INVALID_ARGUMENT');
  await rejectsWith(client.status({ signal }), 'INVALID_ARGUMENT');
  await rejectsWith(table.getMany('keys'), 'INVALID_ARGUMENT');
  await rejectsWith(table.getMany(undefined as never), 'INVALID_ARGUMENT');
  await rejectsWith(table.putMany([null as never]), 'INVALID_ARGUMENT');
  assert.equal(client.stats().operations, 0);
  await client.close();
});

test('bad input is refused before anything is sent', async () => {
  const { cluster, client } = await start();
  const table = await client.createTable('t');
  await rejectsWith(table.get(''), 'INVALID_KEY');
  await rejectsWith(table.put(Buffer.alloc(65_536), 'x'), 'INVALID_KEY', 'not-applied');
  await rejectsWith(table.put('k', Buffer.alloc(1_048_577)), 'VALUE_TOO_LARGE', 'not-applied');
  await rejectsWith(table.put('k', 5 as never), 'INVALID_ARGUMENT');
  await rejectsWith(table.get('k', { timeoutMs: 0 }), 'INVALID_ARGUMENT');
  await rejectsWith(table.getMany(['a', '']), 'INVALID_KEY');
  await rejectsWith(table.get(undefined as never), 'INVALID_ARGUMENT');
  await rejectsWith(table.putMany([['k', undefined as never]]), 'INVALID_ARGUMENT');
  await rejectsWith(table.with(json).put('k', undefined), 'INVALID_ARGUMENT', 'not-applied');
  assert.throws(() => client.table(''), { code: 'INVALID_ARGUMENT' });
  assert.equal(cluster.servers[0]!.master.requests.length, 0);
  await table.put(Buffer.alloc(65_535, 1), Buffer.alloc(1_048_576, 2));
  assert.equal((await table.get(Buffer.alloc(65_535, 1)))?.length, 1_048_576);
  await rejectsWith(client.table('nowhere').get('k'), 'TABLE_NOT_FOUND', 'not-applied');
});

test('many operations of one turn leave as few messages, over all masters', async () => {
  const { cluster, client } = await start(3);
  const table = await client.createTable('t', { span: 3 });
  const keys = Array.from({ length: 3_000 }, (_, i) => `key ${i}`);
  const puts = await Promise.all(keys.map((key) => table.put(key, `value of ${key}`)));
  assert.ok(puts.every(({ version }) => version > 0));
  const values = await table.getMany(keys);
  for (const [i, value] of values.entries()) {
    assert.equal(value?.toString(), `value of ${keys[i]}`);
  }
  for (const { master } of cluster.servers) {
    const operations = master.requests.reduce((sum, each) => sum + each.operations.length, 0);
    assert.ok(operations > 1_500, 'every master has its part');
    assert.ok(master.requests.length <= 6, `${master.requests.length} messages`);
  }
  assert.equal(cluster.getTableCalls, 0, 'createTable has taught the map');
  const deleted = await table.deleteMany(keys);
  assert.deepEqual(deleted, puts);
});

test('putMany of large values, and one that fails, in order', async () => {
  const { cluster, client } = await start();
  const table = await client.createTable('t');
  const entries = Array.from(
    { length: 60 },
    (_, i) => [`k${i}`, Buffer.alloc(900_000, i)] as const,
  );
  await table.putMany(entries);
  const values = await table.getMany(entries.map(([key]) => key));
  for (const [i, value] of values.entries()) assert.ok(value?.equals(entries[i]![1]));
  cluster.servers[0]!.master.override = ({ key }) =>
    key.toString() === 'b' || key.toString() === 'd' ? result('OUT_OF_MEMORY') : undefined;
  const failed = await rejectsWith(
    table.putMany(['a', 'b', 'c', 'd'].map((key) => ({ key, value: key }))),
    'OUT_OF_MEMORY',
    'not-applied',
  );
  const failures = failed.details?.failures as { index: number; code: string }[];
  assert.deepEqual(
    failures.map(({ index, code }) => [index, code]),
    [
      [1, 'OUT_OF_MEMORY'],
      [3, 'OUT_OF_MEMORY'],
    ],
  );
  assert.equal((await table.get('c'))?.toString(), 'c');
});

test('RETRY is repeated with the same rpc id, and acks follow', async () => {
  const { cluster, client } = await start();
  const { master } = cluster.servers[0]!;
  const table = await client.createTable('t');
  let refusals = 3;
  master.override = () => (refusals-- > 0 ? result('RETRY', { retryAfterMs: 2 }) : undefined);
  await table.put('k', 'v');
  const ids = master.requests.map(({ operations }) => operations[0]!.rpcId);
  assert.deepEqual(ids, [1, 1, 1, 1]);
  await table.put('k', 'w');
  assert.equal(master.requests.at(-1)?.ackId, 1);
  await Promise.all(Array.from({ length: 100 }, (_, i) => table.put(`k${i}`, 'v')));
  await table.put('k', 'x');
  assert.equal(master.requests.at(-1)?.ackId, 102);
  await table.get('k');
  assert.equal(master.requests.at(-1)?.operations[0]?.rpcId, 0, 'reads have none');
});

test('a tablet that moved is found again; one that recovers is waited for', async () => {
  const { cluster, client } = await start(2);
  const [first, second] = [cluster.servers[0]!, cluster.servers[1]!];
  const table = await client.createTable('t');
  await table.put('k', 'v');
  first.master.override = () => result('UNKNOWN_TABLET');
  const tablet = cluster.tables.get('t')!.tablets[0]!;
  tablet.status = 'recovering';
  tablet.address = null;
  const waiting = [table.put('k', 'new'), table.put('l', 'new')];
  await until('the map is polled', () => cluster.getTableCalls >= 4);
  tablet.status = 'normal';
  tablet.serverId = second.serverId;
  tablet.address = second.address;
  await Promise.all(waiting);
  assert.equal((await table.get('k'))?.toString(), 'new');
  const rpcIds = second.master.requests.flatMap(({ operations }) =>
    operations.filter(({ rpcId }) => rpcId > 0).map(({ rpcId }) => rpcId),
  );
  assert.deepEqual(rpcIds.sort(), [2, 3], 'the ids that the first master refused');
});

test('a master that dies with writes under way costs no error', async () => {
  const { cluster, client } = await start(2);
  const [first, second] = [cluster.servers[0]!, cluster.servers[1]!];
  const table = await client.createTable('t');
  first.master.intercept = () => true;
  const put = table.put('k', 'v');
  await until('sent', () => first.master.requests.length > 0);
  await first.endpoint.close();
  const tablet = cluster.tables.get('t')!.tablets[0]!;
  tablet.serverId = second.serverId;
  tablet.address = second.address;
  assert.ok((await put).version > 0);
  assert.equal(second.master.requests[0]?.operations[0]?.rpcId, 1);
});

test('a new incarnation at the old address is not taken for the old one', async () => {
  const { cluster, client } = await start(1);
  await client.createTable('t');
  cluster.tables.get('t')!.tablets[0]!.serverId = 99;
  const other = await connect(cluster.url);
  open.push(other);
  const late = await rejectsWith(
    other.table('t').put('k', 'v', { timeoutMs: 300 }),
    'TIMEOUT',
    'not-applied',
  );
  assert.match(late.message, /server 99/);
});

test('deadlines: sent and silent is unknown, a read never, a refusal keeps its code', async () => {
  const { cluster, client } = await start();
  const { master } = cluster.servers[0]!;
  const table = await client.createTable('t');
  master.intercept = () => true;
  await Promise.all([
    rejectsWith(table.put('k', 'v', { timeoutMs: 100 }), 'TIMEOUT', 'unknown'),
    rejectsWith(table.get('k', { timeoutMs: 100 }), 'TIMEOUT', 'not-applied'),
  ]);
  master.intercept = () => false;
  master.override = () => result('NOT_ENOUGH_BACKUPS');
  await rejectsWith(table.put('k', 'v', { timeoutMs: 200 }), 'NOT_ENOUGH_BACKUPS', 'not-applied');
  master.override = () => result('STALE_RPC');
  await rejectsWith(table.put('k', 'v'), 'STALE_RPC', 'unknown');
  assert.equal(client.stats().operations, 0);
  assert.equal(client.stats().mutationsOutstanding, 0);
});

test('a hanging attempt is repeated with the same id within the deadline', async () => {
  const { cluster, client } = await start();
  const { master } = cluster.servers[0]!;
  const table = await client.createTable('t');
  master.intercept = () => master.requests.length === 1;
  await table.put('k', 'v', { timeoutMs: 5_000 });
  const ids = master.requests.map(({ operations }) => operations[0]!.rpcId);
  assert.deepEqual(ids, [1, 1]);
});

/** Answers of a master that are kept back until `release`. */
function hold(master: FakeMaster, which: (request: ExecuteRequest) => boolean) {
  const held: (() => void)[] = [];
  let released = false;
  master.intercept = (call) => {
    const { clientId, operations } = master.requests.at(-1)!;
    if (released || !which(master.requests.at(-1)!)) return false;
    // Executed as it comes; what waits is the answer.
    const reply = encodeExecuteReply(operations.map((each) => master.execute(clientId, each)));
    held.push(() => call.reply(reply));
    return true;
  };
  const release = (): void => {
    released = true;
    for (const answer of held) answer();
  };
  return { held, release };
}

const writes = ({ operations }: ExecuteRequest): boolean =>
  operations.some(({ op }) => op !== OP_READ);

test('a full window makes mutations wait in their place, then lets them in', async () => {
  const { cluster, client } = await start(5);
  const table = await client.createTable('t', { span: 5 });
  const holds = cluster.servers.map(({ master }) => hold(master, writes));
  const puts = Array.from({ length: 25_000 }, (_, i) => table.put(`k${i}`, 'v'));
  const last = table.get('k24999');
  await until('window full', () => client.stats().mutationsOutstanding === 16_384);
  // Some look like one that is written.
  const others = Array.from({ length: 20 }, (_, i) => table.get(`other ${i}`));
  assert.equal(await Promise.race(others), undefined, 'reads of other keys go on');
  assert.equal(client.stats().mutationsOutstanding, 16_384);
  for (const { release } of holds) release();
  await Promise.all([...puts, ...others]);
  assert.equal(String(await last), 'v', 'it was called behind its put');
  assert.equal(client.stats().mutationsOutstanding, 0);
});

test('reads are answered while writes wait, also those called beside them', async () => {
  const { cluster, client } = await start();
  const { master } = cluster.servers[0]!;
  const table = await client.createTable('t');
  await table.putMany([
    ['k', 'old'],
    ['l', 'old'],
  ]);
  const { held, release } = hold(master, writes);
  const before = table.get('k');
  const put = table.put('k', 'new');
  const after = table.get('k');
  const many = table.getMany(['l', 'm']);
  assert.equal(String(await before), 'old');
  assert.deepEqual((await many).map(String), ['old', 'undefined']);
  assert.equal(String(await table.get('l')), 'old', 'called later');
  assert.equal(held.length, 1);
  let done = false;
  const both = Promise.all([put, after]).then(() => {
    done = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(done, false);
  release();
  await both;
  assert.equal(String(await after), 'new');
  assert.equal(client.stats().retries, 0);
});

test('calls of one turn on one key are executed in their order', async () => {
  const { cluster, client } = await start();
  const table = await client.createTable('t');
  const { held, release } = hold(cluster.servers[0]!.master, () => true);
  const results: Promise<unknown>[] = [];
  const expected: string[] = [];
  // More turns than messages may be in flight.
  for (let turn = 0; turn < 12; turn += 1) {
    for (const key of ['a', 'b', 'c']) {
      const value = `${key} ${turn}`;
      results.push(table.get(key), table.put(key, value), table.get(key), table.getMany([key]));
      expected.push(turn === 0 ? 'undefined' : `${key} ${turn - 1}`, 'put', value, value);
      if (turn % 3 !== 2) continue;
      results.push(table.delete(key), table.get(key), table.put(key, value, { ifAbsent: true }));
      expected.push('put', 'undefined', 'put');
    }
    await new Promise((resolve) => setImmediate(resolve));
  }
  await until('the limit', () => held.length >= 4);
  release();
  const told = (await Promise.all(results)).map((each) =>
    typeof each === 'object' && each !== null && 'version' in each ? 'put' : String(each),
  );
  assert.deepEqual(told, expected);
});

test('aborts', async () => {
  const { cluster, client } = await start();
  const { master } = cluster.servers[0]!;
  const table = await client.createTable('t');
  master.intercept = () => true;
  const abort = new AbortController();
  const put = table.put('k', 'v', { signal: abort.signal });
  const get = table.getMany(['a', 'b'], { signal: abort.signal });
  await until('sent', () => master.requests.length > 0);
  abort.abort();
  await Promise.all([
    rejectsWith(put, 'ABORTED', 'unknown'),
    rejectsWith(get, 'ABORTED', 'not-applied'),
  ]);
  await rejectsWith(table.put('k', 'v', { signal: abort.signal }), 'ABORTED', 'not-applied');
});

test('unknown hosts, wrong clusters and closed clients are typed errors', async () => {
  const { cluster, client } = await start();
  const gone = await rejectsWith(
    connect('rekindle://127.0.0.1:1/?timeoutMs=200'),
    'COORDINATOR_UNAVAILABLE',
  );
  assert.ok(gone.cause instanceof Error);
  await rejectsWith(
    connect('rekindle://no-such-host.invalid:1/', { timeoutMs: 300 }),
    'COORDINATOR_UNAVAILABLE',
  );
  const other = '99999999-2222-4333-8444-555555555555';
  await rejectsWith(connect(`${cluster.url}?cluster=${other}`), 'WRONG_CLUSTER');
  const second = await connect(`rekindle://127.0.0.1:1,${cluster.address}/`);
  await second.close();

  const table = await client.createTable('t');
  cluster.servers[0]!.master.intercept = () => true;
  const put = table.put('k', 'v');
  await until('sent', () => cluster.servers[0]!.master.requests.length > 0);
  await Promise.all([client.close(), rejectsWith(put, 'CLIENT_CLOSED', 'unknown')]);
  await rejectsWith(table.get('k'), 'CLIENT_CLOSED', 'not-applied');
  await rejectsWith(client.status(), 'CLIENT_CLOSED');

  const third = await connect(cluster.url);
  const unsent = third.table('t').put('k', 'v');
  await Promise.all([third.close(), rejectsWith(unsent, 'CLIENT_CLOSED', 'not-applied')]);
  await new Promise((resolve) => setImmediate(resolve));
});

test('the coordinator may be away: data goes on, unknown tables say so in time', async () => {
  const { cluster, client } = await start();
  const table = await client.createTable('t');
  await cluster.coordinator.close();
  await table.put('k', 'v');
  assert.equal((await table.get('k'))?.toString(), 'v');
  await rejectsWith(
    client.table('other').put('k', 'v', { timeoutMs: 300 }),
    'COORDINATOR_UNAVAILABLE',
    'not-applied',
  );
});

test('await using closes the client', async () => {
  const cluster = await FakeCluster.start(1);
  open.push(cluster);
  let kept: Client;
  {
    await using client = await connect(cluster.url);
    kept = client;
    await client.createTable('t');
  }
  await rejectsWith(kept.listTables(), 'CLIENT_CLOSED');
});

test('queued operations are bounded and say no', async () => {
  const { cluster, client } = await start();
  const { master } = cluster.servers[0]!;
  const table = await client.createTable('t');
  master.intercept = () => true;
  const value = Buffer.alloc(1_000_000);
  const puts = Array.from({ length: 300 }, (_, i) => table.put(`k${i}`, value, { timeoutMs: 500 }));
  const ends = await Promise.allSettled(puts);
  const codes = ends.map((end) => (end.status === 'rejected' ? end.reason.code : 'done'));
  assert.equal(codes.filter((code) => code === 'RETRY').length, 32, 'those over 256 MiB');
  assert.equal(codes.filter((code) => code === 'TIMEOUT').length, 268);
  assert.equal(client.stats().operationBytes, 0);
});

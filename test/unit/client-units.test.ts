/** Parts of the SDK that need no network: connection strings, rpc ids, queues, retry decisions. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { attemptMs, nextStep, waitMs } from '../../src/client/retry-policy.js';
import { RpcTracker } from '../../src/client/rpc-tracker.js';
import { parseStorageUrl } from '../../src/coordinator/external-storage/storage-url.js';
import { backoffMs } from '../../src/rpc/backoff.js';
import { parseConnectionString, parseCoordinators } from '../../src/rpc/connection-string.js';
import { DeadlineMember, DeadlineSet } from '../../src/rpc/deadline-set.js';
import { until } from './rpc-fixture.js';

test('connection strings are understood', () => {
  assert.deepEqual(parseConnectionString('rekindle://a:1,b.example:65535,[::1]:7/'), {
    addresses: ['a:1', 'b.example:65535', '[::1]:7'],
    service: null,
    clusterId: null,
    timeoutMs: null,
  });
  const cluster = '11111111-2222-4333-8444-ABCDEFABCDEF';
  const parsed = parseConnectionString(`rekindle://h:1?cluster=${cluster}&timeoutMs=250`);
  assert.equal(parsed.clusterId, cluster.toLowerCase());
  assert.equal(parsed.timeoutMs, 250);
});

test('a DNS service and the address of a server are understood', () => {
  const { addresses, service } = parseConnectionString(
    'rekindle+srv://db.example.org/?timeoutMs=9',
  );
  assert.deepEqual([addresses, service], [[], 'db.example.org']);
  assert.deepEqual(parseCoordinators('a:1, b:2'), { addresses: ['a:1', 'b:2'], service: null });
  assert.deepEqual(parseCoordinators('rekindle://a:1/'), { addresses: ['a:1'], service: null });
  assert.deepEqual(parseCoordinators('rekindle+srv://x'), { addresses: [], service: 'x' });
  for (const text of ['', 'a', 'rekindle://a:1/?timeoutMs=5', 'rekindle+srv://a:1', 'http://a:1']) {
    assert.throws(() => parseCoordinators(text), { code: 'INVALID_ARGUMENT' }, text);
  }
});

test('the address of a storage is understood, and nonsense refused', () => {
  assert.deepEqual(parseStorageUrl('etcd://a:1,[::1]:2/x/y/'), {
    endpoints: ['a:1', '[::1]:2'],
    prefix: 'x/y',
    user: null,
    password: null,
    passwordFile: null,
    tls: null,
  });
  assert.equal(parseStorageUrl('etcd://a:1').prefix, 'rekindle');
  const full = parseStorageUrl('etcds://me:p%40ss:w@a:1/p?ca=/c&cert=/d&key=/e');
  assert.deepEqual([full.user, full.password], ['me', 'p@ss:w']);
  assert.deepEqual(full.tls, { caFile: '/c', certFile: '/d', keyFile: '/e' });
  for (const url of [
    '',
    'a:1',
    'lmdb:///tmp',
    'etcd://',
    'etcd://a',
    'etcd://a:1,,b:2',
    'etcd://@a:1',
    'etcd://a:1/?ca=/c',
    'etcds://a:1/?cert=/c',
    'etcd://a:1/?passwordFile=/f',
    'etcd://a:1/?ttl=5',
    'etcd://a:1/%E0%A4%A',
  ]) {
    assert.throws(() => parseStorageUrl(url), { code: 'INVALID_ARGUMENT' }, url);
  }
});

test('connection strings with nonsense are refused', () => {
  for (const url of [
    '',
    'redis://h:1',
    'rekindle://',
    'rekindle://h',
    'rekindle://h:0',
    'rekindle://h:70000',
    'rekindle://h:1,,g:2',
    'rekindle://h:1/path',
    'rekindle://user@h:1',
    'rekindle://h:1/?cluster=x',
    'rekindle://h:1/?timeoutMs=0',
    'rekindle://h:1/?timeoutMs=-5',
    'rekindle://h:1/?timeout=5',
    'rekindle://h:1/?timeoutMs=5?cluster=x',
    undefined as unknown as string,
  ]) {
    assert.throws(() => parseConnectionString(url), { code: 'INVALID_ARGUMENT' }, String(url));
  }
});

test('ackId is the end of the finished prefix, in any order of finishing', () => {
  let state = Number(process.env.SEED ?? 20_260_101);
  const seed = state;
  const random = (): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return state / 2 ** 32;
  };
  const tracker = new RpcTracker(64);
  const outstanding = new Set<number>();
  let newest = 0;
  for (let step = 0; step < 20_000; step++) {
    if (random() < 0.5) {
      assert.equal(tracker.room, 64 - (newest - tracker.ackId), `SEED=${seed} npm test`);
      if (tracker.room === 0) {
        assert.throws(() => tracker.next(), { code: 'INTERNAL' });
      } else {
        assert.equal(tracker.next(), ++newest);
        outstanding.add(newest);
      }
    } else if (outstanding.size > 0) {
      const ids = [...outstanding];
      const id = ids[Math.floor(random() * ids.length)]!;
      outstanding.delete(id);
      tracker.finish(id);
    }
    const expected = outstanding.size === 0 ? newest : Math.min(...outstanding) - 1;
    assert.equal(tracker.ackId, expected, `SEED=${seed} npm test`);
  }
  assert.throws(() => tracker.finish(newest + 1), { code: 'INTERNAL' });
});

test('answers lead to the right next step', () => {
  for (const code of ['UNKNOWN_TABLET', 'CONNECTION_LOST', 'WRONG_SERVER', 'TIMEOUT'] as const) {
    assert.equal(nextStep(code), 'refresh', code);
  }
  for (const code of ['RETRY', 'NOT_ENOUGH_BACKUPS'] as const) {
    assert.equal(nextStep(code), 'wait', code);
  }
  for (const code of ['OUT_OF_MEMORY', 'WRONG_VERSION', 'STALE_RPC', 'INTERNAL'] as const) {
    assert.equal(nextStep(code), 'fail', code);
  }
  assert.equal(waitMs('RETRY', 30, 0), 30);
  assert.equal(waitMs('NOT_ENOUGH_BACKUPS', 0, 0), 50);
  assert.ok(waitMs('RETRY', 65_535, 0.99) <= 1_250);
  assert.equal(attemptMs(0), 2_000);
  assert.equal(attemptMs(60), 8_000);
  assert.equal(backoffMs(0, 20, 1_000, 0), 20);
  assert.equal(backoffMs(500, 20, 1_000, 0), 1_000);
  assert.equal(backoffMs(500, 20, 1_000, 1), 500);
});

class Waiting extends DeadlineMember {
  constructor(
    readonly deadlineMs: number,
    readonly name: string,
  ) {
    super();
  }
}

test('a deadline set expires each member once, earliest first, and keeps later ones', async () => {
  const expired: string[] = [];
  const set = new DeadlineSet<Waiting>(({ name }) => expired.push(name));
  const now = performance.now();
  const late = new Waiting(now + 60_000, 'late');
  const gone = new Waiting(now + 20, 'gone');
  set.add(late);
  set.add(new Waiting(now + 60, 'second'));
  set.add(new Waiting(now + 30, 'first'));
  set.add(gone);
  set.add(gone);
  assert.equal(set.size, 4);
  assert.equal(set.delete(gone), true);
  assert.equal(set.delete(gone), false);
  await until('expired', () => expired.length === 2);
  assert.deepEqual(expired, ['first', 'second']);
  assert.deepEqual(set.drain(), [late]);
  assert.equal(set.size, 0);
});

test('a deadline set that was empty for a while still expires who comes then', async () => {
  const expired: string[] = [];
  const set = new DeadlineSet<Waiting>(({ name }) => expired.push(name));
  const early = new Waiting(performance.now() + 40, 'early');
  set.add(early);
  set.delete(early);
  set.add(new Waiting(performance.now() + 80, 'later'));
  set.add(early);
  await until('expired', () => expired.length === 2);
  assert.deepEqual(expired, ['early', 'later']);
  // The timer of an empty set has fired for nobody; the next member gets one of its own.
  const again = new Waiting(performance.now() + 20, 'again');
  set.add(again);
  set.delete(again);
  await sleep(60);
  set.add(new Waiting(performance.now() + 20, 'last'));
  await until('expired again', () => expired.length === 3);
  assert.equal(expired[2], 'last');
});

test('the SDK loads neither the server side nor the native core', () => {
  const seen = new Set<string>();
  const packages = new Set<string>();
  const visit = (file: URL): void => {
    if (seen.has(file.href)) return;
    seen.add(file.href);
    for (const [, name = ''] of readFileSync(file, 'utf8').matchAll(/ from '([^']+)';/g)) {
      if (name.startsWith('.')) visit(new URL(name, file));
      else packages.add(name);
    }
  };
  visit(new URL('../../src/client/index.js', import.meta.url));
  assert.ok(seen.size > 10);
  const foreign = [...packages].filter((name) => !name.startsWith('node:'));
  assert.deepEqual(foreign, []);
});

/** Replies wait for durability, leave in order, and are bounded. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { ReplyQueue, type WaitingCall } from '../../src/master/reply-queue.js';
import { RekindleError } from '../../src/rpc/errors.js';

function call(name: string, out: string[], deadlineMs = 1_000): WaitingCall {
  return {
    deadlineMs,
    reply: () => out.push(name),
    fail: (error: RekindleError) => out.push(`${name}: ${error.code} ${error.outcome}`),
  };
}

const body = new Uint8Array(10);

test('one advance of the durable position releases a group in the order of execution', () => {
  const queue = new ReplyQueue();
  const out: string[] = [];
  queue.push(call('a', out), body, 100);
  queue.push(call('b', out), body, 300);
  // A read of something older: durable before b, but it came later.
  queue.push(call('c', out), body, 200);
  assert.equal(queue.release(99), 0);
  assert.equal(queue.release(250), 1);
  assert.deepEqual(out, ['a']);
  assert.equal(queue.release(300), 2);
  assert.deepEqual(out, ['a', 'b', 'c']);
  assert.equal(queue.length, 0);
  assert.equal(queue.bytes, 0);
});

test('a passed deadline fails with outcome unknown and never answers twice', () => {
  const queue = new ReplyQueue();
  const out: string[] = [];
  queue.push(call('a', out, 50), body, 100);
  queue.push(call('b', out, 90), body, 100);
  queue.expire(49);
  assert.deepEqual(out, []);
  queue.expire(60);
  assert.deepEqual(out, ['a: TIMEOUT unknown']);
  queue.release(100);
  assert.deepEqual(out, ['a: TIMEOUT unknown', 'b']);
});

test('it is full in replies or bytes, and empties as replies leave', () => {
  const queue = new ReplyQueue({ repliesMax: 2, bytesMax: 1_000 });
  const out: string[] = [];
  queue.push(call('a', out), body, 1);
  assert.equal(queue.full, false);
  queue.push(call('b', out), body, 2);
  assert.equal(queue.full, true);
  queue.release(1);
  assert.equal(queue.full, false);
  queue.push(call('c', out), new Uint8Array(2_000), 3);
  assert.equal(queue.full, true);
});

test('stopping fails what waits, with outcome unknown', () => {
  const queue = new ReplyQueue();
  const out: string[] = [];
  queue.push(call('a', out), body, 1);
  queue.failAll(new RekindleError('SHUTTING_DOWN', 'stop', { outcome: 'unknown' }));
  assert.deepEqual(out, ['a: SHUTTING_DOWN unknown']);
  assert.equal(queue.release(10), 0);
});

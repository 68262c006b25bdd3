/** Memory that is used again: the outbox of a connection, the bodies of requests. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MessageMemory } from '../../src/client/message-memory.js';
import { Outbox, type OutboxSocket } from '../../src/rpc/outbox.js';

/** Takes what is written at once, or holds it back; it keeps no copy of what it holds. */
class Kernel implements OutboxSocket {
  writes = 0;
  accepts = true;
  #taken: Buffer[] = [];
  #held: Uint8Array[] = [];
  #corked = false;

  get writableLength(): number {
    return this.#held.reduce((sum, each) => sum + each.length, 0);
  }

  cork(): void {
    this.#corked = true;
  }

  uncork(): void {
    this.#corked = false;
    this.drain();
  }

  write = ((bytes: Uint8Array): boolean => {
    this.writes += 1;
    this.#held.push(bytes);
    this.drain();
    return true;
  }) as OutboxSocket['write'];

  drain(): void {
    if (this.#corked || !this.accepts) return;
    this.#taken.push(...this.#held.splice(0).map((each) => Buffer.from(each)));
  }

  get text(): string {
    return Buffer.concat(this.#taken).toString();
  }
}

function put(outbox: Outbox, text: string): void {
  const at = outbox.take(text.length);
  outbox.memory.write(text, at);
}

test('what is sent in one turn leaves in one write, and its memory is used again', () => {
  const kernel = new Kernel();
  const outbox = new Outbox(kernel);
  put(outbox, 'one,');
  const { memory } = outbox;
  put(outbox, 'two;');
  assert.equal(outbox.unsentBytes, 8);
  outbox.flush();
  assert.equal(kernel.writes, 1);
  assert.equal(outbox.unsentBytes, 0);
  for (let turn = 0; turn < 10_000; turn++) {
    put(outbox, 'three');
    outbox.flush();
  }
  assert.equal(outbox.memory, memory);
  assert.equal(kernel.text, `one,two;${'three'.repeat(10_000)}`);
  outbox.flush();
  assert.equal(kernel.writes, 10_001);
});

test('bytes that the kernel has not taken are not overwritten', () => {
  const kernel = new Kernel();
  const outbox = new Outbox(kernel);
  kernel.accepts = false;
  let expected = '';
  for (let turn = 0; turn < 200; turn++) {
    const text = `${turn}:`.padEnd(1_000, '.');
    expected += text;
    put(outbox, text);
    if (turn % 3 === 0) outbox.flush();
    assert.equal(outbox.unsentBytes, expected.length);
  }
  outbox.flush();
  kernel.accepts = true;
  kernel.drain();
  assert.equal(kernel.text, expected);
  assert.equal(outbox.unsentBytes, 0);
});

test('long parts keep their place between what was gathered', () => {
  const kernel = new Kernel();
  const outbox = new Outbox(kernel);
  put(outbox, 'head of one,');
  outbox.append(Buffer.from('long part,'));
  put(outbox, 'two,');
  outbox.append(Buffer.from('another,'));
  put(outbox, 'three');
  assert.equal(kernel.text, '');
  outbox.flush();
  assert.equal(kernel.text, 'head of one,long part,two,another,three');
  assert.equal(outbox.unsentBytes, 0);
});

test('bodies of requests come back as often as they are given back, up to a limit', () => {
  const memory = new MessageMemory();
  const first = memory.take(70_000);
  assert.equal(first.length, 70_000);
  memory.giveBack(first);
  const held = memory.freeBytes;
  assert.ok(held >= 70_000);
  const second = memory.take(66_000);
  assert.equal(second.buffer, first.buffer);
  assert.equal(second.length, 66_000);
  assert.equal(memory.freeBytes, 0);
  assert.notEqual(memory.take(66_000).buffer, second.buffer);
  const many = Array.from({ length: 40 }, () => memory.take(2 ** 20));
  for (const each of many) memory.giveBack(each);
  assert.equal(memory.freeBytes, 16 * 2 ** 20);
  const small = memory.take(100);
  memory.giveBack(small);
  assert.equal(memory.freeBytes, 16 * 2 ** 20);
});

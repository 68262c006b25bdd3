/** When the next group of a head leaves: together, at once for who writes alone, else with more. */
import assert from 'node:assert/strict';
import test from 'node:test';
import {
  groupBytesMax,
  groupWaitMs,
  ReplicatedSegment,
  type SegmentWrite,
} from '../../src/master/replicated-segment.js';

const openingBytes = 64;

class Head {
  nowMs = 1_000;
  appended = openingBytes;
  waits = 0;
  #token = 0;
  readonly segment = new ReplicatedSegment({
    segmentId: 1,
    kind: 'head',
    replicas: 3,
    openingBytes,
    source: (_segmentId, from, bytesMax) => ({
      end: from === 0 ? openingBytes : Math.min(from + bytesMax, this.appended),
      checksum: 7,
      segmentBytes: this.appended,
    }),
    nextToken: () => ++this.#token,
  });

  constructor() {
    for (const replicaIndex of [0, 1, 2]) {
      const serverId = 2 + replicaIndex;
      this.segment.step({ kind: 'assigned', replicaIndex, serverId }, this.nowMs);
    }
    this.segment.step({ kind: 'precedingOpenCommitted', value: true }, this.nowMs);
    this.segment.step({ kind: 'precedingCloseCommitted' }, this.nowMs);
    this.ack(this.pump());
  }

  append(bytes: number): void {
    this.appended += bytes;
    const event = { kind: 'extended', appendedBytes: this.appended, closed: false } as const;
    this.segment.step(event, this.nowMs);
  }

  pump(): SegmentWrite[] {
    const effects = this.segment.pump(this.nowMs, 24);
    this.waits += effects.filter(({ kind }) => kind === 'wait').length;
    return effects.flatMap((effect) => (effect.kind === 'send' ? [effect.write] : []));
  }

  ack(writes: readonly SegmentWrite[]): void {
    for (const { replicaIndex, token } of writes) {
      this.segment.step({ kind: 'acked', replicaIndex, token }, this.nowMs);
    }
  }
}

test('the next group leaves for all when all have acknowledged', () => {
  const head = new Head();
  head.append(100);
  const first = head.pump();
  assert.equal(first.length, 3);
  head.append(100);
  head.ack(first.slice(0, 2));
  assert.deepEqual(head.pump(), []);
  head.append(100);
  head.ack(first.slice(2));
  assert.deepEqual(
    head.pump().map(({ offset, end }) => [offset, end]),
    Array.from({ length: 3 }, () => [openingBytes + 100, openingBytes + 300]),
  );
});

test('much does not wait: links are kept busy', () => {
  const head = new Head();
  head.append(100);
  const first = head.pump();
  head.append(groupBytesMax);
  head.ack(first.slice(0, 1));
  assert.equal(head.pump().length, 1);
});

test('who writes alone never waits, however large the last group was', () => {
  const head = new Head();
  head.append(1_000);
  head.ack(head.pump());
  head.append(10);
  assert.equal(head.pump().length, 3);
  assert.equal(head.waits, 0);
});

test('a smaller group waits for more, and not for long', () => {
  const head = new Head();
  head.append(1_000);
  const first = head.pump();
  head.append(400);
  head.ack(first);
  assert.deepEqual(head.pump(), []);
  assert.equal(head.waits, 1);
  head.append(600);
  const second = head.pump();
  assert.equal(second.length, 3, 'as large as the last');
  head.append(10);
  head.ack(second);
  assert.deepEqual(head.pump(), []);
  head.nowMs += groupWaitMs;
  assert.equal(head.pump().length, 3, 'nobody came');
});

test('after waits in vain the next ones are left out, until one was of use', () => {
  const head = new Head();
  let writes: SegmentWrite[] = [];
  /** A large group, then a small one; whether that one waited. */
  const round = (more: number): boolean => {
    head.append(1_000);
    writes = head.pump();
    assert.equal(writes.length, 3, 'who writes alone does not wait');
    head.append(10);
    head.ack(writes);
    const before = head.waits;
    writes = head.pump();
    const waited = head.waits > before;
    if (waited) {
      assert.deepEqual(writes, []);
      if (more > 0) head.append(more);
      else head.nowMs += groupWaitMs;
      writes = head.pump();
    }
    assert.equal(writes.length, 3);
    head.ack(writes);
    return waited;
  };
  assert.deepEqual(
    Array.from({ length: 10 }, () => round(0)),
    [true, false, false, true, false, false, false, false, true, false],
  );
  for (let i = 0; i < 7; i++) assert.equal(round(0), false);
  assert.equal(round(1_000), true);
  assert.equal(round(1_000), true, 'it was of use');
});

test('a close does not wait', () => {
  const head = new Head();
  head.append(1_000);
  const first = head.pump();
  head.append(10);
  const closed = { kind: 'extended', appendedBytes: head.appended, closed: true } as const;
  head.segment.step(closed, head.nowMs);
  head.segment.step({ kind: 'followingOpenCommitted', value: true }, head.nowMs);
  head.ack(first);
  assert.deepEqual(
    head.pump().map(({ close }) => close),
    [true, true, true],
  );
});

/**
 * The reader of WebSocket frames: whatever the chunks, the same messages; what is not allowed ends
 * the stream. Frames are made by hand, not by src/rpc. That both sides of the transport agree is
 * for rpc-transport.test.ts and for `ws`, which the tests of bad input use.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { MessageReader } from '../../src/rpc/message-reader.js';

const HEAD_BYTES = 16;

function frame(first: number, payload: Uint8Array, maskBit = 0): Buffer {
  const header =
    payload.length < 126
      ? Buffer.from([first, maskBit | payload.length])
      : payload.length < 65_536
        ? Buffer.from([first, maskBit | 126, payload.length >> 8, payload.length & 0xff])
        : Buffer.concat([Buffer.from([first, maskBit | 127]), Buffer.alloc(8)]);
  if (payload.length >= 65_536) header.writeBigUInt64BE(BigInt(payload.length), 2);
  return Buffer.concat([header, payload]);
}

interface Seen {
  messages: Buffer[];
  controls: [number, Buffer][];
  placed: number[];
}

/** Every chunk is overwritten after it was read, as the socket's buffer is. */
function readAll(stream: Buffer, cuts: readonly number[]): Seen & { problem: string | null } {
  const seen: Seen = { messages: [], controls: [], placed: [] };
  const reader = new MessageReader({
    place: (_head, bytes) => {
      seen.placed.push(bytes);
      return new Uint8Array(bytes);
    },
    message: (head, body) => seen.messages.push(Buffer.concat([head, body])),
    control: (opcode, payload) => seen.controls.push([opcode, Buffer.from(payload)]),
  });
  const ends = [...new Set(cuts.map((cut) => cut % (stream.length + 1)))].sort((a, b) => a - b);
  let from = 0;
  for (const to of [...ends, stream.length]) {
    const chunk = Uint8Array.from(stream.subarray(from, to));
    const problem = reader.read(chunk);
    if (problem !== null) return { ...seen, problem };
    chunk.fill(0xee);
    from = to;
  }
  return { ...seen, problem: null };
}

const bodyBytes = fc.oneof(
  fc.integer({ min: 0, max: 300 }),
  fc.constantFrom(109, 110, 65_519, 65_520, 70_000),
);

test('messages come out whole, however the bytes are cut', () => {
  const items = fc.array(
    fc.oneof(
      fc.record({ bytes: bodyBytes, seed: fc.nat(255) }),
      fc.record({ opcode: fc.constantFrom(9, 10), payload: fc.uint8Array({ maxLength: 125 }) }),
    ),
    { maxLength: 8 },
  );
  fc.assert(
    fc.property(items, fc.array(fc.nat(200_000), { maxLength: 40 }), (sent, cuts) => {
      const messages: Buffer[] = [];
      const controls: [number, Buffer][] = [];
      const stream = sent.map((item) => {
        if ('opcode' in item) {
          controls.push([item.opcode, Buffer.from(item.payload)]);
          return frame(0x80 | item.opcode, item.payload);
        }
        const message = Buffer.alloc(HEAD_BYTES + item.bytes);
        for (let i = 0; i < message.length; i++) message[i] = (item.seed + i * 7) & 0xff;
        messages.push(message);
        return frame(0x82, message);
      });
      const seen = readAll(Buffer.concat(stream), cuts);
      assert.equal(seen.problem, null);
      assert.deepEqual(seen.messages, messages);
      assert.deepEqual(seen.controls, controls);
    }),
  );
});

test('what our servers never send ends the stream, before anything is allocated', () => {
  const message = Buffer.alloc(HEAD_BYTES + 4);
  const refused: [RegExp, Buffer][] = [
    [/fragment/, frame(0x02, message)],
    [/masked/, frame(0x82, message, 0x80)],
    [/extension/, frame(0xc2, message)],
    [/kind 1/, frame(0x81, message)],
    [/kind 0/, frame(0x80, message)],
    [/no header/, frame(0x82, message.subarray(0, HEAD_BYTES - 1))],
    [/control frame of 126/, frame(0x89, Buffer.alloc(126))],
    [/too long/, Buffer.from([0x82, 127, 0, 0, 0, 0, 1, 0, 0, 1])],
    [/too long/, Buffer.from([0x82, 127, 255, 255, 255, 255, 255, 255, 255, 255])],
  ];
  for (const [problem, stream] of refused) {
    const seen = readAll(stream, [1, 3]);
    assert.match(seen.problem ?? 'none', problem);
    assert.deepEqual([seen.messages, seen.placed], [[], []]);
  }
});

test('a reader that is stopped, or has let a body go, writes there no more', () => {
  const stream = frame(0x82, Buffer.alloc(HEAD_BYTES + 100, 7));
  const mine = new Uint8Array(100);
  let messages = 0;
  const reader = new MessageReader({
    place: () => mine,
    message: () => messages++,
    control: () => assert.fail('no control frame was sent'),
  });
  assert.equal(reader.read(stream.subarray(0, 50)), null);
  const written = mine.filter((byte) => byte === 7).length;
  assert.ok(written > 0 && written < 100);
  reader.letGo(mine);
  assert.equal(reader.read(stream.subarray(50)), null);
  assert.equal(mine.filter((byte) => byte === 7).length, written);
  assert.equal(messages, 1, 'the stream goes on behind it');
  assert.equal(reader.read(stream.subarray(0, 50)), null);
  reader.stop();
  assert.equal(reader.read(stream.subarray(50)), null);
  assert.equal(messages, 1);
});

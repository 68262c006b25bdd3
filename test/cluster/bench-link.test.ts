/** The two ends of `bench link`: what the sender counts arrives, is stored, and is let go of. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LinkLog } from '../../bench/link-log.js';
import { LinkReceiver } from '../../bench/link-process.js';
import { send } from '../../bench/link-sender.js';

const PIECE_BYTES = 256 * 1024;

test('bench link sends whole replicas, and counts what its receiver counts', {
  timeout: 60_000,
}, async () => {
  const log = new LinkLog({ valueBytes: 1_000, pieceBytes: PIECE_BYTES });
  const ends = log.segments.map(({ pieces }) => pieces.at(-1)?.end ?? 0);
  assert.ok(ends.length > 2 && ends.every((end) => end > 7 * 2 ** 20), `whole segments: ${ends}`);
  for (const mode of ['link', 'fsync'] as const) {
    const receiver = await LinkReceiver.start(mode, 1, []);
    let sums: Awaited<ReturnType<typeof send>>;
    try {
      sums = await send(receiver, log, 3, 500);
    } finally {
      const stats = await receiver.stop();
      // What it asked to free, and the handshake, are requests as well.
      assert.ok((stats.requests ?? 0) > 3 && stats.requestsRefused === 0, JSON.stringify(stats));
    }
    assert.ok(sums.messages > 3, `${mode}: ${sums.messages} messages`);
    assert.ok(sums.bytes / sums.messages <= PIECE_BYTES);
    const overhead = (sums.sentBytes - sums.bytes) / sums.messages;
    assert.ok(overhead > 70 && overhead < 300, `${overhead} bytes beside those of a message`);
  }
  log.close();
});

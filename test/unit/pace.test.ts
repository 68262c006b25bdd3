/** What comes for nobody in particular comes at its rate, whatever the pattern. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Pace } from '../../src/master/pace.js';

test('no more than the rate and one burst ever come in any time', () => {
  const piece = fc.record({ bytes: fc.nat(5_000), idleMs: fc.nat(50) });
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 200 }), (pieces) => {
      const pace = new Pace(100_000, 10_000);
      let nowMs = 0;
      const came: { atMs: number; bytes: number }[] = [];
      for (const { bytes, idleMs } of pieces) {
        nowMs += idleMs;
        came.push({ atMs: nowMs, bytes });
        nowMs += pace.spend(bytes, nowMs);
      }
      for (const [first, { atMs: fromMs }] of came.entries()) {
        let sum = 0;
        for (const { atMs, bytes } of came.slice(first)) {
          sum += bytes;
          // The last piece is paid for behind it.
          assert.ok(sum - bytes <= 10_000 + (atMs - fromMs) * 100 + 1, `${sum} in ${atMs} ms`);
        }
      }
    }),
  );
});

test('what comes steadily is held to the rate; without a limit nothing waits', () => {
  const pace = new Pace(1_000_000, 0);
  let nowMs = 50;
  for (let i = 0; i < 100; i++) nowMs += pace.spend(10_000, nowMs);
  assert.equal(Math.round(nowMs), 1_050);
  assert.equal(new Pace(0, 0).spend(1e9, 5), 0);
});

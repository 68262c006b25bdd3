/** What benchmarks say of the times they recorded. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { histogram, percentileUs } from '../../bench/fixed-rate.js';

test('no percentile is above the maximum', () => {
  const times = histogram();
  for (const value of [968, 1537, 5791, 17_491]) times.recordValue(value);
  assert.ok(times.getValueAtPercentile(99.9) > 17_491, 'the library gives the end of a bucket');
  const values = [25, 50, 75, 99.9, 100].map((each) => percentileUs(times, each));
  assert.deepEqual(values, [968, 1537, 5791, 17_491, 17_491]);
});

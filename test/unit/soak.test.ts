/** How bench soak judges memory, what it draws, and the axes it draws on. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomStream } from '../../bench/dataset.js';
import { driftPercent, type Point, secondHalf, theilSenSlope } from '../../bench/drift.js';
import { evenTicks, lineChart } from '../../bench/line-chart.js';
import { residentBytesOf } from '../../bench/process-usage.js';
import { kindOf, SOAK_MIX, smallBytes } from '../../bench/soak-load.js';

function line(count: number, at: (x: number) => number): Point[] {
  return Array.from({ length: count }, (_, x) => [x, at(x)] as const);
}

test('the slope of a line is its own, whatever a few points do', () => {
  assert.equal(theilSenSlope(line(20, (x) => 3 * x + 5)), 3);
  const withPeaks = line(40, (x) => (x % 10 === 9 ? 1_000_000 : 2 * x));
  assert.ok(Math.abs(theilSenSlope(withPeaks) - 2) < 0.5);
  assert.equal(theilSenSlope([[1, 1]]), 0);
});

test('drift is the growth over the length, in percent of the level', () => {
  assert.equal(driftPercent(line(11, () => 100)), 0);
  assert.equal(driftPercent(line(11, (x) => 100 + x)), 1_000 / 105);
  assert.equal(driftPercent(line(11, (x) => 100 - x)), -1_000 / 95);
  assert.ok(Number.isNaN(driftPercent([])));
});

test('noise without growth is no drift', () => {
  const random = randomStream(1);
  const noisy = line(300, () => 1_000 + (random() % 100));
  assert.ok(Math.abs(driftPercent(noisy)) < 1, String(driftPercent(noisy)));
});

test('what happens in the first half does not count', () => {
  const filled = line(101, (x) => Math.min(x, 40));
  assert.deepEqual([secondHalf(filled)[0], secondHalf(filled).length], [[50, 40], 51]);
  assert.equal(driftPercent(secondHalf(filled)), 0);
});

test('the mix has its shares, and each object its size', () => {
  const drawn = new Map<string, number>();
  for (let i = 0; i < 1_000; i++) drawn.set(kindOf(i), (drawn.get(kindOf(i)) ?? 0) + 1);
  assert.deepEqual([...drawn], SOAK_MIX);
  const sizes = Array.from({ length: 5_000 }, (_, index) => smallBytes(index));
  assert.deepEqual([Math.min(...sizes) >= 100, Math.max(...sizes) <= 2_000], [true, true]);
  assert.ok(new Set(sizes).size > 1_000, 'sizes differ');
});

test('memory of this process, and none of one that is not there', () => {
  const bytes = residentBytesOf(process.pid) ?? 0;
  assert.ok(Math.abs(bytes / process.memoryUsage.rss() - 1) < 0.2, String(bytes));
  assert.equal(residentBytesOf(2 ** 30), undefined);
});

test('ticks are even, begin at 0 and reach the largest', () => {
  assert.deepEqual(evenTicks(10), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  assert.deepEqual(evenTicks(0.5), [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5]);
  assert.deepEqual(evenTicks(147), [0, 20, 40, 60, 80, 100, 120, 140, 160]);
});

test('a linear chart puts the middle in the middle', () => {
  const series = [
    {
      name: 'a < b',
      color: 'red',
      points: [
        [0, 0],
        [5, 50],
        [10, 100],
      ] as const,
    },
  ];
  const axes = { xTitle: 'minutes', yTitle: 'MB', xTicks: [0, 10], yTicks: [0, 100] };
  const svg = lineChart({ title: 'memory', linear: true, series, ...axes });
  assert.match(svg, /points="90.0,380.0 330.0,215.0 570.0,50.0"/);
  assert.match(svg, />a &lt; b</);
  assert.doesNotMatch(svg, /NaN|0e\+0/);
});

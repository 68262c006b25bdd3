/** What bench ycsb draws is what YCSB prescribes, and the same each time. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomStream } from '../../bench/dataset.js';
import { ratioToBest } from '../../bench/ycsb.js';
import {
  InsertedObjects,
  type Operation,
  OperationStream,
  Popularity,
  WORKLOADS,
  type WorkloadName,
} from '../../bench/ycsb-workloads.js';
import { shuffled, Zipfian } from '../../bench/zipfian.js';

const THETA = 0.99;
const COUNT = 10_000;
const DRAWS = 400_000;

function zeta(ranks: number): number {
  let sum = 0;
  for (let i = 1; i <= ranks; i++) sum += 1 / i ** THETA;
  return sum;
}

function histogramOf(zipfian: Zipfian, seed: number): Uint32Array {
  const random = randomStream(seed);
  const drawn = new Uint32Array(COUNT);
  for (let i = 0; i < DRAWS; i++) {
    const rank = zipfian.rank(random() / 2 ** 32);
    drawn[rank] = (drawn[rank] ?? 0) + 1;
  }
  return drawn;
}

test('ranks come up as often as Zipf says', () => {
  const drawn = histogramOf(new Zipfian(COUNT, THETA), 7);
  const share = (ranks: number): number =>
    drawn.subarray(0, ranks).reduce((sum, each) => sum + each, 0) / DRAWS;
  for (const ranks of [1, 2, 10, 100, 1_000, 5_000]) {
    const wanted = zeta(ranks) / zeta(COUNT);
    // The curve behind the second rank gives the first ten 5 % too much.
    assert.ok(Math.abs(share(ranks) / wanted - 1) < 0.06, `${ranks}: ${share(ranks)} ${wanted}`);
  }
  assert.equal(share(COUNT), 1);
  assert.ok((drawn.at(-1) ?? 0) < 50, 'the last rank is not where all the rest ends');
});

test('the ends of [0, 1) are the first rank and the last', () => {
  const zipfian = new Zipfian(COUNT, THETA);
  assert.equal(zipfian.rank(0), 0);
  assert.equal(zipfian.rank(1 - 2 ** -32), COUNT - 1);
});

test('the same seed draws the same ranks, another one others', () => {
  const zipfian = new Zipfian(COUNT, THETA);
  assert.deepEqual(histogramOf(zipfian, 7), histogramOf(zipfian, 7));
  assert.notDeepEqual(histogramOf(zipfian, 7), histogramOf(zipfian, 8));
});

test('what has grown is what was made as large', () => {
  const grown = new Zipfian(1_000, THETA);
  grown.growTo(COUNT);
  assert.deepEqual(histogramOf(grown, 7), histogramOf(new Zipfian(COUNT, THETA), 7));
  assert.throws(() => grown.growTo(10));
});

test('a shuffled order has each number once, and follows from its seed', () => {
  const order = shuffled(1_000, 1);
  assert.deepEqual(
    [...order].sort((a, b) => a - b),
    [...Array(1_000).keys()],
  );
  assert.deepEqual(order, shuffled(1_000, 1));
  assert.notDeepEqual(order, shuffled(1_000, 2));
  const moved = order.filter((each, index) => each !== index).length;
  assert.ok(moved > 900, `${moved} have moved`);
});

function draw(name: WorkloadName, objects: InsertedObjects, count: number): Operation[] {
  const workload = WORKLOADS.find((each) => each.name === name);
  assert.ok(workload !== undefined);
  const popularity = new Popularity(1_000, 1);
  const stream = new OperationStream(workload, objects, popularity, randomStream(3));
  return Array.from({ length: count }, () => {
    const operation = stream.next();
    if (operation.kind === 'insert') objects.acknowledge(operation.index);
    return operation;
  });
}

test('each workload has its shares', () => {
  const wanted: Record<string, [string, number]> = {
    ...{ A: ['update', 50], B: ['update', 5], C: ['update', 0], D: ['insert', 5] },
    F: ['read-modify-write', 50],
  };
  assert.deepEqual(WORKLOADS.map(({ name }) => name).sort(), Object.keys(wanted).sort());
  for (const { name } of WORKLOADS) {
    const [other, percent] = wanted[name] ?? ['', 0];
    const drawn = draw(name, new InsertedObjects(1_000), 20_000);
    const others = drawn.filter(({ kind }) => kind === other).length;
    const reads = drawn.filter(({ kind }) => kind === 'read').length;
    assert.equal(others + reads, drawn.length, name);
    assert.ok(Math.abs(others / 200 - percent) < 1.5, `${name}: ${others} of ${drawn.length}`);
  }
});

test('popular keys are spread, the latest ones are not', () => {
  const indexes = (name: WorkloadName): number[] =>
    draw(name, new InsertedObjects(1_000), 5_000).map(({ index }) => index);
  const low = (all: number[]): number => all.filter((index) => index < 500).length / all.length;
  assert.ok(Math.abs(low(indexes('C')) - 0.5) < 0.25, 'C reads in both halves');
  assert.ok(low(indexes('D')) < 0.15, 'D reads what is new');
});

test('read is only what has been acknowledged, inserts included', () => {
  const objects = new InsertedObjects(10);
  const [first, second, third] = [objects.begin(), objects.begin(), objects.begin()];
  assert.deepEqual([first, second, third], [10, 11, 12]);
  objects.acknowledge(second);
  assert.equal(objects.count, 10);
  objects.acknowledge(first);
  assert.equal(objects.count, 12);
  assert.throws(() => objects.acknowledge(first), /acknowledged once/);
  assert.throws(() => objects.acknowledge(13), /acknowledged once/);
  objects.acknowledge(third);
  assert.equal(objects.count, 13);
});

test('a ratio is the median of those to the best peer of each round', () => {
  assert.equal(
    ratioToBest(
      [10, 10, 10],
      [
        [5, 1, 10],
        [1, 20, 2],
      ],
    ),
    1,
  );
  assert.ok(Number.isNaN(ratioToBest([10], [])));
});

/** A checker that finds nothing is worth nothing: each kind of violation is shown to it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ChaosChecker, chaosValue } from '../../bench/chaos-checker.js';

function written(checker: ChaosChecker, version: number): number {
  const number = checker.writeStarts(0, false);
  checker.writeAcknowledged(0, number, version);
  return number;
}

function read(checker: ChaosChecker, number: number, version: number): void {
  checker.readEnds(checker.readStarts(0), { value: chaosValue(0, number, 100), version });
}

test('accepts what may be', () => {
  const checker = new ChaosChecker(1);
  checker.readEnds(checker.readStarts(0), undefined);
  read(checker, written(checker, 1), 1);
  const unknown = checker.writeStarts(0, false);
  read(checker, 1, 1);
  read(checker, unknown, 2);
  const deletion = checker.writeStarts(0, true);
  checker.readEnds(checker.readStarts(0), undefined);
  checker.writeAcknowledged(0, deletion, 2);
  checker.readEnds(checker.readStarts(0), undefined);
  assert.deepEqual(checker.violations, []);
});

test('finds a lost write, an old one, and one from the future', () => {
  const checker = new ChaosChecker(1);
  written(checker, 1);
  checker.readEnds(checker.readStarts(0), undefined);
  written(checker, 2);
  read(checker, 1, 2);
  read(checker, 9, 3);
  assert.equal(checker.violationCount, 3);
});

test('finds what was read once and is gone', () => {
  const checker = new ChaosChecker(1);
  written(checker, 1);
  const unknown = checker.writeStarts(0, false);
  read(checker, unknown, 2);
  read(checker, 1, 2);
  assert.equal(checker.violationCount, 1);
});

test('finds versions that go backwards', () => {
  const checker = new ChaosChecker(1);
  written(checker, 5);
  read(checker, 1, 4);
  written(checker, 3);
  assert.equal(checker.violationCount, 2);
});

test('finds torn and foreign values', () => {
  const checker = new ChaosChecker(1);
  written(checker, 1);
  const value = chaosValue(0, 1, 100);
  value[50] = (value[50] ?? 0) ^ 1;
  checker.readEnds(checker.readStarts(0), { value, version: 1 });
  checker.readEnds(checker.readStarts(0), { value: value.subarray(0, 60), version: 1 });
  checker.readEnds(checker.readStarts(0), { value: chaosValue(3, 1, 100), version: 1 });
  assert.equal(checker.violationCount, 3);
});

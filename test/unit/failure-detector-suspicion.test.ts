/** The failure detector's rules about others and about itself. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { FailureDetector, type FailureDetectorEffect } from '../../src/master/failure-detector.js';

const kinds = (effects: FailureDetectorEffect[]): string[] => effects.map((e) => e.kind);

function detectorWith(others: number[]): FailureDetector {
  const detector = new FailureDetector();
  detector.step({ kind: 'servers', others }, 0);
  return detector;
}

test('a tick pings one of the others, and nobody when alone', () => {
  const detector = detectorWith([7, 8, 9]);
  assert.deepEqual(detector.step({ kind: 'tick', random: 0.5 }, 0), [
    { kind: 'ping', serverId: 8 },
  ]);
  assert.deepEqual(detectorWith([]).step({ kind: 'tick', random: 0.5 }, 0), []);
});

test('a failed ping hints, at most twice a second and server', () => {
  const detector = detectorWith([7, 8]);
  const fail = (serverId: number, nowMs: number) =>
    kinds(detector.step({ kind: 'pingFailed', serverId, reason: 'TIMEOUT' }, nowMs));
  assert.deepEqual(fail(7, 0), ['hint']);
  assert.deepEqual(fail(7, 400), []);
  assert.deepEqual(fail(8, 600), ['hint']);
  assert.deepEqual(fail(7, 1_000), ['hint']);
});

test('silence of others stops nothing: the read lease and the backups see to it', () => {
  const detector = detectorWith([7]);
  for (let n = 0; n < 20; n += 1) {
    const failed = detector.step({ kind: 'pingFailed', serverId: 7, reason: 'TIMEOUT' }, n);
    assert.ok(!kinds(failed).includes('stopServing'));
  }
  assert.equal(detector.serving, true);
});

test('told that it is no member, only the coordinator lets it serve again', () => {
  const detector = detectorWith([7]);
  const told = detector.step({ kind: 'pingAnswered', serverId: 7, member: false }, 0);
  assert.deepEqual(kinds(told), ['stopServing', 'verifyMembership']);
  detector.step({ kind: 'verifyFailed' }, 10);
  detector.step({ kind: 'pingAnswered', serverId: 7, member: true }, 20);
  assert.equal(detector.serving, false);
  const asked = detector.step({ kind: 'tick', random: 0 }, 600);
  assert.deepEqual(kinds(asked), ['verifyMembership', 'ping']);
  const verified = detector.step({ kind: 'verified', member: true }, 610);
  assert.deepEqual(kinds(verified), ['resumeServing']);
});

test('the verdict ends it once; nothing happens afterwards', () => {
  const detector = detectorWith([7]);
  detector.step({ kind: 'doubt', reason: 'FENCED' }, 0);
  assert.deepEqual(kinds(detector.step({ kind: 'verified', member: false }, 1)), ['exit']);
  assert.deepEqual(detector.step({ kind: 'tick', random: 0 }, 2), []);
  assert.deepEqual(detector.step({ kind: 'verified', member: false }, 3), []);
});

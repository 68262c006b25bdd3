/**
 * Schedules of faults over many seeds: the same seed draws the same one, and none asks for more
 * than three replicas survive.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { COORDINATOR_TARGET, drawSchedule, type FaultEvent } from '../../bench/fault-schedule.js';

const SEEDS = 2_000;
const shape = { servers: 5, disk: true, network: true };

const takesAway = ({ harm }: FaultEvent): boolean =>
  ['kill', 'pause', 'cut', 'split'].includes(harm.kind);
const losesBytes = ({ harm }: FaultEvent): boolean =>
  harm.kind === 'rot' || (harm.kind === 'disk' && / fail$/.test(harm.what));

test('the same seed draws the same schedule', () => {
  assert.deepEqual(drawSchedule(4711, shape), drawSchedule(4711, shape));
  assert.notDeepEqual(drawSchedule(4711, shape), drawSchedule(4712, shape));
});

test('no schedule asks for more than R = 3 survives', () => {
  for (let seed = 0; seed < SEEDS; seed += 1) {
    const events = drawSchedule(seed, shape);
    assert.ok(events.length >= 3);
    const careless = new Set(events.filter(losesBytes).flatMap(({ targets }) => targets));
    assert.ok(careless.size <= 1, `seed ${seed}: one disk loses bytes`);
    for (const { atMs } of events) {
      const now = events.filter((each) => each.atMs <= atMs && atMs < each.atMs + each.lastsMs);
      const targets = now.flatMap((each) => each.targets);
      assert.equal(new Set(targets).size, targets.length, `seed ${seed}: one fault at a process`);
      const away = new Set(now.filter(takesAway).flatMap((each) => each.targets));
      away.delete(COORDINATOR_TARGET);
      const lost = events.some((each) => losesBytes(each) && each.atMs <= atMs);
      for (const server of lost ? careless : []) away.delete(server);
      assert.ok(away.size <= (lost ? 1 : 2), `seed ${seed} at ${atMs} ms`);
    }
  }
});

test('all sorts of faults are drawn', () => {
  const kinds = new Set<string>();
  for (let seed = 0; seed < 200; seed += 1) {
    for (const { harm } of drawSchedule(seed, shape)) kinds.add(harm.kind);
  }
  assert.deepEqual([...kinds].sort(), [
    ...['cut', 'disk', 'kill', 'messages', 'pause', 'rot', 'split'],
  ]);
});

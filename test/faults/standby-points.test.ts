/**
 * The leader dies at every step of the catalogue that is a coordinator's, with its state in etcd,
 * and a standby finishes what was begun: the dead one is not started again before the cluster is
 * whole. `npm test` plays those that are marked short, `npm run test:faults` every one;
 * REKINDLE_FAULT_CASES=word those whose name contains the word.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withoutEtcd } from '../../bench/etcd.js';
import { CASES } from './catalogue.js';
import { FaultLane } from './fault-lane.js';

const wanted = process.env.REKINDLE_FAULT_CASES;
const all = process.env.REKINDLE_FAULTS === 'all';
const CASE_TIMEOUT_MS = 240_000;

const crashes = CASES.filter(
  ({ row, kind }) => row.at === 'coordinator' && kind === 'crash' && row.elsewhere === undefined,
);
const chosen = crashes.filter(({ row }) =>
  wanted !== undefined ? row.name.includes(wanted) : all || row.short.includes('crash'),
);

test('a standby finishes what a leader has begun', { skip: withoutEtcd }, async (t) => {
  assert.ok(chosen.length > 0 || wanted !== undefined, 'some cases are short');
  const lane = new FaultLane({ standby: true });
  try {
    for (const each of chosen) {
      await t.test(each.row.name, { timeout: CASE_TIMEOUT_MS }, () => lane.play(each));
    }
  } finally {
    await lane.close();
  }
});

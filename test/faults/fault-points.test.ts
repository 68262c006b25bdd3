/**
 * Plays the cases of the catalogue with real processes: `npm test` those that are marked short,
 * `npm run test:faults` (REKINDLE_FAULTS=all) every one. REKINDLE_FAULT_CASES=word,word plays those
 * whose name contains one of the words.
 *
 * Several clusters work at the same time, since most cases wait for time-outs.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CASES, type Case } from './catalogue.js';
import { FaultLane } from './fault-lane.js';

const wanted = process.env.REKINDLE_FAULT_CASES?.split(',');
const [slice = 0, slices = 1] = (process.env.REKINDLE_FAULT_SLICE ?? '0/1').split('/').map(Number);
const all = process.env.REKINDLE_FAULTS === 'all';
const lanesMax = Number(process.env.REKINDLE_FAULT_LANES ?? (all ? 4 : 1));
const CASE_TIMEOUT_MS = 240_000;

const title = ({ row, fault }: Case): string => `${row.name}=${fault}`;
const chosen = CASES.filter(({ row }) => row.elsewhere === undefined).filter((each) =>
  wanted !== undefined
    ? wanted.some((word) => title(each).includes(word))
    : all || each.row.short.includes(each.kind),
).filter((_, index) => index % slices === slice);

test('faults at the steps of all protocols', { concurrency: lanesMax }, async (t) => {
  assert.ok(chosen.length > 0, `no case is called ${wanted?.join(', ')}`);
  const lanes = Array.from({ length: Math.min(lanesMax, chosen.length) }, () => new FaultLane());
  const free = [...lanes];
  await Promise.all(
    chosen.map((each) =>
      t.test(title(each), { timeout: CASE_TIMEOUT_MS }, async () => {
        const lane = free.pop();
        assert.ok(lane !== undefined, 'as many lanes as cases at once');
        try {
          await lane.play(each);
        } finally {
          free.push(lane);
        }
      }),
    ),
  );
  await Promise.all(lanes.map((lane) => lane.close()));
});

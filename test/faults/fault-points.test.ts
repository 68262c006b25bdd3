/**
 * Plays the cases of the catalogue with real processes: `npm test` those that are marked short,
 * `npm run test:faults` (REKINDLE_FAULTS=all) every one. REKINDLE_FAULT_CASES=word,word plays those
 * whose name contains one of the words, REKINDLE_FAULT_SLICE=0/9 every ninth.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CASES } from './catalogue.js';
import { chosenOf, lanes, play } from './play.js';

test('faults at the steps of all protocols', { concurrency: lanes }, (t) => {
  const cases = chosenOf(CASES);
  assert.ok(cases.length > 0, 'no case has such a name');
  return play(t, cases, { standby: false });
});

/**
 * Random schedules of faults: one in `npm test`, ten in `npm run test:faults`, of a fixed first
 * seed unless REKINDLE_FAULTS_SEED gives another; `rekindle bench faults` plays as many as one
 * likes. Parts of the network are cut off where the machine allows it.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runFaults } from '../../bench/faults.js';

const all = process.env.REKINDLE_FAULTS === 'all';
const schedules = all ? 10 : 1;
const seed = Number(process.env.REKINDLE_FAULTS_SEED ?? 200);

test('random faults lose nothing', { timeout: 180_000 * schedules }, async () => {
  const result = await runFaults({
    quick: !all,
    schedules,
    seed,
    servers: 5,
    durability: 'fsync',
    memoryBytes: 128 * 2 ** 20,
    disk: true,
    network: all,
  });
  assert.ok(result.passed, result.text);
  const acknowledged = result.metrics.find(({ name }) => name === 'acknowledged writes');
  assert.ok((acknowledged?.value ?? 0) > 0, 'something was written');
});

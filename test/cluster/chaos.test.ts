/**
 * Numbered writers under random kills: nothing acknowledged is lost, goes backwards or is torn.
 * REKINDLE_CHAOS_KILLS and REKINDLE_CHAOS_SEED change the run; the seed of a failure is printed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runChaos } from '../../bench/chaos.js';

const kills = Number(process.env.REKINDLE_CHAOS_KILLS ?? 8);
const seed = process.env.REKINDLE_CHAOS_SEED;

test(`no acknowledged write is lost in ${kills} kills`, { timeout: 60_000 * kills }, async () => {
  const result = await runChaos({
    quick: true,
    kills,
    seed: seed === undefined ? undefined : Number(seed),
    servers: 5,
    durability: 'fsync',
    memoryBytes: 128 * 2 ** 20,
    downAtOnce: 1,
  });
  assert.ok(
    result.passed,
    `${result.text}\nas a test: REKINDLE_CHAOS_KILLS=${kills} ` +
      `REKINDLE_CHAOS_SEED=${result.parameters.seed} npm test -- chaos`,
  );
  const acknowledged = result.metrics.find(({ name }) => name === 'acknowledged writes');
  assert.ok((acknowledged?.value ?? 0) > 0, 'something was written');
});

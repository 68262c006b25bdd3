/**
 * Random runs of several coordinators with everything that they decide and do, against servers,
 * network and storage that are late, forgetful and mortal (docs/coordinator.md, "Simulation").
 *
 * `REKINDLE_SIM_RUNS` and `REKINDLE_SIM_SEED` prolong and repeat them; `REKINDLE_SIM_LOG=1` prints
 * what the coordinators log.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { asRekindleError } from '../../src/rpc/errors.js';
import { conformance } from '../cluster/storage-conformance.js';
import { type Outcome, SimulatedCluster } from './simulated-cluster.js';
import { SimulatedStorage, SimulatedStore } from './simulated-storage.js';
import { SimulatedProcess, SimulatedTime } from './simulated-time.js';

const RUNS = Number(process.env.REKINDLE_SIM_RUNS ?? 60);
const SEED = Number(process.env.REKINDLE_SIM_SEED ?? 1);

async function play(seed: number): Promise<Outcome> {
  try {
    return await new SimulatedCluster(seed).play();
  } catch (cause) {
    const repeat = `REKINDLE_SIM_SEED=${seed} REKINDLE_SIM_RUNS=1 npm run test:simulation`;
    const reason = asRekindleError(cause).message;
    throw new Error(`run ${seed} failed: ${reason}\nagain: ${repeat}`, { cause });
  }
}

test(`${RUNS} random runs with several leaders from seed ${SEED}`, async (context) => {
  const total: Partial<Outcome> = {};
  for (let seed = SEED; seed < SEED + RUNS; seed++) {
    const outcome = await play(seed);
    for (const [key, value] of Object.entries(outcome) as [keyof Outcome, number][]) {
      total[key] = (total[key] ?? 0) + value;
    }
  }
  context.diagnostic(JSON.stringify(total));
  const never = Object.entries(total).filter(([, times]) => times === 0);
  if (RUNS >= 60) assert.deepEqual(never, [], 'what never happened was not tested');
});

test('a run is repeated by its seed', async () => {
  const once = await play(7);
  assert.deepEqual(await play(7), once);
});

conformance('simulated storage', false, async () => {
  const time = new SimulatedTime(1);
  const store = new SimulatedStore();
  const open = (): SimulatedStorage => {
    const faults = { delayMs: 1, lost: 0.2, unknown: 0 };
    return new SimulatedStorage(store, new SimulatedProcess(time, 'a'), faults);
  };
  let running = true;
  const drive = async (): Promise<void> => {
    while (running) {
      await time.run(time.nowMs + 100);
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  const driven = drive();
  return {
    storage: open(),
    again: async () => open(),
    close: async () => {
      running = false;
      await driven;
    },
  };
});

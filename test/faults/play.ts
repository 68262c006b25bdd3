/**
 * Plays cases side by side, each on a lane of its own kind (fault-lane.ts). Rule: no more lanes
 * than processors. A case mostly waits, but the load and five servers of a lane take half of one,
 * and when there is none left recoveries run into time-outs and start over.
 */
import { availableParallelism } from 'node:os';
import type { TestContext } from 'node:test';
import type { Case } from './catalogue.js';
import { FaultLane } from './fault-lane.js';

const all = process.env.REKINDLE_FAULTS === 'all';
const wanted = process.env.REKINDLE_FAULT_CASES?.split(',');
/** `2/9`: every ninth case, beginning with the third. */
const [slice = 0, slices = 1] = (process.env.REKINDLE_FAULT_SLICE ?? '0/1').split('/').map(Number);
export const lanes = all ? availableParallelism() : 1;
const CASE_TIMEOUT_MS = 240_000;

const titleOf = ({ row, fault }: Case): string => `${row.name}=${fault}`;

/** Those that the environment asks for, by default those that are marked short. */
export function chosenOf(cases: readonly Case[]): Case[] {
  return cases
    .filter(({ row }) => row.elsewhere === undefined)
    .filter((each) =>
      wanted !== undefined
        ? wanted.some((word) => titleOf(each).includes(word))
        : all || each.row.short.includes(each.kind),
    )
    .filter((_, index) => index % slices === slice);
}

export async function play(
  t: TestContext,
  cases: readonly Case[],
  options: { standby: boolean },
): Promise<void> {
  const queue = [...cases];
  const playAll = async (lane: FaultLane): Promise<void> => {
    for (let each = queue.shift(); each !== undefined; each = queue.shift()) {
      const next = each;
      await t.test(titleOf(next), { timeout: CASE_TIMEOUT_MS }, () => lane.play(next));
    }
    await lane.close();
  };
  const count = Math.min(lanes, cases.length);
  await Promise.all(Array.from({ length: count }, () => playAll(new FaultLane(options))));
}

/**
 * Counts the messages whose handling held the event loop up for more than a millisecond, by RPC:
 * everything else the process does waited meanwhile. What a handler leaves to threads, or to a
 * later turn, is not in it; what others took from the processor meanwhile is.
 */
import { rpcByOpcode } from './table.js';

const HELD_UP_MS = 1;

export class HandlerWatchdog {
  readonly #byOpcode = new Map<number, { count: number; longestMs: number }>();

  note(opcode: number, tookMs: number): void {
    if (tookMs <= HELD_UP_MS) return;
    const { count, longestMs } = this.#byOpcode.get(opcode) ?? { count: 0, longestMs: 0 };
    const longest = Math.max(longestMs, tookMs);
    this.#byOpcode.set(opcode, { count: count + 1, longestMs: longest });
  }

  stats(): Record<string, number> {
    const held = [...this.#byOpcode.values()];
    const stats: Record<string, number> = {
      handlersOver1Ms: held.reduce((sum, { count }) => sum + count, 0),
      handlerLongestMs: Math.max(0, ...held.map(({ longestMs }) => longestMs)),
    };
    for (const [opcode, { count, longestMs }] of this.#byOpcode) {
      const name = rpcByOpcode(opcode) ?? opcode;
      stats[`handlersOver1Ms.${name}`] = count;
      stats[`handlerLongestMs.${name}`] = longestMs;
    }
    return stats;
  }
}

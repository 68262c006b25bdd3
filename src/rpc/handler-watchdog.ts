/**
 * Counts the messages whose handling held the event loop up for more than a millisecond, by RPC:
 * everything else the process does waited meanwhile. What a handler leaves to threads, or to a
 * later turn, is not in it.
 */
import { rpcByOpcode } from './table.js';

const HELD_UP_MS = 1;

export class HandlerWatchdog {
  readonly #countByOpcode = new Map<number, number>();
  #longestMs = 0;

  note(opcode: number, tookMs: number): void {
    if (tookMs <= HELD_UP_MS) return;
    this.#countByOpcode.set(opcode, (this.#countByOpcode.get(opcode) ?? 0) + 1);
    this.#longestMs = Math.max(this.#longestMs, tookMs);
  }

  stats(): Record<string, number> {
    const counts = [...this.#countByOpcode];
    return {
      handlersOver1Ms: counts.reduce((sum, [, count]) => sum + count, 0),
      handlerLongestMs: this.#longestMs,
      ...Object.fromEntries(
        counts.map(([opcode, count]) => [
          `handlersOver1Ms.${rpcByOpcode(opcode) ?? opcode}`,
          count,
        ]),
      ),
    };
  }
}

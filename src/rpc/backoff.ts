/**
 * Exponential backoff with jitter, as a function of the attempt: the random part is handed in, so
 * that state machines stay without chance of their own.
 */

/**
 * Delay before attempt number `attempt` (0: the first retry): doubles from `minMs` up to `maxMs`;
 * `random` in [0, 1) takes away up to half of it.
 */
export function backoffMs(attempt: number, minMs: number, maxMs: number, random: number): number {
  const full = Math.min(maxMs, minMs * 2 ** Math.min(attempt, 30));
  return full * (1 - random / 2);
}

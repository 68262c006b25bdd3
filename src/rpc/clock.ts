/**
 * Time and chance, given to the runtimes around the decisions, so that a simulation can play a
 * whole coordinator faster than time goes, and the same way again (test/simulation).
 */
export interface Clock {
  /** ms that never go back; comparable only with those of the same process. */
  monotonicMs(): number;
  /** ms since 1970. */
  now(): number;
  /** Returns what cancels it. */
  after(ms: number, action: () => void): () => void;
  /** From 0 to below 1. */
  random(): number;
}

export const systemClock: Clock = {
  monotonicMs: () => performance.now(),
  now: () => Date.now(),
  after: (ms, action) => {
    const timer = setTimeout(action, ms);
    return () => clearTimeout(timer);
  },
  random: Math.random,
};

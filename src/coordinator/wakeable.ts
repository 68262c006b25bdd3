/**
 * The pause between two turns of a loop that somebody else may cut short: when what it waits for
 * has changed. It ends with the coordinator's timers.
 */
import type { CoordinatorContext } from './context.js';

/** A loop that pauses here; `wake` ends its present pause, null while there is none. */
export interface Wakeable {
  wake: (() => void) | null;
}

export function pauseUntilWoken(
  context: CoordinatorContext,
  loop: Wakeable,
  delayMs: number,
): Promise<void> {
  return new Promise((resolve) => {
    const cancel = context.after(delayMs, () => end());
    const end = (): void => {
      cancel();
      loop.wake = null;
      resolve();
    };
    loop.wake = end;
  });
}

/**
 * Named places at which a test may kill the process: `REKINDLE_FAULT="create-2=crash"` ends it with
 * SIGKILL at its first arrival there, so nothing is flushed, closed or said good-bye to.
 *
 * Names are numbered in the order in which an operation passes them. Without the variable a fault
 * point costs one comparison.
 */

export type FaultPoint = (name: string) => Promise<void> | void;

/** Parses `name=crash[,name=crash…]`; throws on an action that it does not know. */
export function parseFaults(text: string): ReadonlySet<string> {
  const names = new Set<string>();
  for (const part of text.split(',')) {
    const [name, action] = part.trim().split('=');
    if (!name || action !== 'crash') {
      throw new Error(`REKINDLE_FAULT: expected name=crash, found "${part}"`);
    }
    names.add(name);
  }
  return names;
}

const text = process.env.REKINDLE_FAULT;
const armed = text ? parseFaults(text) : null;

/** Kills the process if this name is armed. */
export const faultPoint: FaultPoint = (name) => {
  if (armed === null || !armed.has(name)) return;
  process.kill(process.pid, 'SIGKILL');
  // The signal may be delivered a moment later: nothing may happen in between.
  return new Promise<void>(() => undefined);
};

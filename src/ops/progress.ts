/**
 * A progress bar for work that takes a while. Drawn only on a terminal: in pipes and logs there are
 * no more than the notes of long steps, on stderr, so that output stays readable and parseable.
 */
import { SingleBar } from 'cli-progress';

export interface Progress {
  /** `note`: what a log is to keep of this step if the run does not live to its result. */
  advance(count: number, note?: string): void;
  stop(): void;
}

const notes: Progress = {
  advance: (_count, note) => {
    if (note !== undefined) process.stderr.write(`${note}\n`);
  },
  stop: () => undefined,
};

export function startProgress(label: string, total: number, unit: string): Progress {
  if (!process.stderr.isTTY) return notes;
  const bar = new SingleBar({
    format: `  ${label} [{bar}] {percentage}%  {value}/{total} ${unit}`,
    stream: process.stderr,
    clearOnComplete: true,
    hideCursor: true,
    fps: 10,
  });
  bar.start(total, 0);
  return { advance: (count) => bar.increment(count), stop: () => bar.stop() };
}

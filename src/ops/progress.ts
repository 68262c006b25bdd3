/**
 * A progress bar for work that takes a while. Drawn only on a terminal: in pipes and logs there is
 * nothing, so that output stays readable and parseable.
 */
import { SingleBar } from 'cli-progress';

export interface Progress {
  advance(count: number): void;
  stop(): void;
}

const silent: Progress = { advance: () => undefined, stop: () => undefined };

export function startProgress(label: string, total: number, unit: string): Progress {
  if (!process.stderr.isTTY) return silent;
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

/** `rekindle bench link`: a command of its own file, since it starts no cluster. */
import { Command } from 'commander';
import { runLinkBench } from '../../bench/link.js';
import type { BenchResult } from '../../bench/report.js';
import { run } from './command-runner.js';

/** `report` prints the result, writes it to the file, and says with what code to exit. */
export function linkCommand(
  report: (json: string | undefined, bench: Promise<BenchResult>) => Promise<number>,
): Command {
  return new Command('link')
    .description('bytes and messages a second from a master to a backup, without a cluster')
    .option('--quick', 'at most a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .action((options: { quick?: boolean; json?: string }) =>
      run(() => report(options.json, runLinkBench({ quick: options.quick ?? false }))),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench link --quick
  $ rekindle bench link --json link.json

Keep the machine quiet: other load makes the figures worse.`,
    );
}

/** `rekindle bench link`: a command of its own file, since it starts no cluster. */
import { Command } from 'commander';
import { runLinkBench } from '../../bench/link.js';
import { type ReportOptions, report, withReport } from './bench-options.js';
import { run } from './command-runner.js';

export function linkCommand(): Command {
  return withReport(new Command('link'))
    .description('bytes and messages a second from a master to a backup, without a cluster')
    .action((options: ReportOptions) =>
      run(() => report(options, runLinkBench({ quick: options.quick ?? false }))),
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

/**
 * `rekindle bench`: the benchmarks of bench/ as commands. Each but `core`, `link` and `placement`
 * starts a cluster of its own on this machine; all print a short table, and write the figures as
 * JSON with --json FILE.
 *
 * Rule: a benchmark that is interrupted leaves nothing behind (cluster/left-behind.ts): its
 * processes, also those that stand still, and its folders go with it.
 */
import { constants } from 'node:os';
import { Command } from 'commander';
import {
  chaosCommand,
  coldStartCommand,
  detectionCommand,
  failoverCommand,
  faultsCommand,
  migrationCommand,
  placementCommand,
  recoveryCommand,
} from './bench-faults.js';
import { linkCommand } from './bench-link.js';
import {
  connectionsCommand,
  coreCommand,
  durableCommand,
  latencyCommand,
  soakCommand,
  throughputCommand,
  ycsbCommand,
} from './bench-performance.js';

/** What has to go goes at the exit; its code is that of a shell: 128 and the signal's number. */
function exitAtSignals(): void {
  for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      process.stderr.write(`rekindle: ended by ${signal}: its processes and folders are removed\n`);
      process.exit(128 + constants.signals[signal]);
    });
  }
}

export function benchCommand(): Command {
  return new Command('bench')
    .description('measure throughput, latency, recovery, the core; check under chaos')
    .hook('preAction', exitAtSignals)
    .addCommand(throughputCommand())
    .addCommand(durableCommand())
    .addCommand(connectionsCommand())
    .addCommand(linkCommand())
    .addCommand(latencyCommand())
    .addCommand(ycsbCommand())
    .addCommand(soakCommand())
    .addCommand(recoveryCommand())
    .addCommand(detectionCommand())
    .addCommand(failoverCommand())
    .addCommand(migrationCommand())
    .addCommand(chaosCommand())
    .addCommand(coldStartCommand())
    .addCommand(faultsCommand())
    .addCommand(coreCommand())
    .addCommand(placementCommand())
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench recovery --quick
  $ rekindle bench throughput --quick --peer redis

Benchmarks start clusters of their own; they need no running one.`,
    );
}

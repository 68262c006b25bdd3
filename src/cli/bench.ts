/**
 * `rekindle bench`: the benchmarks of bench/ as commands. Each but `core` and `placement`
 * starts a cluster of its own on this machine; all print a short table, and write the figures as
 * JSON with --json FILE.
 */
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
import {
  connectionsCommand,
  coreCommand,
  durableCommand,
  latencyCommand,
  soakCommand,
  throughputCommand,
  ycsbCommand,
} from './bench-performance.js';

export function benchCommand(): Command {
  return new Command('bench')
    .description('measure throughput, latency, recovery, the core; check under chaos')
    .addCommand(throughputCommand())
    .addCommand(durableCommand())
    .addCommand(connectionsCommand())
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

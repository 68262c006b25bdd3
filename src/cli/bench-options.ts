/**
 * What the commands of `rekindle bench` share: their common options, and what becomes of a result.
 * The commands are in bench-performance.ts and bench-faults.ts.
 */
import { Command } from 'commander';
import type { PeerName } from '../../bench/peers.js';
import { type BenchResult, writeReport } from '../../bench/report.js';
import type { Durability } from '../rpc/messages.js';
import { EXIT_NO, EXIT_OK, printLine } from './command-runner.js';
import {
  integer,
  option,
  parseDurability,
  parseMemoryBytes,
  parsePeers,
} from './option-parsers.js';

export interface CommonOptions {
  quick?: boolean;
  json?: string;
  servers: number;
  memory: number;
  durability: Durability;
}

export async function report(
  json: string | undefined,
  bench: Promise<BenchResult>,
): Promise<number> {
  const result = await bench;
  await printLine(result.text);
  if (json !== undefined) writeReport(json, result);
  return result.passed ? EXIT_OK : EXIT_NO;
}

/** Options of every benchmark. `memory` is the default of --memory. */
export function subcommand(
  name: string,
  description: string,
  memory: string | undefined,
  servers = 5,
): Command {
  const command = new Command(name)
    .description(description)
    .option('--quick', 'at most about a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .addOption(
      option('--servers <n>', 'servers to start', 'SERVERS', integer(4, 64)).default(servers),
    );
  if (memory === undefined) return command;
  return command.addOption(
    option('--memory <size>', 'log memory per server', 'MEMORY', parseMemoryBytes).default(
      parseMemoryBytes(memory),
      memory,
    ),
  );
}

export function withDurability(command: Command): Command {
  return command.addOption(
    option('--durability <mode>', 'fsync or replicated', 'DURABILITY', parseDurability).default(
      'fsync',
    ),
  );
}

export interface PeerOptions extends CommonOptions {
  peer?: PeerName[];
}

/** What `--peer` needs. */
export const PEERS_HELP = `--peer needs Debian's redis-server, valkey-server, memcached or etcd-server; a source checkout
needs cargo for the load generator.`;

export function withPeers(command: Command): Command {
  const description =
    'measure a peer on the same work: redis, valkey, memcached or etcd; may be given again';
  return command.option('--peer <name>', description, parsePeers);
}

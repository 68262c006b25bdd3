/**
 * What the commands of `rekindle bench` share: their common options, and what becomes of a result.
 * The commands are in bench-performance.ts and bench-faults.ts.
 */
import { writeFileSync } from 'node:fs';
import { Command } from 'commander';
import { htmlReport } from '../../bench/html-report.js';
import type { PeerName } from '../../bench/peers.js';
import { type BenchResult, jsonReport, machineLine, reportOf } from '../../bench/report.js';
import type { Durability } from '../rpc/messages.js';
import { EXIT_NO, EXIT_OK, printLine } from './command-runner.js';
import {
  integer,
  option,
  parseDurability,
  parseMemoryBytes,
  parsePeers,
} from './option-parsers.js';

export interface CommonOptions extends ReportOptions {
  servers: number;
  memory: number;
  durability: Durability;
}

export interface ReportOptions {
  quick?: boolean;
  json?: string;
  html?: string;
}

/** Options of every benchmark, and what `report` takes. */
export function withReport(command: Command): Command {
  return command
    .option('--quick', 'at most about a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .option('--html <file>', 'the same as a page with charts');
}

export async function report(
  { json, html }: ReportOptions,
  bench: Promise<BenchResult>,
): Promise<number> {
  const result = await bench;
  await printLine(result.text);
  const written = reportOf(result);
  if (json !== undefined) writeFileSync(json, jsonReport(written));
  if (html !== undefined) writeFileSync(html, htmlReport(written, result.text, machineLine()));
  return result.passed ? EXIT_OK : EXIT_NO;
}

/** A benchmark of a cluster. `memory` is the default of --memory. */
export function subcommand(
  name: string,
  description: string,
  memory: string | undefined,
  servers = 5,
): Command {
  const command = withReport(new Command(name))
    .description(description)
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
export const PEERS_HELP =
  "--peer needs Debian's redis-server, valkey-server, memcached or etcd-server.";

export function withPeers(command: Command): Command {
  const description =
    'measure a peer on the same work: redis, valkey, memcached or etcd; may be given again';
  return command.option('--peer <name>', description, parsePeers);
}

/**
 * `rekindle dev`: a cluster on this machine until Ctrl-C. With --data everything is found again at
 * the next start. Processes that die are reported, not restarted: seeing what the others do then
 * is what it is for.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from 'commander';
import { LocalCluster } from '../cluster/local-cluster.js';
import type { ProcessExit } from '../cluster/managed-process.js';
import { textTable } from '../ops/text-table.js';
import type { Durability } from '../rpc/messages.js';
import { EXIT_OK, printJson, printLine, run, untilSignal } from './command-runner.js';
import {
  COORDINATOR_PORT_DEFAULT,
  integer,
  jsonFlag,
  option,
  parseDurability,
  parseMemoryBytes,
} from './option-parsers.js';

interface DevOptions {
  data?: string;
  servers?: number;
  replicas?: number;
  durability?: Durability;
  memory?: number;
  port?: number;
  json?: boolean;
}

export function reportExit({ name, code, signal }: ProcessExit): void {
  process.stderr.write(`rekindle: ${name} has died (${signal ?? `exit code ${code}`})\n`);
}

async function develop(options: DevOptions): Promise<number> {
  const signalled = untilSignal();
  // A folder keeps its port; only a new cluster asks for the usual one.
  const known = options.data !== undefined && existsSync(join(options.data, 'cluster.json'));
  const port = options.port ?? (known ? undefined : COORDINATOR_PORT_DEFAULT);
  const cluster = await LocalCluster.create({
    onUnexpectedExit: reportExit,
    ...(options.data === undefined ? {} : { dataDirectory: options.data }),
    ...(options.servers === undefined ? {} : { servers: options.servers }),
    ...(options.replicas === undefined ? {} : { replicas: options.replicas }),
    ...(options.durability === undefined ? {} : { durability: options.durability }),
    ...(options.memory === undefined ? {} : { memoryBytes: options.memory }),
    ...(port === undefined ? {} : { coordinatorPort: port }),
  });
  try {
    const first = await Promise.race([cluster.startAll(), signalled]);
    if (first === undefined) {
      await announce(cluster, options);
      await signalled;
    }
  } finally {
    await cluster.stop();
  }
  return EXIT_OK;
}

async function announce(cluster: LocalCluster, options: DevOptions): Promise<void> {
  const { url, dataDirectory, logDirectory } = cluster;
  if (options.json) {
    await printJson({ url, dataDirectory, logDirectory, processes: cluster.processes() });
    return;
  }
  const rows = cluster.processes().map(({ name, pid, port }) => [name, `${pid}`, `${port}`]);
  await printLine(textTable(['process', 'pid', 'port'], rows));
  await printLine('');
  await printLine(`connection string  ${url}`);
  await printLine(`data               ${dataDirectory}`);
  await printLine(`logs               ${logDirectory}`);
  await printLine(`replicas           ${cluster.replicas}, durability ${cluster.durability}`);
  await printLine('\nCtrl-C stops the cluster.');
}

export function devCommand(): Command {
  return new Command('dev')
    .description('run a cluster on this machine')
    .addOption(option('--data <dir>', 'keep the data here (default: temporary)', 'DATA'))
    .addOption(option('--servers <n>', 'servers (default: 4)', 'SERVERS', integer(1, 64)))
    .addOption(option('--replicas <n>', 'replicas (default: 3)', 'REPLICAS', integer(0, 8)))
    .addOption(
      option('--durability <mode>', 'fsync (default) or replicated', 'DURABILITY', parseDurability),
    )
    .addOption(option('--memory <size>', 'per server (default: 256MB)', 'MEMORY', parseMemoryBytes))
    .addOption(
      option('--port <n>', "coordinator's port (default: 7411)", 'PORT', integer(1, 65_535)),
    )
    .option(...jsonFlag)
    .action((options: DevOptions) => run(() => develop(options)))
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle dev                             temporary; gone after Ctrl-C
  $ rekindle dev --data ./data               found again at the next start
  $ rekindle dev --servers 5 --memory 1GB

Replicas lie on other processes of this machine. Options that are not given are those that the
data folder was made with.`,
    );
}

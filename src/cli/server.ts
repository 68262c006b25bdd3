/** `rekindle server`: one storage server, master and backup in one process. */
import { Command } from 'commander';
import {
  migrationBytesPerSecondDefault,
  scrubBytesPerSecondDefault,
  startServer,
} from '../cluster/server.js';
import {
  option,
  parseBytes,
  parseCoordinatorPlace,
  parseFactor,
  parseMemoryBytes,
} from './option-parsers.js';
import {
  runService,
  type ServiceOptions,
  serve,
  watchParent,
  withServiceOptions,
} from './service-lifetime.js';

interface ServerCommandOptions extends ServiceOptions {
  data: string;
  coordinator: string;
  memory: number;
  diskExpansion: number;
  hostLabel?: string;
  rack?: string;
  scrubRate: number;
  migrationRate: number;
}

async function serveData(options: ServerCommandOptions): Promise<number> {
  watchParent(options);
  const server = await startServer({
    coordinator: options.coordinator,
    dataDirectory: options.data,
    host: options.host,
    port: options.port,
    memoryBytes: options.memory,
    diskExpansionFactor: options.diskExpansion,
    insecure: options.insecure ?? false,
    ...(options.hostLabel === undefined ? {} : { hostLabel: options.hostLabel }),
    ...(options.rack === undefined ? {} : { rack: options.rack }),
    scrubBytesPerSecond: options.scrubRate,
    migrationBytesPerSecond: options.migrationRate,
  });
  const stop = (): Promise<void> => server.stop();
  const { port, serverId } = server;
  return serve(options, { name: `server ${serverId}`, port, serverId, stop });
}

export function serverCommand(): Command {
  const command = new Command('server').description('run a storage server (master and backup)');
  return withServiceOptions(command, 0)
    .addOption(
      option(
        '--coordinator <host:port,…>',
        'where to enlist: all coordinators, or rekindle+srv://name',
        'COORDINATOR',
        parseCoordinatorPlace,
      ).default('127.0.0.1:7411'),
    )
    .addOption(
      option('--memory <size>', 'log memory', 'MEMORY', parseMemoryBytes).default(
        256 * 2 ** 20,
        '256MB',
      ),
    )
    .addOption(
      option(
        '--disk-expansion <factor>',
        'segments of the log on disk, for each that fits into memory',
        'DISK_EXPANSION',
        parseFactor,
      ).default(2),
    )
    .addOption(
      option('--host-label <name>', 'placement label; default: the host name', 'HOST_LABEL'),
    )
    .addOption(option('--rack <name>', 'placement label: replicas lie in two racks', 'RACK'))
    .addOption(
      option(
        '--scrub-rate <size>',
        'closed replicas verified a second; 0: none',
        'SCRUB_RATE',
        parseBytes,
      ).default(scrubBytesPerSecondDefault, '1MB'),
    )
    .addOption(
      option(
        '--migration-rate <size>',
        'bytes a second of tablets that move here; 0: as fast as they can',
        'MIGRATION_RATE',
        parseBytes,
      ).default(migrationBytesPerSecondDefault, '32MB'),
    )
    .action((options: ServerCommandOptions) => runService(() => serveData(options)))
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle server --coordinator 127.0.0.1:7411 --data /var/lib/rekindle/1 --memory 4GB
  $ rekindle server --coordinator 10.0.0.1:7411,10.0.0.2:7411 --data /srv/1
  $ REKINDLE_COORDINATOR=10.0.0.1:7411 rekindle server --data /srv/1 --host 10.0.0.2 --insecure`,
    );
}

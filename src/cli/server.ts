/** `rekindle server`: one storage server, master and backup in one process. */
import { Command } from 'commander';
import { startServer } from '../cluster/server.js';
import { flag, integer, option, parseAddress, parseMemoryBytes } from './option-parsers.js';
import {
  exitWithParentOption,
  type LifetimeOptions,
  readyJsonOption,
  runService,
  serve,
  watchParent,
} from './service-lifetime.js';

interface ServerCommandOptions extends LifetimeOptions {
  coordinator: string;
  data: string;
  host: string;
  port: number;
  memory: number;
  hostLabel?: string;
  insecure?: boolean;
}

async function serveData(options: ServerCommandOptions): Promise<number> {
  watchParent(options);
  const server = await startServer({
    coordinator: options.coordinator,
    dataDirectory: options.data,
    host: options.host,
    port: options.port,
    memoryBytes: options.memory,
    insecure: options.insecure ?? false,
    ...(options.hostLabel === undefined ? {} : { hostLabel: options.hostLabel }),
  });
  const stop = (): Promise<void> => server.stop();
  const { port, serverId } = server;
  return serve(options, { name: `server ${serverId}`, port, serverId, stop });
}

export function serverCommand(): Command {
  return new Command('server')
    .description('run a storage server (master and backup)')
    .addOption(
      option('--coordinator <host:port>', 'where to enlist', 'COORDINATOR', parseAddress).default(
        '127.0.0.1:7411',
      ),
    )
    .addOption(option('--data <dir>', 'its data folder', 'DATA').makeOptionMandatory())
    .addOption(option('--host <address>', 'address to listen on', 'HOST').default('127.0.0.1'))
    .addOption(
      option('--port <n>', 'port to listen on, 0: any', 'PORT', integer(0, 65_535)).default(0),
    )
    .addOption(
      option('--memory <size>', 'log memory', 'MEMORY', parseMemoryBytes).default(
        256 * 2 ** 20,
        '256MB',
      ),
    )
    .addOption(
      option('--host-label <name>', 'placement label; default: the host name', 'HOST_LABEL'),
    )
    .addOption(flag('--insecure', 'listen beyond loopback without authentication', 'INSECURE'))
    .addOption(readyJsonOption())
    .addOption(exitWithParentOption())
    .action((options: ServerCommandOptions) => runService(() => serveData(options)))
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle server --coordinator 127.0.0.1:7411 --data /var/lib/rekindle/1 --memory 4GB
  $ REKINDLE_COORDINATOR=10.0.0.1:7411 rekindle server --data /srv/1 --host 10.0.0.2 --insecure`,
    );
}

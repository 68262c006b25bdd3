/** `rekindle coordinator`: the process that owns membership and the tablet map. */
import { Command } from 'commander';
import { startCoordinator } from '../cluster/coordinator.js';
import type { Durability } from '../rpc/messages.js';
import { EXIT_FAILED } from './command-runner.js';
import {
  COORDINATOR_PORT_DEFAULT,
  clusterOptions,
  flag,
  option,
  parseAddress,
} from './option-parsers.js';
import {
  runService,
  type ServiceOptions,
  serve,
  watchParent,
  withServiceOptions,
} from './service-lifetime.js';

interface CoordinatorCommandOptions extends ServiceOptions {
  replicas?: number;
  durability?: Durability;
  allowSameHost?: boolean;
  scatterWidth?: number;
  restore?: string;
  balance?: boolean;
  storage?: string;
  advertise?: string;
}

async function coordinate(options: CoordinatorCommandOptions): Promise<number> {
  watchParent(options);
  const coordinator = await startCoordinator({
    ...(options.data === undefined ? {} : { dataDirectory: options.data }),
    ...(options.storage === undefined ? {} : { storage: options.storage }),
    ...(options.advertise === undefined ? {} : { advertise: options.advertise }),
    host: options.host,
    port: options.port,
    // Left out means as stored: a restart needs none of them.
    ...(options.replicas === undefined ? {} : { replicas: options.replicas }),
    ...(options.durability === undefined ? {} : { durability: options.durability }),
    ...(options.allowSameHost === undefined ? {} : { allowSameHost: options.allowSameHost }),
    ...(options.scatterWidth === undefined ? {} : { scatterWidth: options.scatterWidth }),
    insecure: options.insecure ?? false,
    balance: options.balance ?? false,
    ...(options.restore === undefined ? {} : { restoreFile: options.restore }),
    // It no longer knows what is true: whoever supervises it starts one that reads the storage.
    onFatal: () => process.exit(EXIT_FAILED),
  });
  const stop = (): Promise<void> => coordinator.stop();
  const name = coordinator.leads ? 'coordinator' : 'coordinator (standby)';
  return serve(options, { name, port: coordinator.port, serverId: null, stop });
}

export function coordinatorCommand(): Command {
  const command = new Command('coordinator').description('run a coordinator');
  withServiceOptions(command, COORDINATOR_PORT_DEFAULT, 'optional')
    .addOption(
      option(
        '--storage <url>',
        'instead of --data: etcd://host:port,…/prefix, etcds:// with TLS; one leads, others follow',
        'STORAGE',
      ),
    )
    .addOption(
      option(
        '--advertise <host:port>',
        'where others reach it; default: --host and --port',
        'ADVERTISE',
        parseAddress,
      ),
    );
  for (const each of clusterOptions('as stored, or 3')) command.addOption(each);
  return command
    .addOption(flag('--balance', 'move tablets until masters have equal shares', 'BALANCE'))
    .addOption(option('--restore <file>', "start from a server's copy of the state", 'RESTORE'))
    .action((options: CoordinatorCommandOptions) => runService(() => coordinate(options)))
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle coordinator --data /var/lib/rekindle/coordinator
  $ rekindle coordinator --storage etcd://10.0.0.1:2379,10.0.0.2:2379/rekindle --host 10.0.0.1
  $ rekindle coordinator --data /srv/new --restore /srv/server-1/coordinator-state.json

Replicas, durability and --allow-same-host are fixed by \`rekindle init\`, or at the first start of
a cluster; a restart need not repeat them. The storage's URL takes user:password@ and
?ca=FILE&cert=FILE&key=FILE&passwordFile=FILE; REKINDLE_STORAGE keeps it out of the list of
processes.`,
    );
}

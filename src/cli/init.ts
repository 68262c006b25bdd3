/** `rekindle init`: makes a cluster in an empty storage, before its first coordinator runs. */
import { Command } from 'commander';
import { initCluster } from '../cluster/init-cluster.js';
import { createLog } from '../ops/log.js';
import type { Durability } from '../rpc/messages.js';
import { EXIT_OK, printJson, printLine, run } from './command-runner.js';
import { clusterOptions, jsonFlag, option } from './option-parsers.js';

interface InitCommandOptions {
  data?: string;
  storage?: string;
  replicas?: number;
  durability?: Durability;
  allowSameHost?: boolean;
  scatterWidth?: number;
  json?: boolean;
}

async function init(options: InitCommandOptions): Promise<number> {
  const { data, storage, json, ...settings } = options;
  const log = createLog();
  const report = await initCluster(
    {
      ...settings,
      ...(data === undefined ? {} : { dataDirectory: data }),
      ...(storage === undefined ? {} : { storage }),
    },
    (level, message, fields = {}) => log[level](fields, message),
  );
  const { clusterId, replicas, durability } = report;
  if (json) await printJson(report);
  else await printLine(`cluster ${clusterId}: ${replicas} replicas, ${durability}`);
  return EXIT_OK;
}

export function initCommand(): Command {
  const command = new Command('init')
    .description('make a cluster in an empty storage, before its first coordinator runs')
    .addOption(option('--data <dir>', "the coordinator's data folder", 'DATA'))
    .addOption(option('--storage <url>', 'instead of --data: etcd://host:port,…/prefix', 'STORAGE'))
    .option(...jsonFlag)
    .action((options: InitCommandOptions) => run(() => init(options)));
  for (const each of clusterOptions('3')) command.addOption(each);
  return command.addHelpText(
    'after',
    `
Fixes the cluster's id, which every disk will name, and what holds for its whole life: replicas,
durability, --allow-same-host. A storage that holds a cluster is refused and stays as it is. Without
\`init\`, the first coordinator makes the cluster with the options that it is given.

Examples:
  $ rekindle init --data /var/lib/rekindle/coordinator
  $ rekindle init --storage etcd://10.0.0.1:2379,10.0.0.2:2379/rekindle --replicas 2

Exit codes: 0 made, 2 refused.`,
  );
}

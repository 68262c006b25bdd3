/**
 * `rekindle status`: what the coordinator knows and what backups say, for people or as JSON.
 * Exit code 0 if the cluster is healthy, 1 if it is degraded (a server down, a recovery running, a
 * warning), 2 if no coordinator answers.
 */
import { Command } from 'commander';
import { formatBytes, formatCount, formatMs, textTable } from '../ops/text-table.js';
import type {
  BalanceReport,
  ClusterStatus,
  DrainReport,
  MigrationReport,
  RecoveryReport,
} from '../rpc/messages.js';
import {
  askBackups,
  type BackupStatusByServer,
  backupTable,
  backupWarnings,
} from './backup-status.js';
import {
  type ClientOptions,
  EXIT_NO,
  EXIT_OK,
  printJson,
  printLine,
  run,
  withClient,
} from './command-runner.js';
import { drainText } from './drain.js';
import { gapLines, lossText } from './loss-text.js';
import { jsonFlag, timeoutOption, urlOption } from './option-parsers.js';
import { tableRows, tableTitles } from './table.js';

interface StatusOptions extends ClientOptions {
  json?: boolean;
}

const RECOVERIES_SHOWN_MAX = 5;
const LOSSES_SHOWN_MAX = 5;

export function isHealthy(status: ClusterStatus): boolean {
  return (
    status.warnings.length === 0 &&
    status.servers.length > 0 &&
    status.servers.every((server) => server.status === 'up') &&
    status.recoveries.every((recovery) => recovery.state === 'done') &&
    status.tables.every((table) => table.tablets.every((tablet) => tablet.status === 'normal'))
  );
}

function recoveryRow(recovery: RecoveryReport): (string | number)[] {
  return [
    String(recovery.recoveryId),
    String(recovery.crashedServerId),
    recovery.state,
    recovery.partitions.length,
    recovery.segments,
    recovery.objects,
    formatBytes(recovery.bytes),
    formatMs(recovery.totalMs),
    recovery.waitingFor ?? '',
  ];
}

function migrationRow(migration: MigrationReport): (string | number)[] {
  return [
    String(migration.migrationId),
    migration.table,
    `${migration.startSlot}-${migration.endSlot}`,
    String(migration.sourceServerId),
    String(migration.targetServerId),
    migration.state,
    migration.objects,
    formatBytes(migration.bytes),
    migration.reason ?? '',
  ];
}

function drainOf({ drains }: ClusterStatus, serverId: number): DrainReport | undefined {
  return drains.find((each) => each.serverId === serverId);
}

/** Null as long as there is nothing to say. */
function balanceText({ enabled, servers, moves, waitingFor }: BalanceReport): string | null {
  if (!enabled) return null;
  const fills = servers.map(({ fill }) => Math.round(100 * fill));
  const rates = servers.map(({ operationsPerSecond }) => operationsPerSecond);
  const spread = (values: number[], unit: string): string =>
    `${formatCount(Math.min(...values))} to ${formatCount(Math.max(...values))} ${unit}`;
  const loads =
    servers.length === 0
      ? 'loads not known yet'
      : `${spread(fills, '% of memory live')}, ${spread(rates, 'operations/s a server')}`;
  const waits = waitingFor === null ? '' : `, waits for ${waitingFor}`;
  return `balancer: ${loads}, ${moves} tablets moved${waits}`;
}

function leaderText({ leader, term, standbys }: ClusterStatus): string {
  const others = standbys.length === 0 ? 'no standby' : `standbys ${standbys.join(', ')}`;
  return `coordinator ${leader} leads (term ${term}), ${others}`;
}

export function statusText(
  status: ClusterStatus,
  backups: BackupStatusByServer = new Map(),
): string {
  const serverRows = status.servers.map((server) => [
    String(server.serverId),
    server.address,
    server.host,
    server.rack ?? '',
    [server.master ? 'master' : '', server.backup ? 'backup' : ''].filter(Boolean).join('+'),
    drainOf(status, server.serverId)?.state ?? server.status,
    formatBytes(server.memoryBytes),
  ]);
  const parts = [
    `cluster ${status.clusterId}  ${isHealthy(status) ? 'healthy' : 'DEGRADED'}`,
    `replicas ${status.replicas}, durability ${status.durability}, ` +
      `state copies ${status.stateCopies}`,
    leaderText(status),
    '',
    textTable(['server', 'address', 'host', 'rack', 'roles', 'status', 'memory'], serverRows),
  ];
  if (backups.size > 0) parts.push('', backupTable(backups));
  if (status.tables.length > 0) parts.push('', textTable(tableTitles, tableRows(status.tables)));
  const recent = status.recoveries.slice(-RECOVERIES_SHOWN_MAX);
  if (recent.length > 0) {
    const titles = ['recovery', 'server', 'state', 'partitions', 'segments', 'objects'];
    const rest = ['bytes', 'total', 'waits for'];
    parts.push('', textTable([...titles, ...rest], recent.map(recoveryRow)));
  }
  parts.push(...status.recoveries.flatMap(gapLines));
  for (const drain of status.drains) {
    if (drain.state === 'draining') parts.push(`server ${drain.serverId} is ${drainText(drain)}`);
  }
  const balance = balanceText(status.balance);
  if (balance !== null) parts.push(balance);
  const moving = status.migrations.slice(-RECOVERIES_SHOWN_MAX);
  if (moving.length > 0) {
    const titles = [
      'migration',
      'table',
      'slots',
      'from',
      'to',
      'state',
      'objects',
      'bytes',
      'why',
    ];
    parts.push('', textTable(titles, moving.map(migrationRow)));
  }
  const { losses } = status;
  if (losses.length > 0) parts.push('', ...losses.slice(0, LOSSES_SHOWN_MAX).map(lossText));
  if (losses.length > LOSSES_SHOWN_MAX) parts.push(`${losses.length} losses in all (--json)`);
  const { warnings, notes } = status;
  if (warnings.length > 0) parts.push('', ...warnings.map((warning) => `warning: ${warning}`));
  if (notes.length > 0) parts.push('', ...notes.map((note) => `note: ${note}`));
  return parts.join('\n');
}

async function show(options: StatusOptions): Promise<number> {
  return withClient(options, async (client) => {
    const status = await client.status();
    const backups = await askBackups(status.servers);
    status.warnings.push(...backupWarnings(backups));
    const healthy = isHealthy(status);
    if (options.json) await printJson({ healthy, ...status, backups: [...backups.values()] });
    else await printLine(statusText(status, backups));
    return healthy ? EXIT_OK : EXIT_NO;
  });
}

export function statusCommand(): Command {
  return new Command('status')
    .description('show servers, tables, recoveries and warnings')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .action((options: StatusOptions) => run(() => show(options)))
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle status
  $ rekindle status --json | jq .servers
  $ until rekindle status > status.txt; do sleep 1; done

Exit codes: 0 healthy, 1 degraded, 2 no coordinator answers.`,
    );
}

/**
 * `rekindle admin`: what only an operator decides. `accept-loss`, here, lets a recovery go on
 * without segments that are gone for ever; `rebuild` and `rolling-restart` have files of their own.
 *
 * Rule: nothing is given up by default. Without `--segments` the command only shows what is
 * missing, who may have it, and what to type; the list of segments is the confirmation.
 */
import { hostname, userInfo } from 'node:os';
import { Command } from 'commander';
import type { ClusterStatus, RecoveryReport } from '../rpc/messages.js';
import {
  type ClientOptions,
  EXIT_NO,
  EXIT_OK,
  printJson,
  printLine,
  run,
  withClient,
} from './command-runner.js';
import {
  gapLines,
  lossText,
  missingOf,
  parseSegments,
  type SegmentNames,
  segmentsText,
} from './loss-text.js';
import { integer, jsonFlag, timeoutOption, urlOption } from './option-parsers.js';
import { rebuildCommand } from './rebuild.js';
import { rollingRestartCommand } from './rolling-restart.js';

interface AcceptLossOptions extends ClientOptions {
  json?: boolean;
  segments?: SegmentNames;
  reason: string;
  operator?: string;
}

function operatorName(): string {
  return `${userInfo().username}@${hostname()}`;
}

/** The tables of a crashed server: what a loss may concern. */
function tablesOf(status: ClusterStatus, serverId: number): string {
  const owned = status.tables.filter(({ tablets }) =>
    tablets.some((tablet) => tablet.serverId === serverId),
  );
  return owned.map(({ name }) => name).join(', ');
}

function explanation(status: ClusterStatus, recovery: RecoveryReport): string {
  const { crashedServerId } = recovery;
  return [
    ...gapLines(recovery).slice(1),
    `  tables: ${tablesOf(status, crashedServerId) || '-'}`,
    'Bring those servers back with their disks, if there is a way. If there is none:',
    `  rekindle admin accept-loss ${crashedServerId} --segments ` +
      `${segmentsText(missingOf(recovery))} --reason "..."`,
    'Keys whose newest version lay there will show an older one, be absent, or, if they were ' +
      'deleted, be back.',
  ].join('\n');
}

/** Shows what could be given up; gives up nothing. */
async function explain(serverId: number, options: AcceptLossOptions): Promise<number> {
  return withClient(options, async (client) => {
    const status = await client.status();
    const recovery = status.recoveries.find(
      ({ crashedServerId, gap }) => crashedServerId === serverId && gap !== null,
    );
    if (options.json) await printJson({ accepted: null, gap: recovery?.gap ?? null });
    else if (recovery === undefined) await printLine(`no recovery of server ${serverId} waits`);
    else await printLine(explanation(status, recovery));
    return EXIT_NO;
  });
}

async function acceptLoss(serverId: number, options: AcceptLossOptions): Promise<number> {
  const { segments, reason } = options;
  if (segments === undefined) return explain(serverId, options);
  const operator = options.operator ?? operatorName();
  return withClient(options, async (client) => {
    const loss = await client.acceptLoss({ serverId, ...segments, operator, reason });
    if (options.json) await printJson({ accepted: loss });
    else await printLine(lossText(loss));
    return EXIT_OK;
  });
}

export function adminCommand(): Command {
  const accept = new Command('accept-loss')
    .description('let a recovery go on without segments that are gone for ever')
    .argument('<server>', 'id of the crashed server', integer(1, Number.MAX_SAFE_INTEGER))
    .option('--segments <list>', 'what to give up: head,4,9-12', parseSegments)
    .option('--reason <text>', 'kept with the record', '')
    .option('--operator <name>', 'kept with the record (default: user@host)')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .action((serverId: number, options: AcceptLossOptions) =>
      run(() => acceptLoss(serverId, options)),
    )
    .addHelpText(
      'after',
      `
Without --segments it shows what is missing and gives up nothing. Only what is missing now, with
every live backup asked, can be given up. The record stays in \`rekindle status\`.

Examples:
  $ rekindle admin accept-loss 3
  $ rekindle admin accept-loss 3 --segments 4,9-12 --reason "rack 7 burnt"

Exit codes: 0 given up (or was before), 1 nothing was given up, 2 refused.`,
    );
  return new Command('admin')
    .description('decisions that only an operator can take')
    .addCommand(accept)
    .addCommand(rebuildCommand())
    .addCommand(rollingRestartCommand())
    .addHelpText(
      'after',
      '\nExamples:\n  $ rekindle admin accept-loss 3\n  $ rekindle admin rolling-restart',
    );
}

/**
 * `rekindle drain <server>`: empties a server while it serves, so that its process can be stopped
 * with nobody missing it (docs/drain.md). The coordinator does it, and goes on if this command is
 * interrupted; the command asks for it, shows how far it is, and says when it is done.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import type { Client } from '../client/index.js';
import type { DrainReport } from '../rpc/messages.js';
import {
  type ClientOptions,
  EXIT_NO,
  EXIT_OK,
  printJson,
  printLine,
  run,
  withClient,
} from './command-runner.js';
import { integer, jsonFlag, timeoutOption, urlOption } from './option-parsers.js';

const POLL_MS = 200;
/** What it waits for changes many times a second. */
const WAITS_SAID_MS = 5_000;

/** `cancelled`: somebody else has; `gone`: the server has left the cluster meanwhile. */
export type DrainEnd = 'drained' | 'cancelled' | 'gone';

export function drainText({ state, tablets, replicas, waitingFor }: DrainReport): string {
  if (state === 'drained') return 'drained';
  const left = `tablets left: ${tablets}, replicas left: ${replicas ?? 'not counted yet'}`;
  return `draining: ${left}${waitingFor === null ? '' : `, waits for ${waitingFor}`}`;
}

/** Resolves when it is over; `say` hears how far it is, and now and then what it waits for. */
export async function drain(
  client: Client,
  serverId: number,
  say: (text: string) => void,
): Promise<DrainEnd> {
  await client.drainServer(serverId);
  let said = '';
  let leftSaid = '';
  let saidAtMs = 0;
  for (; ; await sleep(POLL_MS)) {
    const { drains, servers } = await client.status();
    const report = drains.find((each) => each.serverId === serverId);
    if (report === undefined) {
      const up = servers.some((each) => each.serverId === serverId && each.status === 'up');
      return up ? 'cancelled' : 'gone';
    }
    if (report.state === 'drained') return 'drained';
    const text = drainText(report);
    const left = `${report.tablets} ${report.replicas}`;
    const nowMs = performance.now();
    if (text === said || (left === leftSaid && nowMs - saidAtMs < WAITS_SAID_MS)) continue;
    say(text);
    [said, leftSaid, saidAtMs] = [text, left, nowMs];
  }
}

interface DrainOptions extends ClientOptions {
  json?: boolean;
  cancel?: boolean;
  wait: boolean;
}

const END_TEXTS: Record<DrainEnd, string> = {
  drained: 'is drained: its process can be stopped',
  cancelled: 'is not drained: that was cancelled',
  gone: 'is not drained: it has left the cluster',
};

async function drainServer(serverId: number, options: DrainOptions): Promise<number> {
  return withClient(options, async (client) => {
    const show = async (state: string, text: string): Promise<void> => {
      if (options.json) await printJson({ serverId, state });
      else await printLine(`server ${serverId} ${text}`);
    };
    if (options.cancel) {
      await client.drainServer(serverId, { cancel: true });
      await show('cancelled', 'is a server like all others');
      return EXIT_OK;
    }
    if (!options.wait) {
      await client.drainServer(serverId);
      await show('draining', 'is being drained; `rekindle status` shows how far it is');
      return EXIT_OK;
    }
    const end = await drain(client, serverId, (text) => process.stderr.write(`${text}\n`));
    await show(end, END_TEXTS[end]);
    return end === 'drained' ? EXIT_OK : EXIT_NO;
  });
}

export function drainCommand(): Command {
  return new Command('drain')
    .description('move all tablets and replicas away from a server, so that it can be stopped')
    .argument('<server>', 'its id, as in `rekindle status`', integer(1, Number.MAX_SAFE_INTEGER))
    .option('--cancel', 'let it be a server like all others again')
    .option('--no-wait', 'do not wait until it is drained')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .action((serverId: number, options: DrainOptions) => run(() => drainServer(serverId, options)))
    .addHelpText(
      'after',
      `
Reads and writes go on meanwhile. Interrupting the command does not stop the drain: --cancel does.

Examples:
  $ rekindle drain 3 && ssh db3 systemctl stop rekindle
  $ rekindle drain 3 --cancel

Exit codes: 0 drained, 1 cancelled or gone, 2 refused (the others could not do without it).`,
    );
}

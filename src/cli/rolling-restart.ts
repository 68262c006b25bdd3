/**
 * `rekindle admin rolling-restart`: restarts all servers one after the other without a failed
 * request: drain, stop and start, wait until it is back and the cluster whole, the next.
 *
 * Rule: how a process is stopped and started is the operator's business: a command, given once, or
 * whatever is done by hand while this one waits. Nothing is touched unless the cluster is healthy
 * and the server drained; a server is known to be back by its address, or by its host if that has
 * changed. Interrupted, it can be started again with the servers that are left.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import type { Client } from '../client/index.js';
import { RekindleError } from '../rpc/errors.js';
import type { ClusterStatus, ServerEntry } from '../rpc/messages.js';
import {
  type ClientOptions,
  EXIT_NO,
  EXIT_OK,
  printLine,
  run,
  withClient,
} from './command-runner.js';
import { drain } from './drain.js';
import { integer, timeoutOption, urlOption } from './option-parsers.js';
import { isHealthy } from './status.js';

interface RestartOptions extends ClientOptions {
  command?: string;
}

const POLL_MS = 200;

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Those that are named, or all; by id, so that a later run goes on in the same order. */
function chosen({ servers }: ClusterStatus, serverIds: readonly number[]): ServerEntry[] {
  const up = servers.filter(({ status }) => status === 'up');
  const missing = serverIds.find((id) => !up.some(({ serverId }) => serverId === id));
  if (missing !== undefined) {
    throw new RekindleError('INVALID_ARGUMENT', `server ${missing} is not up`);
  }
  return up
    .filter(({ serverId }) => serverIds.length === 0 || serverIds.includes(serverId))
    .sort((one, other) => one.serverId - other.serverId);
}

async function untilHealthy(client: Client): Promise<ClusterStatus> {
  for (let said = ''; ; await sleep(POLL_MS)) {
    const status = await client.status();
    if (isHealthy(status)) return status;
    const text = `waiting for a healthy cluster: ${status.warnings.join('; ') || 'see status'}`;
    if (text !== said) say(text);
    said = text;
  }
}

/** A server that was not there before, at its address or, if that has changed, on its host. */
async function untilBack(
  client: Client,
  former: ServerEntry,
  known: ReadonlySet<number>,
): Promise<number> {
  for (; ; await sleep(POLL_MS)) {
    const { servers } = await client.status();
    if (servers.some(({ serverId }) => serverId === former.serverId)) continue;
    const fresh = servers.filter(({ serverId, status }) => status === 'up' && !known.has(serverId));
    const back =
      fresh.find(({ address }) => address === former.address) ??
      fresh.find(({ host }) => host === former.host);
    if (back !== undefined) return back.serverId;
  }
}

async function runCommand(command: string, server: ServerEntry): Promise<void> {
  const child = spawn('sh', ['-c', command], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: {
      ...process.env,
      REKINDLE_SERVER_ID: String(server.serverId),
      REKINDLE_SERVER_ADDRESS: server.address,
      REKINDLE_SERVER_HOST: server.host,
    },
  });
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  if (code === 0) return;
  throw new RekindleError(
    'INVALID_ARGUMENT',
    `the command ended with ${signal ?? `exit code ${code}`}; server ${server.serverId} is ` +
      'drained and was perhaps not restarted: restart it, or ' +
      `\`rekindle drain ${server.serverId} --cancel\``,
  );
}

/** False: it could not be drained. */
async function restart(
  client: Client,
  server: ServerEntry,
  command: string | undefined,
): Promise<boolean> {
  const { serverId, address } = server;
  const { servers } = await untilHealthy(client);
  const known = new Set(servers.map((each) => each.serverId));
  const end = await drain(client, serverId, (text) => say(`server ${serverId}: ${text}`));
  if (end !== 'drained') {
    say(`server ${serverId}: ${end} while it was drained`);
    return false;
  }
  const what = command === undefined ? 'stop its process and start it again' : 'restarting it';
  say(`server ${serverId} at ${address} is drained: ${what}`);
  if (command !== undefined) await runCommand(command, server);
  const back = await untilBack(client, server, known);
  await printLine(`server ${serverId} at ${address} is back as server ${back}`);
  return true;
}

async function rollingRestart(
  serverIds: readonly number[],
  options: RestartOptions,
): Promise<number> {
  return withClient(options, async (client) => {
    const servers = chosen(await client.status(), serverIds);
    for (const server of servers) {
      if (!(await restart(client, server, options.command))) return EXIT_NO;
    }
    await untilHealthy(client);
    await printLine(`${servers.length} servers restarted`);
    return EXIT_OK;
  });
}

const serverArgument = integer(1, Number.MAX_SAFE_INTEGER);

export function rollingRestartCommand(): Command {
  return new Command('rolling-restart')
    .description('restart servers one after the other: drain, stop, start, next')
    .argument(
      '[servers...]',
      'their ids (default: all)',
      (text: string, before: readonly number[]) => [...before, serverArgument(text)],
      [],
    )
    .option('--command <text>', 'restarts a server: run by sh with REKINDLE_SERVER_HOST, … set')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .action((serverIds: readonly number[], options: RestartOptions) =>
      run(() => rollingRestart(serverIds, options)),
    )
    .addHelpText(
      'after',
      `
--command sees REKINDLE_SERVER_ID, REKINDLE_SERVER_ADDRESS and REKINDLE_SERVER_HOST (the host label)
in its environment and is over when the process runs again or is about to. Without it the command
says which server is to be restarted, and waits until it is back.

Examples:
  $ rekindle admin rolling-restart --command 'ssh $REKINDLE_SERVER_HOST systemctl restart rekindle'
  $ rekindle admin rolling-restart 3 4

Exit codes: 0 all restarted, 1 a server could not be drained, 2 refused, or the command failed.`,
    );
}

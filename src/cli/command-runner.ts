/**
 * What all commands share: exit codes, errors in words that help, a client that is always closed.
 *
 * Exit codes: 0 yes; 1 no (key absent, cluster degraded, contents differ); 2 the command could not
 * do its work (bad usage, unreachable, refused). A stack is printed for bugs and with --verbose.
 */
import { type Client, connect } from '../client/index.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { StatusCode } from '../rpc/status.js';

export const EXIT_OK = 0;
export const EXIT_NO = 1;
export const EXIT_FAILED = 2;

const advice: Partial<Record<StatusCode, string>> = {
  COORDINATOR_UNAVAILABLE:
    'Is the cluster running? `rekindle dev` starts one; --url or REKINDLE_URL names another.',
  CONNECTION_LOST: 'Look at `rekindle status`; the server may be restarting.',
  TABLE_NOT_FOUND: '`rekindle table list` shows all tables, `rekindle table create NAME` adds one.',
  NOT_ENOUGH_BACKUPS:
    'Writes need as many live servers as replicas, plus one. `rekindle status` shows them.',
  OUT_OF_MEMORY: 'The servers are full: add servers, or start them with a larger --memory.',
  WRONG_CLUSTER:
    'This data folder or connection belongs to another cluster. Use the coordinator that it was ' +
    'made with, restore its state (`rekindle coordinator --restore FILE`), or an empty folder.',
  PROTOCOL_MISMATCH: 'Client and server are of different versions: upgrade the older one.',
  TIMEOUT: 'Try a longer --timeout, and look at `rekindle status`.',
  INVALID_KEY: 'Keys have 1 to 65,535 bytes.',
  VALUE_TOO_LARGE: 'Values have at most 1 MiB.',
};

/** Runs a command's body; its number is the exit code. */
export async function run(body: () => Promise<number>): Promise<void> {
  try {
    process.exitCode = await body();
  } catch (thrown) {
    process.exitCode = EXIT_FAILED;
    printError(thrown);
  }
}

export function printError(thrown: unknown): void {
  const error = asRekindleError(thrown);
  const lines = [`rekindle: ${error.code}: ${error.message}`];
  const help = advice[error.code];
  if (help !== undefined) lines.push(`  ${help}`);
  const bug = !(thrown instanceof RekindleError);
  if (bug || process.argv.includes('--verbose')) {
    lines.push(thrown instanceof Error ? (thrown.stack ?? '') : String(thrown));
  }
  process.stderr.write(`${lines.join('\n')}\n`);
}

export interface ClientOptions {
  url: string;
  timeout: number;
}

/** Connects, runs, closes. */
export async function withClient(
  options: ClientOptions,
  body: (client: Client) => Promise<number>,
): Promise<number> {
  const client = await connect(options.url, { timeoutMs: options.timeout });
  try {
    return await body(client);
  } finally {
    await client.close();
  }
}

/** Waits until everything is handed to the system: a pipe may be read slowly. */
export function print(text: string | Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    process.stdout.write(text, (error) => (error ? reject(error) : resolve()));
  });
}

export function printLine(text: string): Promise<void> {
  return print(`${text}\n`);
}

export function printJson(value: unknown): Promise<void> {
  return printLine(JSON.stringify(value, null, 2));
}

/** Resolves at the first SIGINT or SIGTERM; a second one ends the process at once. */
export function untilSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    const first = (signal: NodeJS.Signals): void => {
      process.off('SIGINT', first).off('SIGTERM', first);
      resolve(signal);
    };
    process.on('SIGINT', first).on('SIGTERM', first);
  });
}

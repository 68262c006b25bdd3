/**
 * What the long-running commands (`coordinator`, `server`) share: the options that say where they
 * keep data and listen, and how they announce themselves and end: a ready line for whoever started
 * them, a clean stop on SIGINT and SIGTERM, and, with `--exit-with-parent`, the end of the process
 * when the parent's end of stdin is gone.
 */
import { type Command, Option } from 'commander';
import { EXIT_OK, printLine, run, untilSignal } from './command-runner.js';
import { flag, integer, option } from './option-parsers.js';

export interface LifetimeOptions {
  readyJson?: boolean;
  exitWithParent?: boolean;
}

export interface ServiceOptions extends LifetimeOptions {
  data?: string;
  host: string;
  port: number;
  insecure?: boolean;
}

/** Adds the options of `ServiceOptions`. */
export function withServiceOptions(
  command: Command,
  portDefault: number,
  data: 'mandatory' | 'optional' = 'mandatory',
): Command {
  const folder = option('--data <dir>', 'its data folder', 'DATA');
  return command
    .addOption(folder.makeOptionMandatory(data === 'mandatory'))
    .addOption(option('--host <address>', 'address to listen on', 'HOST').default('127.0.0.1'))
    .addOption(
      option('--port <n>', 'port to listen on, 0: any', 'PORT', integer(0, 65_535)).default(
        portDefault,
      ),
    )
    .addOption(flag('--insecure', 'listen beyond loopback without authentication', 'INSECURE'))
    .addOption(new Option('--ready-json', 'print one JSON line on stdout when ready'))
    .addOption(new Option('--exit-with-parent', 'exit when stdin is closed'));
}

/** Watched from the beginning: a parent may die while this process still starts. */
export function watchParent(options: LifetimeOptions): void {
  if (!options.exitWithParent) return;
  const gone = (): never => process.exit(EXIT_OK);
  process.stdin.once('end', gone).once('close', gone).once('error', gone).resume();
}

/**
 * Runs a service and ends the process with it: a start that failed must not hang on the parent's
 * pipe, or on a thread that the failed part has left behind.
 */
export async function runService(body: () => Promise<number>): Promise<never> {
  await run(body);
  process.exit();
}

/** Says ready, waits for a signal, stops. */
export async function serve(
  options: LifetimeOptions,
  service: { name: string; port: number; serverId: number | null; stop(): Promise<void> },
): Promise<number> {
  const signalled = untilSignal();
  const { name, port, serverId } = service;
  if (options.readyJson) await printLine(JSON.stringify({ ready: true, port, serverId }));
  else await printLine(`rekindle ${name} is ready on port ${port}; Ctrl-C stops it`);
  await signalled;
  await service.stop();
  return EXIT_OK;
}

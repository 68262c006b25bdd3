#!/usr/bin/env node
/**
 * The command `rekindle`: assembles the commands, one file each, and turns mistakes of usage into
 * exit code 2. What a command does is in its file; exit codes are explained in command-runner.ts.
 */
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, CommanderError } from 'commander';
import { EXIT_FAILED, EXIT_OK, printError } from './command-runner.js';

function packageVersion(): string {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    try {
      const { name, version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'));
      if (name === 'rekindle') return version;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
    if (folder === dirname(folder)) return 'unknown';
  }
}

/** In the order in which they are shown. */
const COMMANDS: Record<string, () => Promise<Command>> = {
  dev: async () => (await import('./dev.js')).devCommand(),
  init: async () => (await import('./init.js')).initCommand(),
  coordinator: async () => (await import('./coordinator.js')).coordinatorCommand(),
  server: async () => (await import('./server.js')).serverCommand(),
  status: async () => (await import('./status.js')).statusCommand(),
  drain: async () => (await import('./drain.js')).drainCommand(),
  inspect: async () => (await import('./inspect.js')).inspectCommand(),
  table: async () => (await import('./table.js')).tableCommand(),
  get: async () => (await import('./get.js')).getCommand(),
  put: async () => (await import('./put.js')).putCommand(),
  delete: async () => (await import('./delete.js')).deleteCommand(),
  bench: async () => (await import('./bench.js')).benchCommand(),
  demo: async () => (await import('./demo.js')).demoCommand(),
  admin: async () => (await import('./admin.js')).adminCommand(),
};

/**
 * The command that is named, alone, since a server would load all benchmarks otherwise; all of
 * them for help, and for a word that is none of them.
 */
function commandsFor(words: readonly string[]): Promise<Command[]> {
  const name = words.find((word) => !word.startsWith('-')) ?? '';
  const named = Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
  const loads = named === undefined ? Object.values(COMMANDS) : [named];
  return Promise.all(loads.map((load) => load()));
}

function program(commands: readonly Command[]): Command {
  const root = new Command('rekindle')
    .description('A durable key-value store that keeps all data in DRAM.')
    .version(packageVersion())
    .option('--verbose', 'print the stack of errors')
    .showHelpAfterError('(--help shows all options and examples)')
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle dev                             a cluster on this machine
  $ rekindle table create notes
  $ rekindle put notes hello world
  $ rekindle get notes hello
  $ rekindle status
  $ rekindle bench throughput --quick

Options can be given as REKINDLE_<OPTION> in the environment, e.g. REKINDLE_URL.
Exit codes: 0 yes, 1 no (absent, degraded, different), 2 the command failed.`,
    );
  for (const command of commands) root.addCommand(inheriting(command));
  return root;
}

/** Subcommands throw instead of exiting, and accept --verbose at their own place. */
function inheriting(command: Command): Command {
  command.exitOverride().showHelpAfterError('(--help shows all options and examples)');
  if (command.commands.length === 0) command.option('--verbose', 'print the stack of errors');
  for (const subcommand of command.commands) inheriting(subcommand);
  return command;
}

/** A reader that has seen enough (`… | head`) ends the command quietly, as it ends any other. */
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(EXIT_OK);
  throw error;
});

try {
  const commands = await commandsFor(process.argv.slice(2));
  await program(commands).exitOverride().parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : EXIT_FAILED;
  } else {
    process.exitCode = EXIT_FAILED;
    printError(error);
  }
}

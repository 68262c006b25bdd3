/** `rekindle table create|list|drop|split|merge|migrate`. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Command } from 'commander';
import type { Client } from '../client/index.js';
import { textTable } from '../ops/text-table.js';
import type { MigrationReport, TableInfo, TabletInfo } from '../rpc/messages.js';
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

const SLOT_MAX = 0xffff_ffff;
const MIGRATION_POLL_MS = 100;

interface TableOptions extends ClientOptions {
  json?: boolean;
}

async function create(name: string, options: TableOptions & { span: number }): Promise<number> {
  return withClient(options, async (client) => {
    await client.createTable(name, { span: options.span });
    // As it is: a table that existed keeps the span that it has.
    const table = (await client.listTables()).find((each) => each.name === name);
    const span = table?.tablets.length ?? options.span;
    if (options.json) await printJson({ table: name, span });
    else await printLine(`table ${name}, ${span} tablets`);
    return EXIT_OK;
  });
}

export function tableRows(tables: readonly TableInfo[]): (string | number)[][] {
  return tables.map(({ name, tableId, tablets }) => [
    name,
    String(tableId),
    tablets.length,
    new Set(tablets.map(({ serverId }) => serverId)).size,
    tablets.every(({ status }) => status === 'normal')
      ? 'normal'
      : [...new Set(tablets.map(({ status }) => status))].join(', '),
  ]);
}

export const tableTitles = ['table', 'id', 'tablets', 'servers', 'status'] as const;

async function list(options: TableOptions): Promise<number> {
  return withClient(options, async (client) => {
    const tables = await client.listTables();
    if (options.json) await printJson(tables);
    else if (tables.length === 0) await printLine('no tables');
    else await printLine(textTable(tableTitles, tableRows(tables)));
    return EXIT_OK;
  });
}

async function drop(name: string, options: TableOptions): Promise<number> {
  return withClient(options, async (client) => {
    const dropped = await client.dropTable(name);
    if (options.json) await printJson({ table: name, dropped });
    else if (dropped) await printLine(`dropped ${name}`);
    else process.stderr.write(`rekindle: no table "${name}"\n`);
    return dropped ? EXIT_OK : EXIT_NO;
  });
}

async function merge(name: string, options: TableOptions): Promise<number> {
  return withClient(options, async (client) => {
    const { table, merged, refused } = await client.mergeTablets(name);
    const tablets = table.tablets.length;
    if (options.json) await printJson({ table: name, tablets, merged, refused });
    else await printLine(`table ${name}, ${tablets} tablets`);
    if (refused > 0) process.stderr.write(`rekindle: ${refused} runs cannot be merged yet\n`);
    return refused > 0 ? EXIT_NO : EXIT_OK;
  });
}

async function split(name: string, options: TableOptions & { slot?: number }): Promise<number> {
  const { slot } = options;
  return withClient(options, async (client) => {
    const { tablets } = await client.splitTablet(name, slot === undefined ? {} : { slot });
    if (options.json) await printJson({ table: name, tablets: tablets.length });
    else await printLine(`table ${name}, ${tablets.length} tablets`);
    return EXIT_OK;
  });
}

interface MigrateOptions extends TableOptions {
  to: number;
  slot?: number;
}

/** How a migration ended; null if nobody knows any more, and the map must tell. */
async function migrationEnd(client: Client, migrationId: number): Promise<MigrationReport | null> {
  for (;;) {
    const { migrations } = await client.status();
    const found = migrations.find((each) => each.migrationId === migrationId);
    if (found === undefined || found.state === 'done' || found.state === 'aborted') {
      return found ?? null;
    }
    await sleep(MIGRATION_POLL_MS);
  }
}

async function migrate(name: string, options: MigrateOptions): Promise<number> {
  const { slot, to } = options;
  return withClient(options, async (client) => {
    const ask = async (): Promise<TabletInfo[]> => {
      const tables = await client.listTables();
      const { tablets } = tables.find((table) => table.name === name) ?? { tablets: [] };
      if (slot === undefined) return tablets;
      return tablets.filter(({ startSlot, endSlot }) => startSlot <= slot && slot <= endSlot);
    };
    // One after the other: a server gives one tablet away at a time.
    for (const { startSlot, serverId } of await ask()) {
      if (serverId === to) continue;
      const migrationId = await client.migrateTablet(name, startSlot, to);
      const end = migrationId === 0 ? null : await migrationEnd(client, migrationId);
      if (end?.state === 'aborted') process.stderr.write(`rekindle: ${end.reason ?? ''}\n`);
    }
    const tablets = await ask();
    const there = tablets.filter(({ serverId }) => serverId === to).length;
    if (options.json) await printJson({ table: name, tablets: tablets.length, there });
    else await printLine(`table ${name}, ${there} of ${tablets.length} tablets on server ${to}`);
    return there === tablets.length && there > 0 ? EXIT_OK : EXIT_NO;
  });
}

function subcommand(name: string, description: string, example: string): Command {
  return new Command(name)
    .description(description)
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .addHelpText('after', `\nExamples:\n  $ ${example}`);
}

export function tableCommand(): Command {
  return new Command('table')
    .description('create, list, split, merge, move and drop tables')
    .addCommand(
      subcommand('create', 'create a table', 'rekindle table create notes --span 4')
        .argument('<name>')
        .option('--span <n>', 'tablets to spread it over', integer(1, 256), 4)
        .action((name: string, options: TableOptions & { span: number }) =>
          run(() => create(name, options)),
        ),
    )
    .addCommand(
      subcommand('list', 'list all tables', 'rekindle table list --json').action(
        (options: TableOptions) => run(() => list(options)),
      ),
    )
    .addCommand(
      subcommand('drop', 'drop a table and all its objects', 'rekindle table drop notes')
        .addHelpText('after', '\nExit code 1 if there was no such table.')
        .argument('<name>')
        .action((name: string, options: TableOptions) => run(() => drop(name, options))),
    )
    .addCommand(
      subcommand(
        'split',
        'make two of a tablet, on the server that has it',
        'rekindle table split notes',
      )
        .argument('<name>')
        .option('--slot <n>', 'where the upper one begins', integer(1, SLOT_MAX))
        .addHelpText('after', '\nWithout --slot the widest tablet is cut in its middle.')
        .action((name: string, options: TableOptions & { slot?: number }) =>
          run(() => split(name, options)),
        ),
    )
    .addCommand(
      subcommand(
        'merge',
        'make one tablet of neighbours on one server',
        'rekindle table merge notes',
      )
        .addHelpText('after', '\nExit code 1 if some cannot be merged yet.')
        .argument('<name>')
        .action((name: string, options: TableOptions) => run(() => merge(name, options))),
    )
    .addCommand(
      subcommand(
        'migrate',
        'move tablets to another server while they are in use',
        'rekindle table migrate notes --to 3',
      )
        .addHelpText('after', '\nExit code 1 if some are not there.')
        .argument('<name>')
        .requiredOption('--to <server>', 'id of the server', integer(1, Number.MAX_SAFE_INTEGER))
        .option('--slot <n>', 'only the tablet with this slot', integer(0, SLOT_MAX))
        .action((name: string, options: MigrateOptions) => run(() => migrate(name, options))),
    )
    .addHelpText('after', '\nExamples:\n  $ rekindle table create notes\n  $ rekindle table list');
}

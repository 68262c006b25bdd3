/** `rekindle table create|list|drop`. */
import { Command } from 'commander';
import { textTable } from '../ops/text-table.js';
import type { TableInfo } from '../rpc/messages.js';
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
    .description('create, list and drop tables')
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
    .addHelpText('after', '\nExamples:\n  $ rekindle table create notes\n  $ rekindle table list');
}

/** `rekindle delete`: removes an object; exit code 1 if there was none. */
import { Command } from 'commander';
import {
  type ClientOptions,
  EXIT_NO,
  EXIT_OK,
  printJson,
  printLine,
  run,
  withClient,
} from './command-runner.js';
import { jsonFlag, timeoutOption, urlOption } from './option-parsers.js';

interface DeleteOptions extends ClientOptions {
  json?: boolean;
}

async function remove(table: string, key: string, options: DeleteOptions): Promise<number> {
  return withClient(options, async (client) => {
    const { version } = await client.table(table).delete(key);
    const found = version !== 0;
    if (options.json) await printJson({ table, key, found, ...(found ? { version } : {}) });
    else if (found) await printLine(`deleted version ${version}`);
    else process.stderr.write(`rekindle: no object "${key}" in table "${table}"\n`);
    return found ? EXIT_OK : EXIT_NO;
  });
}

export function deleteCommand(): Command {
  return new Command('delete')
    .description('remove a key')
    .argument('<table>')
    .argument('<key>')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .action((table: string, key: string, options: DeleteOptions) =>
      run(() => remove(table, key, options)),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle delete notes hello
  $ rekindle delete notes hello --json

Exit code 1 if the key did not exist.`,
    );
}

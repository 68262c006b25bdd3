/** `rekindle get`: one object's value to stdout, byte for byte; exit code 1 if there is none. */
import { isUtf8 } from 'node:buffer';
import { Command } from 'commander';
import {
  type ClientOptions,
  EXIT_NO,
  EXIT_OK,
  print,
  printJson,
  run,
  withClient,
} from './command-runner.js';
import { jsonFlag, timeoutOption, urlOption } from './option-parsers.js';

interface GetOptions extends ClientOptions {
  json?: boolean;
}

/** Text as text; anything else as base64, and the encoding is named. */
export function jsonValue(value: Uint8Array): { value: string; encoding: 'utf8' | 'base64' } {
  const encoding = isUtf8(value) ? 'utf8' : 'base64';
  return { value: Buffer.from(value).toString(encoding), encoding };
}

async function get(table: string, key: string, options: GetOptions): Promise<number> {
  return withClient(options, async (client) => {
    const entry = await client.table(table).getEntry(key);
    if (entry === undefined) {
      if (options.json) await printJson({ table, key, found: false });
      else process.stderr.write(`rekindle: no object "${key}" in table "${table}"\n`);
      return EXIT_NO;
    }
    if (options.json) {
      const { version } = entry;
      await printJson({ table, key, found: true, version, ...jsonValue(entry.value) });
    } else {
      await print(entry.value);
      if (process.stdout.isTTY) await print('\n');
    }
    return EXIT_OK;
  });
}

export function getCommand(): Command {
  return new Command('get')
    .description('print the value of a key')
    .argument('<table>')
    .argument('<key>')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .action((table: string, key: string, options: GetOptions) =>
      run(() => get(table, key, options)),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle get notes hello
  $ rekindle get notes picture > picture.png
  $ rekindle get notes hello --json          with version; base64 if it is not UTF-8

Exit code 1 if the key does not exist.`,
    );
}

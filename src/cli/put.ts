/** `rekindle put`: stores a value from the command line or, without one, from stdin. */
import { Command } from 'commander';
import { RekindleError } from '../rpc/errors.js';
import {
  type ClientOptions,
  EXIT_OK,
  printJson,
  printLine,
  run,
  withClient,
} from './command-runner.js';
import { jsonFlag, timeoutOption, urlOption } from './option-parsers.js';

const VALUE_BYTES_MAX = 2 ** 20;

interface PutOptions extends ClientOptions {
  json?: boolean;
}

/** Stops reading as soon as the value is longer than a value may be. */
export async function readStdin(): Promise<Buffer> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  for await (const piece of process.stdin as AsyncIterable<Buffer>) {
    pieces.push(piece);
    bytes += piece.length;
    if (bytes > VALUE_BYTES_MAX) {
      throw new RekindleError('VALUE_TOO_LARGE', `stdin has more than ${VALUE_BYTES_MAX} bytes`);
    }
  }
  return Buffer.concat(pieces);
}

async function put(
  table: string,
  key: string,
  value: string | undefined,
  options: PutOptions,
): Promise<number> {
  const bytes = value === undefined || value === '-' ? await readStdin() : Buffer.from(value);
  return withClient(options, async (client) => {
    const { version } = await client.table(table).put(key, bytes);
    if (options.json) await printJson({ table, key, version });
    else await printLine(`version ${version}`);
    return EXIT_OK;
  });
}

export function putCommand(): Command {
  return new Command('put')
    .description('store a value under a key')
    .argument('<table>')
    .argument('<key>')
    .argument('[value]', 'from stdin if it is missing or "-"')
    .addOption(urlOption())
    .addOption(timeoutOption())
    .option(...jsonFlag)
    .action((table: string, key: string, value: string | undefined, options: PutOptions) =>
      run(() => put(table, key, value, options)),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle put notes hello world
  $ rekindle put notes picture < picture.png
  $ rekindle put notes hello world --json    prints the new version`,
    );
}

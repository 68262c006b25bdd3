/**
 * The program behind `rekindle bench core`: finds it or has cargo build it, runs its subcommands,
 * and talks to it line by line where both sides take turns.
 *
 * Rule: a source checkout always measures its present sources (cargo decides what is out of date);
 * an installed package has the program that it was packed with, or none.
 */
import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { killAtExit } from '../src/cluster/left-behind.js';
import { RekindleError } from '../src/rpc/errors.js';

const root = resolve(fileURLToPath(new URL('.', import.meta.url)), '../..');
const binary = join(root, 'build/native/bin/rekindle-bench');

/** A line of the program's output. */
export interface Figure {
  name: string;
  unit: string;
  value: number;
}

/** Path of the program. */
export function coreBinary(): string {
  if (!existsSync(join(root, 'native/bench/Cargo.toml'))) {
    if (existsSync(binary)) return binary;
    throw new RekindleError('INTERNAL', `${binary} is missing: build it in a source checkout`);
  }
  if (!existsSync(binary)) process.stderr.write('building rekindle-bench with cargo, once …\n');
  const built = spawnSync('npm', ['run', '--silent', 'build:bench'], {
    cwd: root,
    encoding: 'utf8',
  });
  if (built.status === 0) return binary;
  const why = `${built.stderr ?? ''}${built.error?.message ?? ''}`.trim();
  if (/cargo: (not found|command not found)/.test(why)) {
    if (existsSync(binary)) return binary;
    throw new RekindleError(
      'INTERNAL',
      'bench core needs cargo to build native/bench; https://rustup.rs installs it',
    );
  }
  throw new RekindleError('INTERNAL', `cargo could not build native/bench:\n${why}`);
}

/** Runs a subcommand to its end; `before` is put in front of the command (`taskset`). */
export async function runCore(
  path: string,
  commandArguments: string[],
  before: readonly string[] = [],
): Promise<Figure[]> {
  const [program = path, ...rest] = [...before, path, ...commandArguments];
  const child = spawn(program, rest, { stdio: ['ignore', 'pipe', 'inherit'] });
  killAtExit(child);
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  const command = `rekindle-bench ${commandArguments.join(' ')}`;
  if (code !== 0) throw new RekindleError('INTERNAL', `${command} failed (${code})`);
  return output
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Figure);
}

/** A subcommand that answers each line with a line. */
export class CoreDialogue implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #answers: AsyncIterator<string>;

  constructor(path: string, commandArguments: string[]) {
    this.#child = spawn(path, commandArguments, { stdio: 'pipe' });
    killAtExit(this.#child);
    this.#child.stderr.pipe(process.stderr);
    const lines = createInterface({ input: this.#child.stdout });
    this.#answers = lines[Symbol.asyncIterator]();
  }

  /** The number that the program answers. */
  async ask(command: string): Promise<number> {
    this.#child.stdin.write(`${command}\n`);
    const { value, done } = await this.#answers.next();
    if (done === true) throw new RekindleError('INTERNAL', `rekindle-bench ended at "${command}"`);
    return Number(value);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null) return;
    const closed = once(this.#child, 'close');
    this.#child.stdin.end();
    await closed;
  }
}

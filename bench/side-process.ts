/**
 * A side of `rekindle bench throughput` as a child process (side-program.ts): the store, its client
 * and what they leave on the heap are alone in it.
 *
 * Rule: a side is asked one thing at a time, and no answer is waited for in vain: a process that
 * ends fails what it was asked, by the side's name, below what it has printed. It leads a process
 * group, so that Ctrl-C reaches the parent alone; whatever ends the parent, SIGKILL too, closes the
 * channel, and the side goes with its store.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { RekindleError } from '../src/rpc/errors.js';
import type { Answer, Question, RoundSettings, SideSettings } from './side-program.js';
import type { Traffic } from './wire-bytes.js';

const PROGRAM = fileURLToPath(new URL('side-program.js', import.meta.url));
const STDERR = 2;
const STOP_TIMEOUT_MS = 10_000;

export class SideProcess {
  readonly name: SideSettings['name'];
  readonly #child: ChildProcess;
  /** How it ended; pending as long as it runs. */
  readonly #ended: Promise<string>;

  /** `ready` is to be awaited at once. */
  constructor(settings: SideSettings) {
    this.name = settings.name;
    this.#child = fork(PROGRAM, [JSON.stringify(settings)], {
      detached: true,
      // Structured clones: JSON would make null of NaN.
      serialization: 'advanced',
      // A pipe, since several that draw their progress on one terminal could not be read.
      stdio: ['ignore', STDERR, 'pipe', 'ipc'],
    });
    this.#child.stderr?.pipe(process.stderr);
    this.#child.once('exit', () => this.#killGroup());
    this.#ended = once(this.#child, 'close').then(([code, signal]) => {
      return String(signal ?? `exit code ${code}`);
    });
  }

  /** Resolves when its store is started and filled. */
  async ready(): Promise<void> {
    await this.#answer();
  }

  /** The figure of one work for one round; null: it cannot do the work. */
  measure(round: RoundSettings): Promise<number | null> {
    return this.#ask({ kind: 'measure', round }) as Promise<number | null>;
  }

  /** Of one object, for each of the loads of wire-bytes.ts. */
  wireBytes(): Promise<Traffic[]> {
    return this.#ask({ kind: 'wire-bytes' }) as Promise<Traffic[]>;
  }

  /** Also while it starts, and when it has ended by itself. */
  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    const late = setTimeout(() => this.#child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    await this.#ended;
    clearTimeout(late);
  }

  #ask(question: Question): Promise<unknown> {
    const answer = this.#answer();
    // A closed channel is that of a process that ends, which `answer` says better.
    this.#child.send(question, () => undefined);
    return answer;
  }

  async #answer(): Promise<unknown> {
    const ended = this.#ended.then((how): never => {
      throw new RekindleError('INTERNAL', `the process of ${this.name} has ended with ${how}`);
    });
    const [answer] = (await Promise.race([once(this.#child, 'message'), ended])) as [Answer];
    if ('value' in answer) return answer.value;
    throw new RekindleError(answer.code, `${this.name}: ${answer.message}`);
  }

  /** What it had to leave behind if it was killed: servers of peers, the load generator. */
  #killGroup(): void {
    if (this.#child.pid === undefined) return;
    try {
      process.kill(-this.#child.pid, 'SIGKILL');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error; // nobody is left
    }
  }
}

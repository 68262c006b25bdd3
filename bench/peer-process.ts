/**
 * A server of somebody else as a child process on loopback: found or named with the package that
 * has it, ended with its benchmark. What it says is not shown; whether it listens is found out by
 * the clients.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { killAtExit } from '../src/cluster/left-behind.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';

/** Which package has a program. */
const packages = {
  'redis-server': 'Debian, Ubuntu: apt install redis-server',
  'valkey-server': 'Debian 13, Ubuntu 24.04: apt install valkey-server',
  memcached: 'Debian, Ubuntu: apt install memcached',
} as const;

export type PeerProgram = keyof typeof packages;

export class PeerProcess {
  readonly #process: ChildProcess;
  /** Why it cannot be used; pending as long as it runs. */
  readonly #failure: Promise<RekindleError>;

  private constructor(program: PeerProgram, child: ChildProcess) {
    this.#process = child;
    this.#failure = once(child, 'exit').then(([code, signal]) => {
      const how = String(signal ?? `exit code ${code}`);
      return new RekindleError('INTERNAL', `${program} has ended with ${how}`);
    });
  }

  /** Resolves when the process is spawned. `before` is put in front of the command (`taskset`). */
  static async start(
    program: PeerProgram,
    programArguments: readonly string[],
    before: readonly string[] = [],
  ): Promise<PeerProcess> {
    const { error } = spawnSync(program, ['--version'], { stdio: 'ignore' });
    if ((error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') {
      const problem = `this peer needs the program ${program} (${packages[program]})`;
      throw new RekindleError('INVALID_ARGUMENT', problem);
    }
    const [first = program, ...rest] = [...before, program, ...programArguments];
    const child = spawn(first, rest, { stdio: 'ignore' });
    killAtExit(child);
    await once(child, 'spawn');
    return new PeerProcess(program, child);
  }

  get pid(): number {
    const { pid } = this.#process;
    invariant(pid !== undefined, 'it was spawned');
    return pid;
  }

  /** What `answer` resolves with, unless the process ends before. */
  async orEnd<T>(answer: Promise<T>): Promise<T> {
    const ended = this.#failure.then((error) => Promise.reject(error));
    return Promise.race([answer, ended]);
  }

  async stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    const { exitCode, signalCode } = this.#process;
    if (exitCode !== null || signalCode !== null) return;
    const exited = once(this.#process, 'exit');
    this.#process.kill(signal);
    await exited;
  }
}

/**
 * A client library of a peer: no part of an installed package, since nothing but benchmarks needs
 * it.
 */
export async function peerClient<T>(name: string, load: () => Promise<T>): Promise<T> {
  try {
    return await load();
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    const problem = `this peer needs the package ${name}: npm install ${name}`;
    throw new RekindleError('INVALID_ARGUMENT', problem, { cause: error });
  }
}

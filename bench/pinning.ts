/**
 * Which core a process runs on: servers on one, the client on the other, so that neither takes the
 * other's time and a figure is one of a core. By `taskset` (util-linux); without it, or with one
 * core, nothing is pinned and the report says so.
 */
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { RekindleError } from '../src/rpc/errors.js';

const SERVER_CORE = 0;
const CLIENT_CORE = 1;

export class Pinning {
  readonly possible: boolean;

  constructor() {
    const found = spawnSync('taskset', ['--version'], { stdio: 'ignore' }).status === 0;
    this.possible = found && availableParallelism() > 1;
  }

  /** Put in front of the command of a server. */
  get server(): string[] {
    return this.#command(SERVER_CORE);
  }

  /** Put in front of the command of a load generator. */
  get client(): string[] {
    return this.#command(CLIENT_CORE);
  }

  /** Moves all threads of this process to the client's core; what it starts later stays there. */
  pinThisProcess(): void {
    if (!this.possible) return;
    const moved = spawnSync('taskset', ['-apc', String(CLIENT_CORE), String(process.pid)]);
    if (moved.status === 0) return;
    throw new RekindleError('INTERNAL', `taskset could not pin this process: ${moved.stderr}`);
  }

  #command(core: number): string[] {
    return this.possible ? ['taskset', '-c', String(core)] : [];
  }
}

/**
 * Debian's redis-server as a child process on loopback, on a folder that the caller owns. Started
 * by the stores of the benchmarks, and started again by the one that measures its restart.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { Redis } from 'ioredis';
import { freePorts } from '../src/cluster/free-port.js';
import { killAtExit } from '../src/cluster/left-behind.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';

export type RedisClient = Redis;

const HOST = '127.0.0.1';

export class RedisServer {
  readonly port: number;
  readonly #process: ChildProcess;
  /** Why it did not start; pending as long as it runs. */
  readonly #failure: Promise<RekindleError>;

  private constructor(port: number, child: ChildProcess) {
    this.port = port;
    this.#process = child;
    this.#failure = once(child, 'error').then(([error]) =>
      startError(error as NodeJS.ErrnoException),
    );
    killAtExit(child);
  }

  get pid(): number {
    const { pid } = this.#process;
    invariant(pid !== undefined, 'a server with a client has started');
    return pid;
  }

  /**
   * Resolves when the process is spawned; `client` and `answers` wait until it listens. `before` is
   * put in front of the command (`taskset`).
   */
  static async start(
    directory: string,
    settings: readonly string[],
    before: readonly string[] = [],
  ): Promise<RedisServer> {
    const [port] = await freePorts(HOST, 1);
    invariant(port !== undefined, 'one port was asked for');
    const place = ['--bind', HOST, '--port', String(port), '--dir', directory];
    const [program = '', ...rest] = [...before, 'redis-server', ...place, ...settings];
    const child = spawn(program, rest, { stdio: 'ignore' });
    return new RedisServer(port, child);
  }

  /** A client with automatic pipelining, connected. */
  async client(): Promise<RedisClient> {
    const client = new Redis({
      host: HOST,
      port: this.port,
      enableAutoPipelining: true,
      lazyConnect: true,
    });
    client.on('error', () => undefined); // shown by the calls that fail
    try {
      // ioredis tries to connect again and again until the server listens, 20 times at most.
      await Promise.race([client.ping(), this.#orFailure()]);
    } catch (error) {
      client.disconnect();
      throw error;
    }
    return client;
  }

  /** Resolves with the value of a key as soon as the server has loaded its data. */
  async answers(key: string, pollMs: number): Promise<Buffer | null> {
    const client = new Redis({
      host: HOST,
      port: this.port,
      // Its own check waits for as long as Redis guesses that loading will take, in seconds.
      enableReadyCheck: false,
      maxRetriesPerRequest: null,
      retryStrategy: () => pollMs,
    });
    client.on('error', () => undefined); // refused until it listens
    try {
      for (;;) {
        try {
          return await Promise.race([client.getBuffer(key), this.#orFailure()]);
        } catch (error) {
          if (!String((error as Error).message).startsWith('LOADING')) throw error;
          await new Promise((resolve) => setTimeout(resolve, pollMs));
        }
      }
    } finally {
      client.disconnect();
    }
  }

  async #orFailure(): Promise<never> {
    throw await this.#failure;
  }

  async stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    const { pid, exitCode, signalCode } = this.#process;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const exited = once(this.#process, 'exit');
    this.#process.kill(signal);
    await exited;
  }
}

function startError(error: NodeJS.ErrnoException): RekindleError {
  if (error.code === 'ENOENT') {
    return new RekindleError(
      'INVALID_ARGUMENT',
      '--peer redis needs the program redis-server (Debian, Ubuntu: apt install redis-server)',
    );
  }
  return new RekindleError('INTERNAL', `redis-server: ${error.message}`, { cause: error });
}

/**
 * Redis as the peer of a benchmark: Debian's redis-server as a child process on loopback, ioredis
 * with automatic pipelining. getMany and putMany are MGET and MSET, the fastest that it offers.
 *
 * One process without replicas: `no persistence` keeps nothing, `appendfsync always` has the
 * writes of one event loop turn on one disk. Rekindle's figures beside it are for three copies.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { freePorts } from '../src/cluster/free-port.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import type { ObjectStore } from './object-store.js';

export type RedisPersistence = 'none' | 'always';

const HOST = '127.0.0.1';

export class RedisStore implements ObjectStore {
  readonly name: string;
  readonly #process: ChildProcess;
  readonly #client: Redis;
  readonly #directory: string;

  private constructor(name: string, child: ChildProcess, client: Redis, directory: string) {
    this.name = name;
    this.#process = child;
    this.#client = client;
    this.#directory = directory;
  }

  static async start(persistence: RedisPersistence): Promise<RedisStore> {
    const [port] = await freePorts(HOST, 1);
    invariant(port !== undefined, 'one port was asked for');
    const directory = mkdtempSync(join(tmpdir(), 'rekindle-redis-'));
    const durability = persistence === 'always' ? ['yes', 'always'] : ['no', 'no'];
    const [appendOnly, appendFsync] = durability as [string, string];
    const child = spawn(
      'redis-server',
      [
        ...['--bind', HOST, '--port', String(port), '--dir', directory, '--save', ''],
        ...['--appendonly', appendOnly, '--appendfsync', appendFsync],
      ],
      { stdio: 'ignore' },
    );
    process.once('exit', () => child.kill('SIGKILL'));
    const failed = once(child, 'error').then(([error]) => {
      throw startError(error as NodeJS.ErrnoException);
    });
    const client = new Redis({ host: HOST, port, enableAutoPipelining: true, lazyConnect: true });
    client.on('error', () => undefined); // shown by the calls that fail
    try {
      // ioredis tries to connect again and again until the server listens, 20 times at most.
      await Promise.race([client.ping(), failed]);
    } catch (error) {
      client.disconnect();
      child.kill('SIGKILL');
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
    const name = persistence === 'always' ? 'redis appendfsync always' : 'redis no persistence';
    return new RedisStore(name, child, client, directory);
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    return (await this.#client.getBuffer(key)) ?? undefined;
  }

  async put(key: string, value: Buffer): Promise<void> {
    await this.#client.set(key, value);
  }

  async getMany(keys: readonly string[]): Promise<(Uint8Array | undefined)[]> {
    const values = await this.#client.mgetBuffer(...keys);
    return values.map((value) => value ?? undefined);
  }

  async putMany(entries: readonly (readonly [string, Buffer])[]): Promise<void> {
    await this.#client.mset(...entries.flat());
  }

  async close(): Promise<void> {
    this.#client.disconnect();
    const exited = once(this.#process, 'exit');
    this.#process.kill('SIGTERM');
    await exited;
    rmSync(this.#directory, { recursive: true, force: true });
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

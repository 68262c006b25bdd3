/**
 * Redis or Valkey without persistence as the peer of a benchmark, through ioredis with automatic
 * pipelining. getMany and putMany are MGET and MSET, the fastest that it offers. With three durable
 * copies: redis-replicas.ts.
 */
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import type { ObjectStore } from './object-store.js';
import { type RedisClient, RedisServer, type RespPeer } from './redis-server.js';

export class RedisStore implements ObjectStore {
  readonly name: string;
  readonly #server: RedisServer;
  readonly #client: RedisClient;
  readonly #directory: string;

  private constructor(peer: RespPeer, server: RedisServer, client: RedisClient, directory: string) {
    this.name = `${peer} no persistence`;
    this.#server = server;
    this.#client = client;
    this.#directory = directory;
  }

  /** `before` is put in front of the server's command (`taskset`). */
  static async start(
    before: readonly string[] = [],
    peer: RespPeer = 'redis',
  ): Promise<RedisStore> {
    const directory = makeTemporaryFolder('rekindle-redis-');
    const settings = ['--save', '', '--appendonly', 'no'];
    const server = await RedisServer.start(directory, settings, before, peer);
    try {
      const client = await server.client();
      return new RedisStore(peer, server, client, directory);
    } catch (error) {
      await server.stop('SIGKILL');
      removeTemporaryFolder(directory);
      throw error;
    }
  }

  get address(): string {
    return `127.0.0.1:${this.#server.port}`;
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
    await this.#server.stop();
    removeTemporaryFolder(this.#directory);
  }
}

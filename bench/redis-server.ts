/**
 * redis-server, or valkey-server which is the same to its clients, on loopback, on a folder that
 * the caller owns. Started by the stores of the benchmarks, and started again by the one that
 * measures its restart.
 */
import type { Redis } from 'ioredis';
import { freePorts } from '../src/cluster/free-port.js';
import { invariant } from '../src/rpc/errors.js';
import { PeerProcess, peerClient } from './peer-process.js';

export type RedisClient = Redis;
/** Servers that speak RESP. */
export type RespPeer = 'redis' | 'valkey';

const HOST = '127.0.0.1';

export class RedisServer {
  readonly port: number;
  readonly #process: PeerProcess;
  readonly #Client: typeof Redis;

  private constructor(port: number, server: PeerProcess, Client: typeof Redis) {
    this.port = port;
    this.#process = server;
    this.#Client = Client;
  }

  get pid(): number {
    return this.#process.pid;
  }

  /**
   * Resolves when the process is spawned; `client` and `answers` wait until it listens. `before` is
   * put in front of the command (`taskset`).
   */
  static async start(
    directory: string,
    settings: readonly string[],
    before: readonly string[] = [],
    peer: RespPeer = 'redis',
  ): Promise<RedisServer> {
    const { Redis: Client } = await peerClient('ioredis', () => import('ioredis'));
    const [port] = await freePorts(HOST, 1);
    invariant(port !== undefined, 'one port was asked for');
    const place = ['--bind', HOST, '--port', String(port), '--dir', directory];
    const server = await PeerProcess.start(`${peer}-server`, [...place, ...settings], before);
    return new RedisServer(port, server, Client);
  }

  /** A client with automatic pipelining, connected. */
  async client(): Promise<RedisClient> {
    const client = new this.#Client({
      host: HOST,
      port: this.port,
      enableAutoPipelining: true,
      lazyConnect: true,
    });
    client.on('error', () => undefined); // shown by the calls that fail
    try {
      // ioredis tries to connect again and again until the server listens, 20 times at most.
      await this.#process.orEnd(client.ping());
    } catch (error) {
      client.disconnect();
      throw error;
    }
    return client;
  }

  /** Resolves with the value of a key as soon as the server has loaded its data. */
  async answers(key: string, pollMs: number): Promise<Buffer | null> {
    const client = new this.#Client({
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
          return await this.#process.orEnd(client.getBuffer(key));
        } catch (error) {
          if (!String((error as Error).message).startsWith('LOADING')) throw error;
          await new Promise((resolve) => setTimeout(resolve, pollMs));
        }
      }
    } finally {
      client.disconnect();
    }
  }

  stop(signal: 'SIGTERM' | 'SIGKILL' = 'SIGTERM'): Promise<void> {
    return this.#process.stop(signal);
  }
}

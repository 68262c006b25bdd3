/**
 * memcached as the peer of a benchmark, one thread, through memcache-client on one connection,
 * which sends each command as it comes without waiting for answers. getMany is one `get` of all
 * keys; no command writes several, so putMany is as many `set`s in a row. (Of the other packages,
 * `memcached` has had no release for years, `memcache` gives values as text only.)
 */
import type { MemcacheClient, MultiRetrievalResponse } from 'memcache-client';
import { freePorts } from '../src/cluster/free-port.js';
import { invariant } from '../src/rpc/errors.js';
import type { ObjectStore } from './object-store.js';
import { PeerProcess, peerClient } from './peer-process.js';

const HOST = '127.0.0.1';
const TIMEOUT_MS = 30_000;
/** An item must have room for a value of 1 MiB and its header. */
const SETTINGS = ['--threads', '1', '--conn-limit', '2048', '--max-item-size', '2m'];
/** Without it, memcached refuses to run as root. */
const USER = process.getuid?.() === 0 ? ['--user', 'nobody'] : [];
const CONNECT_ATTEMPTS = 100;
const CONNECT_PAUSE_MS = 50;

export class MemcachedStore implements ObjectStore {
  readonly name = 'memcached';
  readonly address: string;
  readonly #server: PeerProcess;
  readonly #client: MemcacheClient;

  private constructor(address: string, server: PeerProcess, client: MemcacheClient) {
    this.address = address;
    this.#server = server;
    this.#client = client;
  }

  /** `before` is put in front of the server's command (`taskset`). */
  static async start(memoryBytes: number, before: readonly string[] = []): Promise<MemcachedStore> {
    const loaded = await peerClient('memcache-client', () => import('memcache-client'));
    const [port] = await freePorts(HOST, 1);
    invariant(port !== undefined, 'one port was asked for');
    const memory = ['--memory-limit', String(Math.ceil(memoryBytes / 2 ** 20))];
    const place = ['--listen', HOST, '--port', String(port)];
    const words = [...place, ...memory, ...SETTINGS, ...USER];
    const server = await PeerProcess.start('memcached', words, before);
    const address = `${HOST}:${port}`;
    try {
      const client = await server.orEnd(connected(loaded.MemcacheClient, address));
      return new MemcachedStore(address, server, client);
    } catch (error) {
      await server.stop('SIGKILL');
      throw error;
    }
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    const found: { value: Buffer } | undefined = await this.#client.get<Buffer>(key);
    return found?.value;
  }

  async put(key: string, value: Buffer): Promise<void> {
    await this.#client.set(key, value);
  }

  async getMany(keys: readonly string[]): Promise<(Uint8Array | undefined)[]> {
    const found = await this.#client.get<MultiRetrievalResponse<Buffer>>([...keys]);
    return keys.map((key) => found[key]?.value);
  }

  async putMany(entries: readonly (readonly [string, Buffer])[]): Promise<void> {
    await Promise.all(entries.map(([key, value]) => this.#client.set(key, value)));
  }

  async close(): Promise<void> {
    this.#client.shutdown();
    await this.#server.stop();
  }
}

/** It takes a moment until it listens. */
async function connected(Client: typeof MemcacheClient, address: string): Promise<MemcacheClient> {
  for (let attempt = 1; ; attempt++) {
    const server = { server: address, maxConnections: 1 };
    const client = new Client({ server, noDelay: true, cmdTimeout: TIMEOUT_MS });
    try {
      await client.version();
      return client;
    } catch (error) {
      client.shutdown();
      if (attempt === CONNECT_ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, CONNECT_PAUSE_MS));
    }
  }
}

/**
 * What the throughput and latency benchmarks ask of a store, and Rekindle as one. A peer
 * (redis-peer.ts) implements the same on its own client, so that both do the same work.
 */
import { type Client, connect, type Table } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import type { Durability } from '../src/rpc/messages.js';
import { waitUntilTouched } from './cluster-health.js';

export interface ObjectStore {
  /** With its durability: a figure without it means nothing. */
  readonly name: string;
  get(key: string): Promise<Uint8Array | undefined>;
  put(key: string, value: Buffer): Promise<void>;
  getMany(keys: readonly string[]): Promise<(Uint8Array | undefined)[]>;
  putMany(entries: readonly (readonly [string, Buffer])[]): Promise<void>;
  close(): Promise<void>;
}

const TOUCH_TIMEOUT_MS = 120_000;

export interface RekindleStoreOptions {
  servers: number;
  durability: Durability;
  memoryBytes: number;
}

export class RekindleStore implements ObjectStore {
  readonly name: string;
  readonly #cluster: LocalCluster;
  readonly #client: Client;
  readonly #table: Table;

  private constructor(name: string, cluster: LocalCluster, client: Client, table: Table) {
    this.name = name;
    this.#cluster = cluster;
    this.#client = client;
    this.#table = table;
  }

  static async start(options: RekindleStoreOptions): Promise<RekindleStore> {
    const cluster = await LocalCluster.start({ ...options, replicas: 3 });
    try {
      const client = await connect(cluster.url, { timeoutMs: 30_000 });
      await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
      const table = await client.createTable('bench', { span: options.servers });
      return new RekindleStore(`rekindle R=3 ${options.durability}`, cluster, client, table);
    } catch (error) {
      process.stderr.write(`${cluster.logTails()}\n`);
      await cluster.stop();
      throw error;
    }
  }

  get(key: string): Promise<Uint8Array | undefined> {
    return this.#table.get(key);
  }

  async put(key: string, value: Buffer): Promise<void> {
    await this.#table.put(key, value);
  }

  getMany(keys: readonly string[]): Promise<(Uint8Array | undefined)[]> {
    return this.#table.getMany(keys);
  }

  async putMany(entries: readonly (readonly [string, Buffer])[]): Promise<void> {
    await this.#table.putMany(entries);
  }

  async close(): Promise<void> {
    await this.#client.close();
    await this.#cluster.stop();
  }
}

/**
 * What the throughput and latency benchmarks ask of a store, and Rekindle as one. A peer
 * (redis-peer.ts) implements the same on its own client, so that both do the same work.
 */
import { type Client, connect, type Table } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { invariant } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { waitUntilTouched, waitUntilWhole } from './cluster-health.js';

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
const RESUME_TIMEOUT_MS = 30_000;

export interface RekindleStoreOptions {
  servers: number;
  replicas: number;
  durability: Durability;
  memoryBytes: number;
  /** Tablets of the table; default: one on each server. */
  span?: number;
  /** Put in front of the command of every process (`taskset`). */
  command?: readonly string[];
}

export type Writer = Pick<ObjectStore, 'name' | 'put' | 'putMany'>;

function nameOf({ replicas, durability }: RekindleStoreOptions): string {
  return replicas === 0 ? 'rekindle R=0' : `rekindle R=${replicas} ${durability}`;
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
    const { command = [], servers, span = servers } = options;
    const placement = () => ({ host: '127.0.0.1', command });
    const cluster = await LocalCluster.start({ ...options, placement });
    try {
      const client = await connect(cluster.url, { timeoutMs: 30_000 });
      await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
      const table = await client.createTable('bench', { span });
      return new RekindleStore(nameOf(options), cluster, client, table);
    } catch (error) {
      process.stderr.write(`${cluster.logTails()}\n`);
      await cluster.stop();
      throw error;
    }
  }

  /** Where the only server of this store is, and its table: for the native load generator. */
  async direct(): Promise<{ address: string; tableId: number }> {
    const { servers, tables } = await this.#client.status();
    const [server] = servers;
    const [table] = tables;
    invariant(servers.length === 1 && server !== undefined, 'one server has all keys');
    invariant(table !== undefined, 'the table was made at the start');
    return { address: server.address, tableId: table.tableId };
  }

  /** Another table of the same cluster, its tablets on so many masters. */
  async otherTable(name: string, span: number): Promise<Writer> {
    const table = await this.#client.createTable(name, { span });
    return {
      name: `${this.name}, ${span} masters`,
      put: async (key, value) => {
        await table.put(key, value);
      },
      putMany: async (entries) => {
        await table.putMany(entries);
      },
    };
  }

  /** Of all processes of the cluster. */
  get pids(): number[] {
    return this.#cluster.processes().flatMap(({ pid }) => pid ?? []);
  }

  /** All its processes stand still until `resume`: they take nothing from what is measured. */
  pause(): void {
    this.#cluster.pauseCoordinator();
    for (let index = 0; index < this.#cluster.serverCount; index++) {
      this.#cluster.pauseServer(index);
    }
  }

  async resume(): Promise<void> {
    const { serverCount } = this.#cluster;
    for (let index = 0; index < serverCount; index++) this.#cluster.resumeServer(index);
    this.#cluster.resumeCoordinator();
    await waitUntilWhole(this.#client, serverCount, RESUME_TIMEOUT_MS);
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

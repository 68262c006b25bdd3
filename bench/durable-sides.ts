/**
 * The stores of `rekindle bench durable`, each with three durable copies: Rekindle in both modes,
 * Redis with two replicas in two ways of waiting for them, etcd with three members.
 *
 * Rekindle's table has one tablet, as tables have unless more are asked for: one master and three
 * backups, beside one primary and two replicas. `spread` is the same with a tablet on each server,
 * all of them masters and backups of one another.
 *
 * Rule: a cluster of Rekindle that is not measured stands still (SIGSTOP), since its pings and
 * leases would take time from the others. Peers that are idle cost nothing worth stopping.
 */
import type { Durability } from '../src/rpc/messages.js';
import { EtcdStore } from './etcd-peer.js';
import { RekindleStore, type Writer } from './object-store.js';
import { RedisReplicas } from './redis-replicas.js';

export type SideName = Durability | 'spread' | 'redis-batched' | 'redis-each' | 'etcd';
export type DurablePeer = 'redis' | 'etcd';

export interface Side {
  readonly writer: Writer;
  /** Of all processes that serve it. */
  readonly pids: readonly number[];
  pause(): void;
  resume(): Promise<void>;
}

export interface SidesOptions {
  servers: number;
  memoryBytes: number;
  peers: readonly DurablePeer[];
}

const stillRuns = { pause: () => undefined, resume: async () => undefined };

/** All stores of one run. Rekindle's are paused. */
export class Sides {
  readonly all = new Map<SideName, Side>();
  readonly #stores: { close(): Promise<void> }[] = [];

  static async start(options: SidesOptions): Promise<Sides> {
    const sides = new Sides();
    try {
      for (const peer of options.peers) {
        if (peer === 'redis') await sides.#startRedis();
        else await sides.#startEtcd();
      }
      for (const mode of ['fsync', 'replicated'] as const)
        await sides.#startRekindle(mode, options);
    } catch (error) {
      await sides.close();
      throw error;
    }
    return sides;
  }

  async close(): Promise<void> {
    for (const { resume } of this.all.values()) await resume();
    for (const store of this.#stores) await store.close();
  }

  async #startRekindle(durability: Durability, options: SidesOptions): Promise<void> {
    const { servers, memoryBytes } = options;
    const settings = { servers, replicas: 3, memoryBytes, durability, span: 1 };
    const store = await RekindleStore.start(settings);
    this.#stores.push(store);
    const { pids } = store;
    const stop = { pause: () => store.pause(), resume: () => store.resume() };
    this.all.set(durability, { writer: store, pids, ...stop });
    if (durability === 'fsync') {
      const writer = await store.otherTable('spread', servers);
      this.all.set('spread', { writer, pids, ...stop });
    }
    store.pause();
  }

  async #startRedis(): Promise<void> {
    const redis = await RedisReplicas.start();
    this.#stores.push(redis);
    const { batched, each, pids } = redis;
    this.all.set('redis-batched', { writer: batched, pids, ...stillRuns });
    this.all.set('redis-each', { writer: each, pids, ...stillRuns });
  }

  async #startEtcd(): Promise<void> {
    const writer = await EtcdStore.start(3);
    this.#stores.push(writer);
    this.all.set('etcd', { writer, pids: writer.pids, ...stillRuns });
  }
}

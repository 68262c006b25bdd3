/**
 * The stores of `rekindle bench ycsb`, on equal terms. With replicas: Rekindle with one tablet,
 * hence one master and three backups, beside one Redis primary with two replicas and WAIT 2 behind
 * every write, in two ways of waiting. Without: one server of either, Redis without persistence.
 *
 * Rule: a cluster of Rekindle that is not measured stands still, as in durable-sides.ts.
 */
import type { Durability } from '../src/rpc/messages.js';
import { type ObjectStore, RekindleStore, type Writer } from './object-store.js';
import { RedisStore } from './redis-peer.js';
import { RedisReplicas } from './redis-replicas.js';
import { InsertedObjects } from './ycsb-workloads.js';

export type YcsbStore = Omit<ObjectStore, 'getMany' | 'close'>;

export interface Side {
  /** In the names of metrics. */
  readonly id: 'rekindle' | 'redis' | 'redis-batched' | 'redis-each';
  readonly store: YcsbStore;
  readonly objects: InsertedObjects;
  pause(): void;
  resume(): Promise<void>;
}

export interface SidesOptions {
  servers: number;
  replicas: 0 | 3;
  durability: Durability;
  memoryBytes: number;
  peer: 'redis' | undefined;
}

const stillRuns = { pause: () => undefined, resume: async () => undefined };

/** All stores of one run, Rekindle's first and paused; each to have so many objects. */
export class Sides {
  readonly all: Side[] = [];
  readonly #opened: { close(): Promise<void> }[] = [];
  readonly #loaded: number;

  private constructor(loaded: number) {
    this.#loaded = loaded;
  }

  static async start(options: SidesOptions, loaded: number): Promise<Sides> {
    const sides = new Sides(loaded);
    try {
      await sides.#startRekindle(options);
      if (options.peer === 'redis') await sides.#startRedis(options.replicas);
    } catch (error) {
      await sides.close();
      throw error;
    }
    return sides;
  }

  async close(): Promise<void> {
    for (const { resume } of this.all) await resume();
    for (const each of this.#opened) await each.close();
  }

  async #startRekindle({ replicas, memoryBytes, ...options }: SidesOptions): Promise<void> {
    const servers = replicas === 0 ? 1 : options.servers;
    const durability = replicas === 0 ? 'replicated' : options.durability;
    const settings = { servers, replicas, memoryBytes, durability, span: 1 };
    const store = await RekindleStore.start(settings);
    this.#opened.push(store);
    this.#add('rekindle', store, { pause: () => store.pause(), resume: () => store.resume() });
    store.pause();
  }

  async #startRedis(replicas: 0 | 3): Promise<void> {
    if (replicas === 0) {
      const store = await RedisStore.start();
      this.#opened.push(store);
      this.#add('redis', store, stillRuns);
      return;
    }
    const redis = await RedisReplicas.start();
    this.#opened.push(redis);
    const withReads = (writer: Writer): YcsbStore => ({
      name: writer.name,
      get: (key) => redis.get(key),
      put: (key, value) => writer.put(key, value),
      putMany: (entries) => writer.putMany(entries),
    });
    this.#add('redis-batched', withReads(redis.batched), stillRuns);
    this.#add('redis-each', withReads(redis.each), stillRuns);
  }

  #add(id: Side['id'], store: YcsbStore, stop: Pick<Side, 'pause' | 'resume'>): void {
    this.all.push({ id, store, objects: new InsertedObjects(this.#loaded), ...stop });
  }
}

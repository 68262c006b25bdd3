/**
 * The stores of `rekindle bench ycsb` and `latency`, on equal terms. With replicas: Rekindle with
 * one tablet, hence one master and three backups, beside one Redis primary with two replicas and
 * WAIT 2 behind every write, in two ways of waiting, and etcd with three members. Without: one
 * server of each, Redis without persistence.
 *
 * Rule: a cluster of Rekindle that is not measured stands still, as in durable-sides.ts.
 */
import { RekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { EtcdStore } from './etcd-peer.js';
import { type ObjectStore, RekindleStore, type Writer } from './object-store.js';
import { type PeerName, startPeer } from './peers.js';
import { RedisReplicas } from './redis-replicas.js';
import type { RespPeer } from './redis-server.js';

export type MeasuredStore = Omit<ObjectStore, 'getMany' | 'close'>;

export interface Side {
  /** In the names of metrics: a peer's name, and how its client waits if there are two. */
  readonly id: 'rekindle' | PeerName | `${RespPeer}-batched` | `${RespPeer}-each`;
  /** null: Rekindle. */
  readonly peer: PeerName | null;
  readonly store: MeasuredStore;
  pause(): void;
  resume(): Promise<void>;
}

export interface SidesOptions {
  servers: number;
  replicas: 0 | 3;
  durability: Durability;
  memoryBytes: number;
  peers: readonly PeerName[];
  /** Put in front of the command of every server (`taskset`). */
  command?: readonly string[];
}

const stillRuns = { pause: () => undefined, resume: async () => undefined };

/** All stores of one run, Rekindle's first and paused. */
export class Sides {
  readonly all: Side[] = [];
  readonly #opened: { close(): Promise<void> }[] = [];

  static async start(options: SidesOptions): Promise<Sides> {
    const sides = new Sides();
    try {
      await sides.#startRekindle(options);
      for (const peer of options.peers) {
        if (options.replicas === 0) await sides.#startAlone(peer, options);
        else await sides.#startReplicated(peer);
      }
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

  async #startRekindle({ replicas, memoryBytes, command, ...options }: SidesOptions) {
    const servers = replicas === 0 ? 1 : options.servers;
    const durability = replicas === 0 ? 'replicated' : options.durability;
    const settings = { servers, replicas, memoryBytes, durability, span: 1 };
    const store = await RekindleStore.start({ ...settings, command: command ?? [] });
    this.#opened.push(store);
    const stop = { pause: () => store.pause(), resume: () => store.resume() };
    this.all.push({ id: 'rekindle', peer: null, store, ...stop });
    store.pause();
  }

  async #startAlone(peer: PeerName, { memoryBytes, command }: SidesOptions): Promise<void> {
    const { store } = await startPeer(peer, memoryBytes, command);
    this.#opened.push(store);
    this.all.push({ id: peer, peer, store, ...stillRuns });
  }

  async #startReplicated(peer: PeerName): Promise<void> {
    if (peer === 'memcached') {
      const problem = 'memcached has no replicas to compare with; write --replicas 0';
      throw new RekindleError('INVALID_ARGUMENT', problem);
    }
    if (peer === 'etcd') {
      const store = await EtcdStore.start(3);
      this.#opened.push(store);
      this.all.push({ id: peer, peer, store, ...stillRuns });
      return;
    }
    const redis = await RedisReplicas.start(peer);
    this.#opened.push(redis);
    const withReads = (writer: Writer): MeasuredStore => ({
      name: writer.name,
      get: (key) => redis.get(key),
      put: (key, value) => writer.put(key, value),
      putMany: (entries) => writer.putMany(entries),
    });
    const { batched, each } = redis;
    this.all.push({ id: `${peer}-batched`, peer, store: withReads(batched), ...stillRuns });
    this.all.push({ id: `${peer}-each`, peer, store: withReads(each), ...stillRuns });
  }
}

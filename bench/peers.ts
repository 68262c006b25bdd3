/**
 * The peers of the benchmarks that measure one server without replicas, by name: `--peer`. Each is
 * started as its own documentation says it is fastest, with nothing on a disk where that can be.
 */
import { EtcdStore } from './etcd-peer.js';
import { MemcachedStore } from './memcached-peer.js';
import type { ObjectStore } from './object-store.js';
import { RedisStore } from './redis-peer.js';
import type { WireLoad } from './wire-load.js';

export type PeerName = 'redis' | 'valkey' | 'memcached' | 'etcd';

export interface Peer {
  store: ObjectStore;
  /** host:port. */
  address: string;
  /** Of the native load generator; null: it does not speak it. */
  dialect: WireLoad['dialect'] | null;
}

/** As a ratio to it is named where a client library is measured: `get-256-vs-ioredis`. */
export function clientOf(peer: PeerName): string {
  return peer === 'redis' ? 'ioredis' : peer;
}

/** `before` is put in front of the server's command (`taskset`). */
export async function startPeer(
  name: PeerName,
  memoryBytes: number,
  before: readonly string[] = [],
): Promise<Peer> {
  switch (name) {
    case 'redis':
    case 'valkey': {
      const store = await RedisStore.start(before, name);
      return { store, address: store.address, dialect: 'resp' };
    }
    case 'memcached': {
      const store = await MemcachedStore.start(memoryBytes, before);
      return { store, address: store.address, dialect: 'memcached' };
    }
    case 'etcd': {
      const store = await EtcdStore.start(1, before);
      return { store, address: store.address, dialect: null };
    }
  }
}

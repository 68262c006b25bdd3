/**
 * What `rekindle bench throughput` measures: each work on one side for one round. A side that
 * cannot do a work has no figure for it, never a made-up one.
 */
import { percentile, repeatFor } from './concurrency.js';
import type { Dataset } from './dataset.js';
import type { ObjectStore } from './object-store.js';
import type { Pinning } from './pinning.js';
import { runWireLoad, type WireLoad } from './wire-load.js';

/** One line of the table. */
export interface Work {
  name: string;
  unit: 'operations/s' | 'µs' | 'GB/s';
  /** Metric of the figure; those of peers end with their names. */
  metric: string;
  /** The least of the figure that is wanted. */
  target?: number;
  /**
   * Metric of the ratio to a peer, before `-vs-`, and the least (of latencies: the most) that is
   * wanted of it. `of` is what is compared: client libraries too, or servers alone.
   */
  ratio?: { metric: string; target: number; of: 'clients' | 'servers' };
  measure(side: Side, round: Round): Promise<number | null>;
}

export interface Side {
  name: 'rekindle' | 'redis' | 'valkey' | 'memcached' | 'etcd';
  store: ObjectStore;
  /** host:port. */
  address: string;
  /** For the native load generator; null: it does not speak what the server does. */
  wire: Pick<WireLoad, 'dialect' | 'tableId'> | null;
}

export interface Round {
  dataset: Dataset;
  ms: number;
  random: () => number;
  binary: string;
  pinning: Pinning;
}

export const VALUE_BYTES = 100;
const BATCH = 100;
const MIB = 2 ** 20;
/** Fewer than the memory has room for: they are overwritten in turn. */
const LARGE_VALUES = 32;
const LARGE_IN_FLIGHT = 4;
/** Until malloc keeps such pieces, and V8's limit of the heap has grown with their bytes. */
const LARGE_WARM_UP_MS = 500;

/** Resolves with how many objects it was. */
export type Operation = (
  store: ObjectStore,
  round: Pick<Round, 'dataset' | 'random'>,
) => Promise<number>;

function keyOf({ dataset, random }: Pick<Round, 'dataset' | 'random'>): string {
  return dataset.key(random() % dataset.count);
}

export const getOne: Operation = async (store, round) => {
  await store.get(keyOf(round));
  return 1;
};

/** Made once: the client's time is measured, not that of making values. */
const value = Buffer.alloc(VALUE_BYTES, 'v');
const largeValue = Buffer.alloc(MIB, 'v');

export const putOne: Operation = async (store, round) => {
  await store.put(keyOf(round), value);
  return 1;
};

export const getBatch: Operation = async (store, round) => {
  await store.getMany(Array.from({ length: BATCH }, () => keyOf(round)));
  return BATCH;
};

export const putBatch: Operation = async (store, round) => {
  await store.putMany(Array.from({ length: BATCH }, () => [keyOf(round), value]));
  return BATCH;
};

function rateOf(inFlight: number, operation: Operation): Work['measure'] {
  return async ({ store }, round) => {
    const run = () => operation(store, round);
    await repeatFor(round.ms / 4, inFlight, run); // warms caches and the JIT
    return (await repeatFor(round.ms, inFlight, run)).perSecond;
  };
}

/** A percentile of gets one at a time, in µs. */
function latencyOf(wanted: number): Work['measure'] {
  return async ({ store }, round) => {
    await repeatFor(round.ms / 4, 1, () => getOne(store, round));
    const times: number[] = [];
    await repeatFor(round.ms, 1, async () => {
      const start = performance.now();
      await getOne(store, round);
      times.push((performance.now() - start) * 1000);
      return 1;
    });
    return percentile(times, wanted);
  };
}

function largeRate(operation: (store: ObjectStore, key: string) => Promise<unknown>) {
  return async ({ store }: Side, { ms }: Round): Promise<number> => {
    const keys = Array.from({ length: LARGE_VALUES }, (_, i) => `large:${i}`);
    for (const key of keys) await store.put(key, largeValue);
    const run = async (sequence: number): Promise<number> => {
      await operation(store, keys[sequence % LARGE_VALUES] ?? '');
      return MIB;
    };
    await repeatFor(LARGE_WARM_UP_MS, LARGE_IN_FLIGHT, run);
    return (await repeatFor(ms, LARGE_IN_FLIGHT, run)).perSecond / 1e9;
  };
}

function wireRate(load: Pick<WireLoad, 'work' | 'connections' | 'operations'>): Work['measure'] {
  return async ({ address, wire }, { dataset, ms, binary, pinning }) => {
    if (wire === null) return null;
    const { count: objects, valueBytes } = dataset;
    const all = { ...load, ...wire, address, objects, valueBytes, ms };
    return (await runWireLoad(binary, all, pinning.client)).perSecond;
  };
}

const rate = 'operations/s';

function clientRate(
  id: string,
  inFlight: number,
  operation: Operation,
  target: number,
): Omit<Work, 'name'> {
  return {
    ...{ unit: rate, metric: `${id}-ops`, measure: rateOf(inFlight, operation) },
    ratio: { metric: id, target, of: 'clients' },
  };
}

export const works: readonly Work[] = [
  { name: 'get, 256 in flight', ...clientRate('get-256', 256, getOne, 3) },
  { name: 'put, 256 in flight', ...clientRate('put-256', 256, putOne, 2.5) },
  { name: 'getMany 100, 16 in flight', ...clientRate('get-many-100', 16, getBatch, 2) },
  { name: 'putMany 100, 16 in flight', ...clientRate('put-many-100', 16, putBatch, 2) },
  {
    ...{ name: 'get, one at a time, p50', unit: 'µs', metric: 'get-1-p50-us' },
    measure: latencyOf(50),
    ratio: { metric: 'get-1-p50', target: 1, of: 'clients' },
  },
  {
    ...{ name: 'get, one at a time, p99', unit: 'µs', metric: 'get-1-p99-us' },
    measure: latencyOf(99),
    ratio: { metric: 'get-1-p99', target: 1, of: 'clients' },
  },
  {
    ...{ name: 'native reads, 64 a message', unit: rate, metric: 'server-reads-64' },
    measure: wireRate({ work: 'read', connections: 8, operations: 64 }),
    target: 3e6,
  },
  {
    ...{ name: 'native writes, 64 a message', unit: rate, metric: 'server-writes-64' },
    measure: wireRate({ work: 'write', connections: 8, operations: 64 }),
    target: 2.5e6,
  },
  {
    ...{ name: 'native reads, 50 connections', unit: rate, metric: 'server-c50-ops' },
    measure: wireRate({ work: 'read', connections: 50, operations: 1 }),
    ratio: { metric: 'server-c50', target: 1.5, of: 'servers' },
  },
  {
    ...{ name: 'native writes, 50 connections', unit: rate, metric: 'server-c50-writes-ops' },
    measure: wireRate({ work: 'write', connections: 50, operations: 1 }),
    ratio: { metric: 'server-c50-writes', target: 1.5, of: 'servers' },
  },
  {
    ...{ name: 'put of 1 MiB', unit: 'GB/s', metric: 'value-1mib-put-gbps', target: 1 },
    measure: largeRate((store, key) => store.put(key, largeValue)),
  },
  {
    ...{ name: 'get of 1 MiB', unit: 'GB/s', metric: 'value-1mib-get-gbps', target: 1 },
    measure: largeRate((store, key) => store.get(key)),
  },
];

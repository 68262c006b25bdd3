/**
 * The workloads of YCSB (Cooper et al., SoCC 2010) as data, and the operations that they draw:
 * which kind, on which object. Who does them and takes the time is ycsb.ts.
 *
 * Rule: the same seed draws the same operations for every store, as far as inserts are acknowledged
 * at the same pace. Read are only objects that are there.
 */
import { invariant } from '../src/rpc/errors.js';
import { shuffled, Zipfian } from './zipfian.js';

export type WorkloadName = 'A' | 'B' | 'C' | 'D' | 'E' | 'F';
export type OperationKind = 'read' | 'update' | 'insert' | 'read-modify-write';

export interface Workload {
  name: WorkloadName;
  what: string;
  /** What is not a read, and how many percent of all operations are it. */
  other: Exclude<OperationKind, 'read'>;
  otherPercent: number;
  /** Zipfian over all objects, or over how long ago they were inserted. */
  popular: 'some' | 'latest';
}

/**
 * In the order that YCSB asks for: D, which inserts, comes last. E, scans over ranges of keys, is
 * not here: Rekindle has no order of keys.
 */
export const WORKLOADS: readonly Workload[] = [
  {
    ...{ name: 'A', what: 'reads 50, updates 50', popular: 'some' },
    ...{ other: 'update', otherPercent: 50 },
  },
  {
    ...{ name: 'B', what: 'reads 95, updates 5', popular: 'some' },
    ...{ other: 'update', otherPercent: 5 },
  },
  { ...{ name: 'C', what: 'reads', popular: 'some' }, ...{ other: 'update', otherPercent: 0 } },
  {
    ...{ name: 'F', what: 'reads 50, read-modify-writes 50', popular: 'some' },
    ...{ other: 'read-modify-write', otherPercent: 50 },
  },
  {
    ...{ name: 'D', what: 'reads of the latest 95, inserts 5', popular: 'latest' },
    ...{ other: 'insert', otherPercent: 5 },
  },
];

/** The objects of one store: [0, count) are there, some behind them are being inserted. */
export class InsertedObjects {
  #count: number;
  #next: number;
  /** Acknowledged before one with a lower number. */
  readonly #early = new Set<number>();

  constructor(loaded: number) {
    this.#count = loaded;
    this.#next = loaded;
  }

  get count(): number {
    return this.#count;
  }

  /** The number of an object to insert. */
  begin(): number {
    return this.#next++;
  }

  acknowledge(index: number): void {
    invariant(index >= this.#count && index < this.#next, 'an insert is acknowledged once');
    this.#early.add(index);
    while (this.#early.delete(this.#count)) this.#count += 1;
  }
}

/** Which of the loaded objects are popular: by Zipf's law, spread over all keys. */
export class Popularity {
  readonly #zipfian: Zipfian;
  readonly #order: Uint32Array;

  constructor(loaded: number, seed: number) {
    this.#zipfian = new Zipfian(loaded);
    this.#order = shuffled(loaded, seed);
  }

  index(uniform: number): number {
    return this.#order[this.#zipfian.rank(uniform)] as number;
  }
}

export interface Operation {
  kind: OperationKind;
  index: number;
}

/** Operations of one workload on one store, one after the other. */
export class OperationStream {
  readonly #workload: Workload;
  readonly #objects: InsertedObjects;
  readonly #popularity: Popularity;
  readonly #latest: Zipfian;
  readonly #random: () => number;

  /** `random`: whole numbers below 2^32. */
  constructor(
    workload: Workload,
    objects: InsertedObjects,
    popularity: Popularity,
    random: () => number,
  ) {
    this.#workload = workload;
    this.#objects = objects;
    this.#popularity = popularity;
    this.#latest = new Zipfian(objects.count);
    this.#random = random;
  }

  next(): Operation {
    const { other, otherPercent } = this.#workload;
    const kind = this.#random() % 100 < otherPercent ? other : 'read';
    return { kind, index: kind === 'insert' ? this.#objects.begin() : this.#existing() };
  }

  #existing(): number {
    const uniform = this.#random() / 2 ** 32;
    if (this.#workload.popular === 'some') return this.#popularity.index(uniform);
    const { count } = this.#objects;
    this.#latest.growTo(count);
    return count - 1 - this.#latest.rank(uniform);
  }
}

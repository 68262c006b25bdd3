/**
 * The load of `rekindle bench soak`: reads, writes, removals, batches and large values on a set of
 * objects that stays the same. How large an object is follows from its number, and what is removed
 * is written again by the same operation, so that live data is constant but for what is under way.
 *
 * Rule: errors that the SDK throws on purpose are counted and the load goes on; anything else is a
 * bug and ends it. At which rate operations begin is the caller's business.
 */
import type { Table } from '../src/client/index.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import { forEachBatch } from './concurrency.js';
import { randomStream } from './dataset.js';

export type SoakKind =
  | 'get'
  | 'put'
  | 'replace'
  | 'get-many'
  | 'put-many'
  | 'get-large'
  | 'put-large';

/** Of 1,000 operations. */
export const SOAK_MIX: readonly (readonly [SoakKind, number])[] = [
  ['get', 500],
  ['put', 400],
  ['replace', 40],
  ['get-many', 20],
  ['put-many', 20],
  ['get-large', 10],
  ['put-large', 10],
];

const OF = 1_000;
const BATCH = 50;
const SMALL_OBJECTS = 20_000;
const SMALL_BYTES_MIN = 100;
const SMALL_BYTES_MAX = 2_000;
const LARGE_OBJECTS = 64;
const LARGE_BYTES = 256 * 1024;
const WRITES_AT_ONCE = 8;
/** Made once: what is looked for is memory that the SDK keeps, not that of making values. */
const bytes = Buffer.alloc(LARGE_BYTES, 'v');

/** `draw`: a whole number, 0 or more. */
export function kindOf(draw: number): SoakKind {
  let left = draw % OF;
  for (const [kind, share] of SOAK_MIX) {
    if (left < share) return kind;
    left -= share;
  }
  invariant(false, 'the shares of the mix make up the whole');
}

export function smallBytes(index: number): number {
  const range = SMALL_BYTES_MAX - SMALL_BYTES_MIN + 1;
  return SMALL_BYTES_MIN + ((Math.imul(index, 0x9e3779b1) >>> 0) % range);
}

function smallEntry(index: number): [string, Buffer] {
  return [`small:${index}`, bytes.subarray(0, smallBytes(index))];
}

function largeKey(index: number): string {
  return `large:${index % LARGE_OBJECTS}`;
}

export class SoakLoad {
  readonly errors = new Map<string, number>();
  readonly #table: Table;
  readonly #random: () => number;

  constructor(table: Table, seed: number) {
    this.#table = table;
    this.#random = randomStream(seed);
  }

  get errorCount(): number {
    return [...this.errors.values()].reduce((sum, count) => sum + count, 0);
  }

  /** Writes all objects once. Its errors are thrown. */
  async fill(): Promise<void> {
    await forEachBatch(SMALL_OBJECTS, BATCH, WRITES_AT_ONCE, async (from, to) => {
      const entries = Array.from({ length: to - from }, (_, each) => smallEntry(from + each));
      await this.#table.putMany(entries);
    });
    await forEachBatch(LARGE_OBJECTS, 1, WRITES_AT_ONCE, async (index) => {
      await this.#table.put(largeKey(index), bytes);
    });
  }

  /** One operation, drawn from the mix. */
  async next(): Promise<void> {
    const kind = kindOf(this.#random());
    try {
      await this.#perform(kind);
    } catch (error) {
      if (!(error instanceof RekindleError)) throw error;
      const what = `${kind}: ${error.code} (${error.outcome})`;
      this.errors.set(what, (this.errors.get(what) ?? 0) + 1);
    }
  }

  async #perform(kind: SoakKind): Promise<void> {
    const table = this.#table;
    const [key, value] = this.#small();
    const batch = (): [string, Buffer][] => Array.from({ length: BATCH }, () => this.#small());
    if (kind === 'get') await table.get(key);
    else if (kind === 'put') await table.put(key, value);
    else if (kind === 'replace') {
      await table.delete(key);
      await table.put(key, value);
    } else if (kind === 'get-many') await table.getMany(batch().map(([each]) => each));
    else if (kind === 'put-many') await table.putMany(batch());
    else if (kind === 'get-large') await table.get(largeKey(this.#random()));
    else await table.put(largeKey(this.#random()), bytes);
  }

  #small(): [string, Buffer] {
    return smallEntry(this.#random() % SMALL_OBJECTS);
  }
}

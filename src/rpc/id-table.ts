/**
 * What waits for an answer, by an id that this table gives out: calls of a link, writes of a
 * backup. Ids ascend from 1 and begin anew behind 2^32 - 1; an id in use is never given out again.
 *
 * Why no `Map`: at each growth or clean-up V8 makes a new table of a Map and lets the old one point
 * to it. Once such a table has become old, those that follow are kept alive by it, with all that
 * was in them, until the next full collection: every short-lived call is copied and promoted. With
 * 64 in flight that took three quarters of the processor, in pauses of 10 ms.
 *
 * Invariant: at least half of the slots are free, so that an id with a free slot is near.
 */
import { invariant } from './errors.js';

const ID_MAX = 0xffff_ffff;
const SLOTS_MIN = 16;
const FREE = 0;

export class IdTable<T> {
  /** The id with `id & mask` = index; FREE: none. */
  #ids: number[] = new Array<number>(SLOTS_MIN).fill(FREE);
  #values: (T | undefined)[] = new Array<T | undefined>(SLOTS_MIN).fill(undefined);
  #mask = SLOTS_MIN - 1;
  #size = 0;
  #idLast = 0;

  get size(): number {
    return this.#size;
  }

  /** An id to `set`, or to let go. */
  nextId(): number {
    if (this.#size * 2 > this.#mask) this.#grow();
    let id = this.#idLast;
    do id = id === ID_MAX ? 1 : id + 1;
    while (this.#ids[id & this.#mask] !== FREE);
    this.#idLast = id;
    return id;
  }

  /** `id` is the newest of `nextId`. */
  set(id: number, value: T): void {
    invariant(id === this.#idLast, 'an id is set before the next one is made');
    const slot = id & this.#mask;
    invariant(this.#ids[slot] === FREE, 'the slot of a new id is free');
    this.#ids[slot] = id;
    this.#values[slot] = value;
    this.#size += 1;
  }

  get(id: number): T | undefined {
    const slot = id & this.#mask;
    return id !== FREE && this.#ids[slot] === id ? this.#values[slot] : undefined;
  }

  delete(id: number): boolean {
    const slot = id & this.#mask;
    if (id === FREE || this.#ids[slot] !== id) return false;
    this.#ids[slot] = FREE;
    this.#values[slot] = undefined;
    this.#size -= 1;
    return true;
  }

  clear(): void {
    this.#ids.fill(FREE);
    this.#values.fill(undefined);
    this.#size = 0;
  }

  /** In the order of their ids. */
  values(): T[] {
    const used = this.#ids.filter((id) => id !== FREE).sort((a, b) => a - b);
    return used.map((id) => this.#values[id & this.#mask] as T);
  }

  /** Two ids with different slots have different ones in the larger table, too. */
  #grow(): void {
    const [ids, values, slots] = [this.#ids, this.#values, (this.#mask + 1) * 2];
    this.#ids = new Array<number>(slots).fill(FREE);
    this.#values = new Array<T | undefined>(slots).fill(undefined);
    this.#mask = slots - 1;
    for (const [slot, id] of ids.entries()) {
      if (id === FREE) continue;
      this.#ids[id & this.#mask] = id;
      this.#values[id & this.#mask] = values[slot];
    }
  }
}

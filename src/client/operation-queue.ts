/**
 * A first-in, first-out queue of operations that may end while they wait: ended ones are skipped,
 * and cleared out before they become the larger part, so that memory follows what lives.
 */
import type { Operation } from './operation.js';

const COMPACT_AT_MIN = 4_096;

export class OperationQueue {
  #items: Operation[] = [];
  #head = 0;
  #compactAt = COMPACT_AT_MIN;

  push(operation: Operation): void {
    if (this.#items.length >= this.#compactAt) {
      this.#items = this.#items.slice(this.#head).filter(({ ended }) => !ended);
      this.#head = 0;
      this.#compactAt = Math.max(COMPACT_AT_MIN, this.#items.length * 2);
    }
    this.#items.push(operation);
  }

  /** The first that has not ended, left in place. */
  peek(): Operation | undefined {
    while (this.#head < this.#items.length) {
      const operation = this.#items[this.#head]!;
      if (!operation.ended) return operation;
      this.#head += 1;
    }
    if (this.#head > 0) {
      this.#items = [];
      this.#head = 0;
    }
    return undefined;
  }

  shift(): Operation | undefined {
    const operation = this.peek();
    if (operation !== undefined) this.#head += 1;
    return operation;
  }
}

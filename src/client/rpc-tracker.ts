/**
 * Numbers the mutations of one client and knows how far all of them have ended: rpc ids are given
 * out from 1 up, and `ackId` is the largest n so that no id <= n will ever be asked about again.
 *
 * Invariants: ackId < nextId <= ackId + 1 + window; an id is finished once. When the window is
 * full no id is given out: masters need not remember more than `window` results of a client.
 */
import { invariant } from '../rpc/errors.js';

export const RPC_WINDOW = 16_384;

export class RpcTracker {
  readonly #window: number;
  /** finished[id % window] for ids in (ackId, nextId). */
  readonly #finished: Uint8Array;
  #nextId = 1;
  #ackId = 0;

  constructor(window: number = RPC_WINDOW) {
    this.#window = window;
    this.#finished = new Uint8Array(window);
  }

  get ackId(): number {
    return this.#ackId;
  }

  get outstanding(): number {
    return this.#nextId - 1 - this.#ackId;
  }

  /** How many ids may be given out. */
  get room(): number {
    return this.#window - this.outstanding;
  }

  next(): number {
    invariant(this.room > 0, 'the window of rpc ids has room');
    const id = this.#nextId++;
    this.#finished[id % this.#window] = 0;
    return id;
  }

  finish(id: number): void {
    invariant(id > this.#ackId && id < this.#nextId, `rpc id ${id} is outstanding`);
    invariant(this.#finished[id % this.#window] === 0, `rpc id ${id} is finished once`);
    this.#finished[id % this.#window] = 1;
    while (
      this.#ackId + 1 < this.#nextId &&
      this.#finished[(this.#ackId + 1) % this.#window] === 1
    ) {
      this.#ackId += 1;
    }
  }
}

/**
 * What waits to be sent to one master, and which of it makes the next message: a lane of reads, and
 * a lane of writes with the reads that keep behind them. A pure state machine; a session sends.
 *
 * A message is answered as a whole, and when its writes are durable. Hence two rules:
 * - Reads do not wait for writes of other keys: they travel by themselves, and before writes. A
 *   read of a key whose write is not answered yet would make all of its message wait, so it goes
 *   with the writes.
 * - Operations of one key leave in their order: a read goes with the writes while an operation of
 *   its key waits there, and a write waits until all reads that came before it have left. Only what
 *   is sent again has lost its place.
 *
 * Keys are told apart by a few bits of their hash: two that look alike cost a read its speed.
 */
import { EXECUTE_HEADER_BYTES } from '../rpc/execute-codec.js';
import type { Operation } from './operation.js';
import { OperationQueue } from './operation-queue.js';

export const MESSAGE_OPERATIONS_MAX = 1_024;
/** A message goes over it only if a single operation does. */
const MESSAGE_OPERATION_BYTES_MAX = 1_048_576;
/** Few, so that load makes messages larger instead of more; enough to keep a master busy. */
export const MESSAGES_IN_FLIGHT_MAX = 4;
/** A power of two. All stamps have to stay in the fastest cache: each write sets some. */
const BUCKETS = 4_096;

export interface Message {
  readonly lane: 'reads' | 'writes';
  readonly operations: readonly Operation[];
  readonly bytes: number;
}

export class OperationLanes {
  readonly #reads = new OperationQueue();
  /** Mutations that have an rpc id, which others may wait for: first in the lane of writes. */
  readonly #again = new OperationQueue();
  readonly #writes = new OperationQueue();
  #readsInFlight = 0;
  /** Messages of writes, oldest first. */
  readonly #writesInFlight: Message[] = [];
  /** Of the newest operation; each has its own. */
  #place = 0;
  /** Of `#writes` all up to here have left, and all of `#again` before them. */
  #writesTakenTo = 0;
  /**
   * For each bucket of keys two places, modulo 2^32: of its newest operation in the lane of writes,
   * reads included, and of its newest mutation. An old one that looks new makes a read slow, no
   * more. Null while there are only reads.
   */
  #stamps: Uint32Array | null = null;
  readonly #idsFree: () => number;

  /** `idsFree`: how many mutations may get an rpc id now; the others wait in their place. */
  constructor(idsFree: () => number) {
    this.#idsFree = idsFree;
  }

  get empty(): boolean {
    return this.#reads.peek() === undefined && this.#firstWrite === undefined;
  }

  get messagesInFlight(): number {
    return this.#readsInFlight + this.#writesInFlight.length;
  }

  /** Whether there is a next message. */
  get ready(): boolean {
    return this.#readsReady || this.#writesReady;
  }

  push(operation: Operation): void {
    this.#place += 1;
    operation.place = this.#place;
    const { isMutation } = operation;
    if (!isMutation && !this.#keepsBehindWrites(operation)) {
      this.#reads.push(operation);
      return;
    }
    this.#stamps ??= new Uint32Array(BUCKETS * 2);
    const at = stampsOf(operation);
    this.#stamps[at] = this.#place;
    if (isMutation) this.#stamps[at + 1] = this.#place;
    if (operation.rpcId === 0) this.#writes.push(operation);
    else this.#again.push(operation);
  }

  /** Takes the next message, which is in flight until `ended`; null: there is none for now. */
  next(): Message | null {
    if (this.#readsReady) {
      this.#readsInFlight += 1;
      return take('reads', this.#reads, Number.POSITIVE_INFINITY, 0);
    }
    if (!this.#writesReady) return null;
    const again = this.#again.peek() !== undefined;
    const queue = again ? this.#again : this.#writes;
    const message = take('writes', queue, this.#firstReadPlace, this.#idsFree());
    this.#writesInFlight.push(message);
    if (!again) this.#writesTakenTo = message.operations.at(-1)!.place;
    return message;
  }

  /** A message was answered or lost. */
  ended(message: Message): void {
    if (message.lane === 'reads') this.#readsInFlight -= 1;
    else this.#writesInFlight.splice(this.#writesInFlight.indexOf(message), 1);
  }

  /** Takes one without sending it; those of one key in their order. */
  shift(): Operation | undefined {
    return this.#reads.shift() ?? this.#again.shift() ?? this.#writes.shift();
  }

  get #firstWrite(): Operation | undefined {
    return this.#again.peek() ?? this.#writes.peek();
  }

  get #firstReadPlace(): number {
    return this.#reads.peek()?.place ?? Number.POSITIVE_INFINITY;
  }

  get #readsReady(): boolean {
    return this.#readsInFlight < MESSAGES_IN_FLIGHT_MAX && this.#reads.peek() !== undefined;
  }

  get #writesReady(): boolean {
    if (this.#writesInFlight.length >= MESSAGES_IN_FLIGHT_MAX) return false;
    const first = this.#firstWrite;
    if (first === undefined || first.place > this.#firstReadPlace) return false;
    return !wantsId(first) || this.#idsFree() > 0;
  }

  #keepsBehindWrites(read: Operation): boolean {
    if (this.#stamps === null) return false;
    const at = stampsOf(read);
    if (this.#age(this.#stamps[at]!) < this.#place - this.#writesTakenTo) return true;
    const oldest = this.#writesInFlight[0]?.operations[0];
    return oldest !== undefined && this.#age(this.#stamps[at + 1]!) <= this.#place - oldest.place;
  }

  #age(stamp: number): number {
    return (this.#place - stamp) >>> 0;
  }
}

function stampsOf(operation: Operation): number {
  return (operation.slot & (BUCKETS - 1)) * 2;
}

function wantsId(operation: Operation): boolean {
  return operation.isMutation && operation.rpcId === 0;
}

/** The first of a queue that has some: what makes a message, is before a place, finds an rpc id. */
function take(
  lane: Message['lane'],
  queue: OperationQueue,
  beforePlace: number,
  idsFree: number,
): Message {
  const operations: Operation[] = [];
  let bytes = EXECUTE_HEADER_BYTES;
  let ids = 0;
  while (operations.length < MESSAGE_OPERATIONS_MAX) {
    const operation = queue.peek();
    if (operation === undefined || operation.place > beforePlace) break;
    const bytesWithIt = bytes + operation.bytes;
    if (operations.length > 0 && bytesWithIt > MESSAGE_OPERATION_BYTES_MAX) break;
    if (wantsId(operation)) ids += 1;
    if (ids > idsFree) break;
    bytes = bytesWithIt;
    queue.shift();
    operations.push(operation);
  }
  return { lane, operations, bytes };
}

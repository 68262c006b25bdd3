/**
 * Replies of EXECUTE messages that wait until the log is durable up to their position.
 *
 * Released strictly in the order of execution, so a client never sees an answer overtake an
 * earlier one of the same master. Bounded in replies and bytes; the owner asks `full` *before* it
 * executes, since what has been appended can no longer be refused. Pure: time comes as argument.
 */
import { RekindleError } from '../rpc/errors.js';

/** The part of a BinaryCall that outlives its handler. */
export interface WaitingCall {
  readonly deadlineMs: number;
  reply(body: Uint8Array): void;
  fail(error: RekindleError): void;
}

export interface ReplyQueueLimits {
  repliesMax: number;
  bytesMax: number;
}

interface Entry {
  call: WaitingCall;
  body: Uint8Array;
  position: number;
  /** Its deadline passed; it was told so and only keeps its place. */
  failed: boolean;
}

export const replyQueueLimits: ReplyQueueLimits = {
  repliesMax: 65_536,
  bytesMax: 64 * 1024 * 1024,
};

export class ReplyQueue {
  readonly #limits: ReplyQueueLimits;
  #entries: Entry[] = [];
  /** Entries below this index are released; compacted when they are the larger half. */
  #first = 0;
  #bytes = 0;
  #nextDeadlineMs = Number.POSITIVE_INFINITY;

  constructor(limits: ReplyQueueLimits = replyQueueLimits) {
    this.#limits = limits;
  }

  get length(): number {
    return this.#entries.length - this.#first;
  }

  get bytes(): number {
    return this.#bytes;
  }

  get full(): boolean {
    return this.length >= this.#limits.repliesMax || this.#bytes >= this.#limits.bytesMax;
  }

  /** Keeps `body`, which must not change any more. */
  push(call: WaitingCall, body: Uint8Array, position: number): void {
    this.#entries.push({ call, body, position, failed: false });
    this.#bytes += body.length;
    this.#nextDeadlineMs = Math.min(this.#nextDeadlineMs, call.deadlineMs);
  }

  /** Sends all replies from the oldest on whose position is durable. Returns how many. */
  release(durablePosition: number): number {
    let released = 0;
    for (; this.#first < this.#entries.length; this.#first += 1) {
      const entry = this.#entries[this.#first];
      if (entry === undefined || entry.position > durablePosition) break;
      this.#bytes -= entry.body.length;
      if (!entry.failed) entry.call.reply(entry.body);
      released += 1;
    }
    if (this.#first === this.#entries.length) this.#entries = [];
    else if (this.#first > this.#entries.length / 2) this.#entries.splice(0, this.#first);
    else return released;
    this.#first = 0;
    return released;
  }

  /** Fails those whose caller has stopped to wait: what they wrote may become durable yet. */
  expire(nowMs: number): void {
    if (nowMs < this.#nextDeadlineMs) return;
    this.#nextDeadlineMs = Number.POSITIVE_INFINITY;
    for (let index = this.#first; index < this.#entries.length; index += 1) {
      const entry = this.#entries[index];
      if (entry === undefined || entry.failed) continue;
      if (entry.call.deadlineMs <= nowMs) {
        this.#failEntry(entry, new RekindleError('TIMEOUT', 'not durable before the deadline'));
      } else {
        this.#nextDeadlineMs = Math.min(this.#nextDeadlineMs, entry.call.deadlineMs);
      }
    }
  }

  /** Fails all that wait; their outcome is unknown. */
  failAll(error: RekindleError): void {
    for (let index = this.#first; index < this.#entries.length; index += 1) {
      const entry = this.#entries[index];
      if (entry !== undefined && !entry.failed) this.#failEntry(entry, error);
    }
    this.#entries = [];
    this.#first = 0;
  }

  #failEntry(entry: Entry, error: RekindleError): void {
    entry.failed = true;
    this.#bytes -= entry.body.length;
    entry.body = new Uint8Array(0);
    entry.call.fail(error);
  }
}

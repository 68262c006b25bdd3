/**
 * One call that waits for its reply on a link. It ends exactly once: by its reply, its deadline,
 * its signal, or the loss of the connection; a mutation's outcome depends on whether it was sent.
 */
import { DeadlineMember } from './deadline-set.js';
import { RekindleError } from './errors.js';
import { HEADER_BYTES } from './frame.js';
import type { StatusCode } from './status.js';
import { RPC, type RpcName } from './table.js';

export class PendingCall extends DeadlineMember {
  readonly deadlineMs: number;
  readonly bytes: number;
  sent = false;
  sentAtMs = 0;
  /** The caller's memory that the reply is being read into. */
  placed: Uint8Array | null = null;
  #signal: AbortSignal | undefined;
  #onAbort: (() => void) | undefined;

  constructor(
    readonly callId: number,
    readonly name: RpcName,
    readonly parts: readonly Uint8Array[],
    nowMs: number,
    readonly timeoutMs: number,
    /** See `CallOptions.place`. */
    readonly place: ((bytes: number) => Uint8Array) | null,
    readonly resolve: (body: Uint8Array) => void,
    readonly reject: (error: RekindleError) => void,
  ) {
    super();
    this.deadlineMs = nowMs + timeoutMs;
    let bytes = HEADER_BYTES;
    for (const part of parts) bytes += part.length;
    this.bytes = bytes;
  }

  /** Calls `onAbort` when the signal fires before the call has ended. */
  watch(signal: AbortSignal, onAbort: () => void): void {
    this.#signal = signal;
    this.#onAbort = onAbort;
    signal.addEventListener('abort', onAbort, { once: true });
  }

  /** Ended: the signal is let go. */
  unwatch(): void {
    if (this.#onAbort !== undefined) this.#signal?.removeEventListener('abort', this.#onAbort);
    this.#onAbort = undefined;
  }

  /** A failure of this side's making; never sent means never applied. */
  failure(code: StatusCode, message: string, cause?: unknown): RekindleError {
    const unknown = this.sent && RPC[this.name].service !== 'any';
    return new RekindleError(code, `${this.name}: ${message}`, {
      outcome: unknown ? 'unknown' : 'not-applied',
      ...(cause === undefined ? {} : { cause }),
    });
  }
}

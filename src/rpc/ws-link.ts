/**
 * The caller's side of the RPC layer: a link to one address that connects when it is needed,
 * reconnects with backoff while calls wait, and ends every call exactly once.
 *
 * A call that was never sent fails with outcome 'not-applied', one that was lost on the way with
 * 'unknown'. A refused handshake fails all that wait with the refusal; the next call tries again
 * after the backoff. Bounds: outstanding bytes and calls (`RETRY` at once, nothing queued).
 */
import { addressProblem } from './address.js';
import { backoffMs } from './backoff.js';
import { DeadlineSet } from './deadline-set.js';
import { asRekindleError, RekindleError } from './errors.js';
import { boundedTimeoutMs } from './fault-point.js';
import { MESSAGE_BYTES_MAX } from './frame.js';
import { PROTOCOL } from './handshake.js';
import { IdTable } from './id-table.js';
import { LinkConnection, type LinkIdentity } from './link-connection.js';
import { PendingCall } from './pending-call.js';
import { type JsonRpcName, type ReplyOf, type RequestOf, RPC, type RpcName } from './table.js';
import type { CallOptions, EndpointIdentity, RpcLink } from './transport.js';

const MIB = 1024 * 1024;

export interface WsLinkOptions {
  /** A function, since a server learns its id after it has started. */
  identity: () => LinkIdentity;
  expectServerId?: number | null;
  outstandingBytesMax?: number;
  outstandingCallsMax?: number;
  handshakeTimeoutMs?: number;
  /** Reconnects without calls too, until `close`. */
  keepConnected?: boolean;
  /** In [0, 1); for the jitter. */
  random?: () => number;
}

const OUTSTANDING_BYTES_MAX = 64 * MIB;
const OUTSTANDING_CALLS_MAX = 65_536;
const HANDSHAKE_TIMEOUT_MS = 2_000;
const BACKOFF_MS_MIN = 20;
const BACKOFF_MS_MAX = 1_000;
const BUSY_RETRY_MS = 20;
/** A peer that is silent for so long after a call has timed out is taken for dead. */
const SILENCE_MS_MAX = 2_000;
const NOTHING = new Uint8Array(0);
const EMPTY_BODY: readonly Uint8Array[] = [];

export class WsLink implements RpcLink {
  readonly address: string;
  readonly #options: WsLinkOptions;
  readonly #addressProblem: string | null;
  readonly #bytesMax: number;
  readonly #callsMax: number;
  readonly #calls = new IdTable<PendingCall>();
  readonly #deadlines = new DeadlineSet<PendingCall>((call) => this.#onDeadline(call));
  readonly #lostListeners: ((error: RekindleError) => void)[] = [];
  /** Being made, or made; at most one. */
  #connection: LinkConnection | null = null;
  #remote: EndpointIdentity | null = null;
  #connected = false;
  #closed = false;
  #retryTimer: NodeJS.Timeout | null = null;
  #silenceTimer: NodeJS.Timeout | null = null;
  /** Dials that have failed in a row. */
  #failures = 0;
  #dialNotBeforeMs = 0;
  #outstandingBytes = 0;
  /** When the last call was made, for the pool. */
  usedAtMs = performance.now();

  constructor(address: string, options: WsLinkOptions) {
    this.address = address;
    this.#addressProblem = addressProblem(address);
    this.#options = options;
    this.#bytesMax = options.outstandingBytesMax ?? OUTSTANDING_BYTES_MAX;
    this.#callsMax = options.outstandingCallsMax ?? OUTSTANDING_CALLS_MAX;
    if (options.keepConnected === true && this.#addressProblem === null) this.#dial();
  }

  get connected(): boolean {
    return this.#connected;
  }

  get remote(): EndpointIdentity | null {
    return this.#remote;
  }

  get outstandingBytes(): number {
    return this.#outstandingBytes;
  }

  async connect(options?: CallOptions): Promise<void> {
    // Waits like a call, but `#send` ends it instead of sending.
    if (!this.#connected) await this.callBinary('HELLO', EMPTY_BODY, options);
  }

  async call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    options?: CallOptions,
  ): Promise<ReplyOf<K>> {
    const text = JSON.stringify(request);
    const parts = text === '{}' ? EMPTY_BODY : [Buffer.from(text)];
    const body = await this.callBinary(name, parts, options);
    const { buffer, byteOffset, byteLength } = body;
    const reply = byteLength === 0 ? '{}' : Buffer.from(buffer, byteOffset, byteLength).toString();
    return JSON.parse(reply) as ReplyOf<K>;
  }

  callBinary(
    name: RpcName,
    parts: readonly Uint8Array[],
    options?: CallOptions,
  ): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      const now = performance.now();
      const timeoutMs = options?.timeoutMs ?? boundedTimeoutMs(RPC[name].timeoutMs);
      const id = this.#calls.nextId();
      const place = options?.place ?? null;
      const call = new PendingCall(id, name, parts, now, timeoutMs, place, resolve, reject);
      this.usedAtMs = now;
      const signal = options?.signal;
      const refusal = this.#refusal(call, signal);
      if (refusal !== null) return reject(refusal);
      this.#calls.set(call.callId, call);
      this.#outstandingBytes += call.bytes;
      this.#deadlines.add(call);
      if (signal !== undefined) {
        call.watch(signal, () => {
          this.#fail(call, call.failure('ABORTED', 'aborted by its caller', signal.reason));
        });
      }
      if (this.#connected) this.#send(call);
      else this.#dialSoon();
    });
  }

  flush(): void {
    this.#connection?.flush();
  }

  onLost(listener: (error: RekindleError) => void): void {
    this.#lostListeners.push(listener);
  }

  /** Gives up an unused connection; the next call makes a new one. */
  disconnectIfIdle(idleSinceMs: number): boolean {
    if (this.#calls.size > 0 || this.usedAtMs > idleSinceMs) return false;
    this.#dropConnection(new RekindleError('CONNECTION_LOST', `${this.address}: idle`));
    return true;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#retryTimer !== null) clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
    this.#dropConnection(new RekindleError('CONNECTION_LOST', `${this.address}: link closed`));
    for (const call of this.#deadlines.drain()) {
      this.#fail(call, call.failure('CLIENT_CLOSED', `link to ${this.address} was closed`));
    }
  }

  /** Why a call cannot be taken, or null. */
  #refusal(call: PendingCall, signal: AbortSignal | undefined): RekindleError | null {
    if (this.#closed) return call.failure('CLIENT_CLOSED', `link to ${this.address} is closed`);
    if (this.#addressProblem !== null) {
      return call.failure('INVALID_ARGUMENT', this.#addressProblem);
    }
    if (signal?.aborted === true) {
      return call.failure('ABORTED', 'aborted before it began', signal.reason);
    }
    if (call.bytes > MESSAGE_BYTES_MAX) {
      const tooLarge = `${call.bytes} bytes, the limit is ${MESSAGE_BYTES_MAX}`;
      return call.failure('REQUEST_TOO_LARGE', tooLarge);
    }
    const bytes = this.#outstandingBytes + call.bytes;
    const unsent = this.#connection?.unsentBytes ?? 0;
    if (
      this.#calls.size >= this.#callsMax ||
      (this.#outstandingBytes > 0 && bytes > this.#bytesMax) ||
      unsent > this.#bytesMax
    ) {
      return new RekindleError(
        'RETRY',
        `${this.#calls.size} calls with ${this.#outstandingBytes} bytes wait for ${this.address}`,
        { retryAfterMs: BUSY_RETRY_MS },
      );
    }
    return null;
  }

  #send(call: PendingCall): void {
    if (call.name === 'HELLO') {
      if (this.#take(call)) call.resolve(NOTHING);
      return;
    }
    const now = performance.now();
    const budgetMs = Math.max(1, Math.min(0xffff_ffff, Math.floor(call.deadlineMs - now)));
    call.sent = true;
    call.sentAtMs = now;
    this.#connection?.send(RPC[call.name].opcode, call.callId, budgetMs, call.parts);
  }

  /** Takes a call off the books; false if it has ended before. */
  #take(call: PendingCall): boolean {
    if (!this.#calls.delete(call.callId)) return false;
    this.#outstandingBytes -= call.bytes;
    this.#deadlines.delete(call);
    call.unwatch();
    return true;
  }

  #fail(call: PendingCall, error: RekindleError): void {
    if (!this.#take(call)) return;
    // The caller may use its memory again at once.
    if (call.placed !== null) this.#connection?.letGo(call.placed);
    call.reject(error);
  }

  #place(callId: number, bytes: number): Uint8Array | null {
    const call = this.#calls.get(callId);
    if (call === undefined || call.place === null) return null;
    call.placed = call.place(bytes);
    return call.placed;
  }

  #onReply(callId: number, status: number, body: Uint8Array): void {
    // A reply to a call that has ended (deadline, signal) finds nothing.
    const call = this.#calls.get(callId);
    if (call === undefined || !this.#take(call)) return;
    if (status === 0) {
      call.resolve(body);
      return;
    }
    try {
      call.reject(RekindleError.fromReply(status, JSON.parse(Buffer.from(body).toString())));
    } catch (thrown) {
      call.reject(asRekindleError(thrown));
    }
  }

  #onDeadline(call: PendingCall): void {
    const connection = this.#connection;
    if (call.sent && connection !== null && connection.heardAtMs < call.sentAtMs) {
      this.#suspectSilence(connection);
    }
    const where = call.sent ? 'no reply from' : 'no connection to';
    this.#fail(call, call.failure('TIMEOUT', `${where} ${this.address} in ${call.timeoutMs} ms`));
  }

  /** A call timed out and the peer has said nothing since it was sent: does it live? */
  #suspectSilence(connection: LinkConnection): void {
    if (this.#silenceTimer !== null) return;
    const askedAtMs = performance.now();
    connection.ping();
    this.#silenceTimer = setTimeout(() => {
      this.#silenceTimer = null;
      if (this.#connection !== connection || connection.heardAtMs >= askedAtMs) return;
      const problem = `${this.address} is silent for ${SILENCE_MS_MAX} ms`;
      connection.terminate(new RekindleError('CONNECTION_LOST', problem));
    }, SILENCE_MS_MAX);
    this.#silenceTimer.unref();
  }

  /** Dials now, or when the backoff since the last failure is over. */
  #dialSoon(): void {
    if (this.#connection !== null || this.#retryTimer !== null || this.#closed) return;
    const delayMs = this.#dialNotBeforeMs - performance.now();
    if (delayMs <= 0) {
      this.#dial();
      return;
    }
    this.#retryTimer = setTimeout(() => {
      this.#retryTimer = null;
      if (this.#wanted()) this.#dial();
    }, delayMs);
  }

  #wanted(): boolean {
    return !this.#closed && (this.#calls.size > 0 || this.#options.keepConnected === true);
  }

  #dial(): void {
    const { role, clusterId, serverId, credential } = this.#options.identity();
    const connection: LinkConnection = new LinkConnection(
      this.address,
      {
        protocol: PROTOCOL,
        features: [],
        role,
        clusterId,
        serverId,
        expectServerId: this.#options.expectServerId ?? null,
        credential: credential ?? null,
      },
      this.#options.handshakeTimeoutMs ?? HANDSHAKE_TIMEOUT_MS,
      {
        opened: (remote) => {
          this.#connected = true;
          this.#remote = remote;
          this.#failures = 0;
          for (const call of this.#calls.values()) this.#send(call);
          connection.flush();
        },
        place: (callId, bytes) => this.#place(callId, bytes),
        reply: (callId, status, body) => this.#onReply(callId, status, body),
        lost: (error, established) => {
          if (this.#connection === connection) this.#onLost(error, established);
        },
      },
    );
    this.#connection = connection;
  }

  #onLost(error: RekindleError, established: boolean): void {
    this.#connection = null;
    this.#connected = false;
    if (established) {
      for (const call of this.#calls.values()) {
        if (call.sent) {
          this.#fail(call, call.failure('CONNECTION_LOST', error.message, error));
        }
      }
      for (const listener of this.#lostListeners) listener(error);
    } else {
      // Nothing was sent. Callers hear at once why; what they try next waits for the backoff.
      const random = (this.#options.random ?? Math.random)();
      const delayMs = backoffMs(this.#failures, BACKOFF_MS_MIN, BACKOFF_MS_MAX, random);
      this.#dialNotBeforeMs = performance.now() + delayMs;
      this.#failures += 1;
      for (const call of this.#calls.values()) {
        this.#fail(call, call.failure(error.code, error.message, error));
      }
    }
    if (this.#wanted()) this.#dialSoon();
  }

  #dropConnection(error: RekindleError): void {
    const connection = this.#connection;
    if (this.#silenceTimer !== null) clearTimeout(this.#silenceTimer);
    this.#silenceTimer = null;
    if (connection === null) return;
    // First forgotten, so that its end is not taken for a loss.
    this.#connection = null;
    this.#connected = false;
    connection.terminate(error);
  }
}

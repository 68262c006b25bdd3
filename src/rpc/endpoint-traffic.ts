/**
 * What an endpoint sends and how much it holds: the outbox of replies made outside handlers, the
 * scratch buffer in which a message is put together, and all counts with their bounds.
 *
 * Invariant: requests and bytes in flight of the endpoint are the sums over its connections; a
 * connection that closes gives back what it holds, and calls answered later find it closed.
 */
import type { EndpointConnection } from './endpoint-connection.js';
import { RekindleError } from './errors.js';
import {
  HEADER_BYTES,
  KIND_ERROR_REPLY,
  KIND_REPLY,
  MESSAGE_BYTES_MAX,
  writeHeader,
} from './frame.js';
import { STATUS } from './status.js';
import type { EndpointLog } from './uws-endpoint.js';

const MIB = 1024 * 1024;

export interface EndpointLimits {
  connectionsMax: number;
  helloTimeoutMs: number;
  /** Silence after which a client that answers no ping is dropped; 0 or at least 8. */
  idleTimeoutS: number;
  requestsInFlightMax: number;
  requestBytesInFlightMax: number;
  /** Of all connections together. */
  requestBytesInFlightTotalMax: number;
  /** Requests of a connection with more than this unread are refused: replies come faster than
   * they are read, and a peer that does read must not be taken for one that does not. */
  unreadBytesBusy: number;
  /** A connection whose peer leaves more than this unread is closed. Invariant: busy + one message
   * + the replies that may be waiting for replication <= this. */
  unreadBytesMax: number;
  /** A connection whose peer reads nothing of what waits for it for so long is closed. */
  unreadTimeoutMs: number;
  unreadBytesTotalMax: number;
}

export const LIMITS: EndpointLimits = {
  connectionsMax: 10_000,
  helloTimeoutMs: 2_000,
  idleTimeoutS: 120,
  requestsInFlightMax: 10_000,
  requestBytesInFlightMax: 64 * MIB,
  requestBytesInFlightTotalMax: 512 * MIB,
  unreadBytesBusy: 16 * MIB,
  unreadBytesMax: 96 * MIB,
  unreadTimeoutMs: 10_000,
  unreadBytesTotalMax: 512 * MIB,
};

const OUTBOX_BYTES = 4 * MIB;
/** Larger replies do not wait for the turn to end: the copy would cost more than the cork saves. */
const OUTBOX_REPLY_BYTES_MAX = 64 * 1024;
const SCRATCH_BYTES_MIN = 256 * 1024;
const BUSY_RETRY_MS = 20;
/** uWebSockets' answer for a message that it dropped. */
const SEND_DROPPED = 2;
const SEND_BUFFERED = 0;

export class EndpointTraffic {
  readonly #limits: EndpointLimits;
  readonly #log: EndpointLog;
  readonly #outbox = Buffer.allocUnsafeSlow(OUTBOX_BYTES);
  #outboxBytes = 0;
  /** Connections with unread bytes. */
  readonly #unread = new Set<EndpointConnection>();
  /** Connections that have replies in the outbox. */
  readonly #waiting: EndpointConnection[] = [];
  #flushScheduled = false;
  /** Grows to the largest reply so far; `send` copies, so that one serves all. */
  #scratch = Buffer.allocUnsafeSlow(SCRATCH_BYTES_MIN);
  /** The connection whose handler runs now, and which is corked therefore. */
  #handling: EndpointConnection | null = null;
  #closed = false;

  #requests = 0;
  #requestsRefused = 0;
  #bytesIn = 0;
  #bytesOut = 0;
  #requestBytesInFlight = 0;
  #unreadBytes = 0;
  #slowReadersClosed = 0;

  constructor(limits: EndpointLimits, log: EndpointLog) {
    this.#limits = limits;
    this.#log = log;
  }

  stats(): Record<string, number> {
    return {
      requests: this.#requests,
      requestsRefused: this.#requestsRefused,
      bytesIn: this.#bytesIn,
      bytesOut: this.#bytesOut,
      requestBytesInFlight: this.#requestBytesInFlight,
      unreadBytes: this.#unreadBytes,
      slowReadersClosed: this.#slowReadersClosed,
    };
  }

  enterHandler(connection: EndpointConnection, bytes: number): void {
    this.#handling = connection;
    this.#bytesIn += bytes;
  }

  leaveHandler(): void {
    this.#handling = null;
  }

  /** Counts a request in, or says why not. */
  admit(connection: EndpointConnection, bytes: number): RekindleError | null {
    const limits = this.#limits;
    const inFlight = connection.requestBytesInFlight;
    const over =
      connection.requestsInFlight >= limits.requestsInFlightMax
        ? `${limits.requestsInFlightMax} requests in flight on this connection`
        : inFlight > 0 && inFlight + bytes > limits.requestBytesInFlightMax
          ? `${limits.requestBytesInFlightMax} request bytes in flight on this connection`
          : this.#requestBytesInFlight + bytes > limits.requestBytesInFlightTotalMax
            ? `${limits.requestBytesInFlightTotalMax} request bytes in flight at this server`
            : connection.unreadBytes > limits.unreadBytesBusy
              ? `${connection.unreadBytes} bytes of replies are still to be read`
              : null;
    if (over !== null) {
      this.#requestsRefused += 1;
      return new RekindleError('RETRY', `too busy: ${over}`, { retryAfterMs: BUSY_RETRY_MS });
    }
    this.#requests += 1;
    connection.requestsInFlight += 1;
    connection.requestBytesInFlight += bytes;
    this.#requestBytesInFlight += bytes;
    return null;
  }

  /** A request has its answer. */
  leave(connection: EndpointConnection, bytes: number): void {
    if (connection.socket === null) return;
    connection.requestsInFlight -= 1;
    connection.requestBytesInFlight -= bytes;
    this.#requestBytesInFlight -= bytes;
  }

  /** The connection closes. */
  forget(connection: EndpointConnection): void {
    this.#requestBytesInFlight -= connection.requestBytesInFlight;
    this.#unreadBytes -= connection.unreadBytes;
    this.#unread.delete(connection);
    connection.requestsInFlight = 0;
    connection.requestBytesInFlight = 0;
    connection.unreadBytes = 0;
  }

  /** Closes those whose peer has stopped to read: else they could hold their bytes for ever. */
  closeStalled(nowMs: number): void {
    for (const connection of [...this.#unread]) {
      const stalledMs = nowMs - connection.readAtMs;
      if (stalledMs > this.#limits.unreadTimeoutMs) this.#closeSlowReader(connection);
    }
  }

  onDrain(connection: EndpointConnection): void {
    connection.readAtMs = performance.now();
    this.#noteUnread(connection, connection.socket?.getBufferedAmount() ?? 0);
  }

  reply(connection: EndpointConnection, opcode: number, callId: number, body: Uint8Array): void {
    if (body.length + HEADER_BYTES > MESSAGE_BYTES_MAX) {
      const problem = `reply of ${body.length} bytes is over the message limit`;
      const error = new RekindleError('REQUEST_TOO_LARGE', problem);
      this.fail(connection, opcode, callId, error);
      return;
    }
    this.#send(connection, KIND_REPLY, opcode, 0, callId, body);
  }

  /** The same where there is room for the header before `body` in its memory. */
  replyInPlace(
    connection: EndpointConnection,
    opcode: number,
    callId: number,
    body: Uint8Array,
  ): void {
    const bytes = HEADER_BYTES + body.length;
    if (this.#handling !== connection || bytes > MESSAGE_BYTES_MAX) {
      this.reply(connection, opcode, callId, body);
      return;
    }
    const { socket } = connection;
    if (socket === null || this.#closed) return;
    const message = new Uint8Array(body.buffer, body.byteOffset - HEADER_BYTES, bytes);
    writeHeader(message, KIND_REPLY, opcode, 0, callId, 0);
    this.#sent(connection, socket.send(message, true), bytes);
  }

  fail(connection: EndpointConnection, opcode: number, callId: number, error: RekindleError): void {
    const body = Buffer.from(JSON.stringify(error.toBody()));
    this.#send(connection, KIND_ERROR_REPLY, opcode, STATUS[error.code].number, callId, body);
  }

  /** Nothing is sent any more. */
  close(): void {
    this.#closed = true;
    this.#waiting.length = 0;
    this.#outboxBytes = 0;
  }

  #send(
    connection: EndpointConnection,
    kind: number,
    opcode: number,
    status: number,
    callId: number,
    body: Uint8Array,
  ): void {
    const { socket } = connection;
    if (socket === null || this.#closed) return;
    const bytes = HEADER_BYTES + body.length;
    if (this.#handling === connection) {
      const message = this.#compose(bytes, kind, opcode, status, callId, body);
      this.#sent(connection, socket.send(message, true), bytes);
    } else if (bytes > OUTBOX_REPLY_BYTES_MAX) {
      const message = this.#compose(bytes, kind, opcode, status, callId, body);
      let result = SEND_BUFFERED;
      socket.cork(() => {
        result = socket.send(message, true);
      });
      this.#sent(connection, result, bytes);
    } else {
      if (this.#outboxBytes + bytes > OUTBOX_BYTES) this.flush();
      const at = this.#outboxBytes;
      const message = this.#outbox.subarray(at, at + bytes);
      writeHeader(message, kind, opcode, status, callId, 0);
      message.set(body, HEADER_BYTES);
      this.#outboxBytes += bytes;
      if (connection.outbox.length === 0) this.#waiting.push(connection);
      connection.outbox.push(at, bytes);
      if (!this.#flushScheduled) {
        this.#flushScheduled = true;
        setImmediate(() => {
          this.#flushScheduled = false;
          this.flush();
        });
      }
    }
  }

  #compose(
    bytes: number,
    kind: number,
    opcode: number,
    status: number,
    callId: number,
    body: Uint8Array,
  ): Uint8Array {
    if (bytes > this.#scratch.length) {
      this.#scratch = Buffer.allocUnsafeSlow(Math.min(MESSAGE_BYTES_MAX, bytes * 2));
    }
    const message = this.#scratch.subarray(0, bytes);
    writeHeader(message, kind, opcode, status, callId, 0);
    message.set(body, HEADER_BYTES);
    return message;
  }

  /** The outbox leaves, in one cork per connection. Not to be called inside a handler. */
  flush(): void {
    if (this.#waiting.length === 0) return;
    const waiting = this.#waiting.splice(0);
    for (const connection of waiting) {
      const { socket } = connection;
      if (socket === null) continue;
      const places = connection.outbox.splice(0);
      let result = SEND_BUFFERED;
      let bytes = 0;
      socket.cork(() => {
        for (let i = 0; i < places.length && result !== SEND_DROPPED; i += 2) {
          const at = places[i]!;
          bytes += places[i + 1]!;
          result = socket.send(this.#outbox.subarray(at, at + places[i + 1]!), true);
        }
      });
      // Only now, since it may close the socket that was corked.
      this.#sent(connection, result, bytes);
    }
    this.#outboxBytes = 0;
  }

  #sent(connection: EndpointConnection, result: number, bytes: number): void {
    if (result === SEND_DROPPED) {
      this.#closeSlowReader(connection);
      return;
    }
    this.#bytesOut += bytes;
    if (result === SEND_BUFFERED && connection.socket !== null) {
      this.#noteUnread(connection, connection.socket.getBufferedAmount());
      if (
        connection.unreadBytes > this.#limits.unreadBytesMax ||
        this.#unreadBytes > this.#limits.unreadBytesTotalMax
      ) {
        this.#closeSlowReader(connection);
      }
    }
  }

  #noteUnread(connection: EndpointConnection, bytes: number): void {
    if (bytes === 0) {
      this.#unread.delete(connection);
    } else if (!this.#unread.has(connection)) {
      this.#unread.add(connection);
      connection.readAtMs = performance.now();
    }
    this.#unreadBytes += bytes - connection.unreadBytes;
    connection.unreadBytes = bytes;
  }

  #closeSlowReader(connection: EndpointConnection): void {
    if (connection.socket === null) return;
    this.#slowReadersClosed += 1;
    this.#log('warn', 'connection closed: its peer does not read', {
      remoteAddress: connection.remoteAddress,
      unreadBytes: connection.unreadBytes,
    });
    connection.terminate();
  }
}

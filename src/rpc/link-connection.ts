/**
 * One connection of a link, from the dial to the loss: makes the handshake of docs/formats.md §3,
 * lets what is sent in one turn leave together, and reports each reply and exactly one loss.
 */
import { bodyMemory } from './body-memory.js';
import { asRekindleError, RekindleError } from './errors.js';
import {
  emptyHeader,
  HEADER_BYTES,
  KIND_ERROR_REPLY,
  KIND_REPLY,
  KIND_REQUEST,
  readHeader,
  writeHeader,
} from './frame.js';
import { PROTOCOL, pathOfRole } from './handshake.js';
import type { Hello, Messages } from './messages.js';
import { RPC } from './table.js';
import type { EndpointIdentity } from './transport.js';
import { WebSocketClient } from './web-socket-client.js';

const HELLO_CALL_ID = 0;

/** What a caller says of itself in its HELLOs. */
export interface LinkIdentity {
  role: Hello['role'];
  clusterId: string | null;
  serverId: number | null;
  credential?: string | null;
}

export interface LinkEvents {
  /** The handshake succeeded. */
  opened(remote: EndpointIdentity): void;
  /** Where the body of a successful reply goes; null: memory of its own. */
  place(callId: number, bytes: number): Uint8Array | null;
  /** A reply; `status` is 0 for a success. `body` is this message's own memory, or `place`'s. */
  reply(callId: number, status: number, body: Uint8Array): void;
  /** The end; `established` tells whether the handshake had succeeded. */
  lost(error: RekindleError, established: boolean): void;
}

export class LinkConnection {
  readonly #socket: WebSocketClient;
  readonly #hello: Hello;
  readonly #handshakeTimeoutMs: number;
  readonly #sentHead = new Uint8Array(HEADER_BYTES);
  readonly #events: LinkEvents;
  readonly #header = emptyHeader();
  readonly #handshakeTimer: NodeJS.Timeout;
  /** At the end of this turn, for who does not call `flush`. */
  #flushScheduled: NodeJS.Immediate | null = null;
  #established = false;
  #ended = false;
  /** When the peer was last heard, on performance.now()'s clock. */
  heardAtMs = 0;

  constructor(
    readonly address: string,
    hello: Hello,
    handshakeTimeoutMs: number,
    events: LinkEvents,
  ) {
    this.#events = events;
    this.#hello = hello;
    this.#handshakeTimeoutMs = handshakeTimeoutMs;
    this.#socket = new WebSocketClient(address, pathOfRole(hello.role), {
      opened: () => this.#sayHello(),
      place: (head, bytes) => this.#place(head, bytes),
      message: (head, body) => this.#onMessage(head, body),
      pong: () => {
        this.heardAtMs = performance.now();
      },
      closed: (reason, cause) => this.#end(lost(`${address}: ${reason}`, cause)),
    });
    this.#handshakeTimer = setTimeout(
      () => this.#end(lost(`no handshake with ${address} within ${handshakeTimeoutMs} ms`)),
      handshakeTimeoutMs,
    );
  }

  #sayHello(): void {
    const body = Buffer.from(JSON.stringify(this.#hello));
    this.send(RPC.HELLO.opcode, HELLO_CALL_ID, this.#handshakeTimeoutMs, [body]);
    this.flush();
  }

  /** Bytes accepted that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.unsentBytes;
  }

  /** Sends one request; `parts` must not change until it is answered. */
  send(opcode: number, callId: number, deadlineMs: number, parts: readonly Uint8Array[]): void {
    if (this.#ended) return;
    this.#flushScheduled ??= setImmediate(() => this.flush());
    writeHeader(this.#sentHead, KIND_REQUEST, opcode, 0, callId, deadlineMs);
    this.#socket.send(this.#sentHead, parts);
  }

  flush(): void {
    if (this.#flushScheduled === null) return;
    // Else the loop would turn once more for nothing.
    clearImmediate(this.#flushScheduled);
    this.#flushScheduled = null;
    this.#socket.flush();
  }

  /** A call has ended before its reply: what still comes of it must not be written there. */
  letGo(body: Uint8Array): void {
    this.#socket.letGo(body);
  }

  /** Asks for a sign of life. */
  ping(): void {
    if (!this.#ended) this.#socket.ping();
  }

  /** Drops the connection; `lost` is reported with this error. */
  terminate(error: RekindleError): void {
    this.#end(error);
  }

  #place(head: Uint8Array, bytes: number): Uint8Array {
    // A head that says nonsense is reported with its message.
    const placed =
      this.#established &&
      readHeader(head, this.#header) === null &&
      this.#header.kind === KIND_REPLY
        ? this.#events.place(this.#header.callId, bytes)
        : null;
    return placed ?? bodyMemory(bytes);
  }

  #onMessage(head: Uint8Array, body: Uint8Array): void {
    this.heardAtMs = performance.now();
    const header = this.#header;
    const problem = readHeader(head, header);
    if (problem !== null) {
      const error = new RekindleError('PROTOCOL_MISMATCH', `${this.address}: ${problem}`);
      this.#end(error);
      return;
    }
    const isError = header.kind === KIND_ERROR_REPLY;
    if (!isError && header.kind !== KIND_REPLY) {
      this.#end(new RekindleError('PROTOCOL_MISMATCH', `${this.address} sent a request`));
      return;
    }
    if (this.#established) this.#events.reply(header.callId, isError ? header.status : 0, body);
    else this.#onHelloReply(isError ? header.status : 0, body);
  }

  #onHelloReply(status: number, body: Uint8Array): void {
    try {
      const json: unknown = JSON.parse(Buffer.from(body).toString());
      if (status !== 0) {
        this.#end(RekindleError.fromReply(status, json));
        return;
      }
      const reply = json as Messages['HELLO']['reply'];
      if (reply.protocol < PROTOCOL.min || reply.protocol > PROTOCOL.max) {
        const problem = `${this.address} chose protocol ${reply.protocol}`;
        this.#end(new RekindleError('PROTOCOL_MISMATCH', problem));
        return;
      }
      this.#established = true;
      clearTimeout(this.#handshakeTimer);
      const { role, clusterId, serverId } = reply;
      this.#events.opened({ role, clusterId, serverId });
    } catch (thrown) {
      this.#end(asRekindleError(thrown));
    }
  }

  /** The one end of every connection, whoever brings it about. */
  #end(error: RekindleError): void {
    if (this.#ended) return;
    this.#ended = true;
    clearTimeout(this.#handshakeTimer);
    this.#socket.terminate();
    this.#events.lost(error, this.#established);
  }
}

function lost(message: string, cause?: unknown): RekindleError {
  return new RekindleError('CONNECTION_LOST', message, cause === undefined ? {} : { cause });
}

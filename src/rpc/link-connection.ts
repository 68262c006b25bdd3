/**
 * One WebSocket of a link, from the dial to the loss: the only user of `ws`. It makes the
 * handshake, corks what is sent in one turn, and reports each message and exactly one loss.
 *
 * The zero mask (`generateMask`) saves a pass over every byte in JavaScript; masking protects
 * browsers behind proxies, which this is not. `setNoDelay`: a split frame took 44 ms without.
 */
import type { Socket } from 'node:net';
import WebSocket from 'ws';
import { asRekindleError, RekindleError } from './errors.js';
import {
  emptyHeader,
  HEADER_BYTES,
  KIND_ERROR_REPLY,
  KIND_REPLY,
  KIND_REQUEST,
  MESSAGE_BYTES_MAX,
  readHeader,
  writeHeader,
} from './frame.js';
import { PROTOCOL, pathOfRole } from './handshake.js';
import type { Hello, Messages } from './messages.js';
import { RPC } from './table.js';
import type { EndpointIdentity } from './transport.js';

/** Up to here a message is copied together: one frame costs less than the copy. */
const JOINED_BYTES_MAX = 64 * 1024;
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
  /** A reply; `status` is 0 for a success. `body` is this message's own memory. */
  reply(callId: number, status: number, body: Buffer): void;
  /** The end; `established` tells whether the handshake had succeeded. */
  lost(error: RekindleError, established: boolean): void;
}

export class LinkConnection {
  readonly #socket: WebSocket;
  readonly #events: LinkEvents;
  readonly #header = emptyHeader();
  readonly #handshakeTimer: NodeJS.Timeout;
  #transport: Socket | null = null;
  #corked = false;
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
    this.#socket = new WebSocket(`ws://${address}${pathOfRole(hello.role)}`, {
      perMessageDeflate: false,
      generateMask: zeroMask,
      maxPayload: MESSAGE_BYTES_MAX,
      followRedirects: false,
      handshakeTimeout: handshakeTimeoutMs,
    });
    this.#handshakeTimer = setTimeout(
      () => this.#end(lost(`no handshake with ${address} within ${handshakeTimeoutMs} ms`)),
      handshakeTimeoutMs,
    );
    this.#socket.on('upgrade', (response) => {
      this.#transport = response.socket;
      this.#transport.setNoDelay(true);
    });
    this.#socket.on('open', () => {
      this.send(RPC.HELLO.opcode, HELLO_CALL_ID, handshakeTimeoutMs, [
        Buffer.from(JSON.stringify(hello)),
      ]);
      this.flush();
    });
    this.#socket.on('message', (data, isBinary) => this.#onMessage(data as Buffer, isBinary));
    this.#socket.on('pong', () => {
      this.heardAtMs = performance.now();
    });
    this.#socket.on('error', (cause) => {
      this.#end(lost(`${address}: ${cause.message === '' ? 'refused' : cause.message}`, cause));
    });
    this.#socket.on('close', (code) => this.#end(lost(`${address} closed (${code})`)));
  }

  /** Bytes accepted that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#socket.bufferedAmount;
  }

  /** Sends one request; large bodies as fragments, so that their parts are not copied together. */
  send(opcode: number, callId: number, deadlineMs: number, parts: readonly Uint8Array[]): void {
    if (this.#ended) return;
    if (!this.#corked && this.#transport !== null) {
      this.#corked = true;
      this.#transport.cork();
      setImmediate(() => this.flush());
    }
    let bytes = HEADER_BYTES;
    for (const part of parts) bytes += part.length;
    if (bytes <= JOINED_BYTES_MAX) {
      const message = Buffer.allocUnsafe(bytes);
      writeHeader(message, KIND_REQUEST, opcode, 0, callId, deadlineMs);
      let at = HEADER_BYTES;
      for (const part of parts) {
        message.set(part, at);
        at += part.length;
      }
      this.#socket.send(message, { binary: true });
      return;
    }
    const header = Buffer.allocUnsafe(HEADER_BYTES);
    writeHeader(header, KIND_REQUEST, opcode, 0, callId, deadlineMs);
    this.#socket.send(header, { binary: true, fin: false });
    for (let i = 0; i < parts.length; i++) {
      this.#socket.send(parts[i]!, { binary: true, fin: i === parts.length - 1 });
    }
  }

  flush(): void {
    if (!this.#corked) return;
    this.#corked = false;
    this.#transport?.uncork();
  }

  /** Asks for a sign of life. */
  ping(): void {
    if (!this.#ended) this.#socket.ping();
  }

  /** Drops the connection; `lost` is reported with this error. */
  terminate(error: RekindleError): void {
    this.#end(error);
  }

  #onMessage(data: Buffer, isBinary: boolean): void {
    this.heardAtMs = performance.now();
    const header = this.#header;
    const problem = isBinary ? readHeader(data, header) : 'text message';
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
    const body = data.subarray(HEADER_BYTES);
    if (this.#established) this.#events.reply(header.callId, isError ? header.status : 0, body);
    else this.#onHelloReply(isError ? header.status : 0, body);
  }

  #onHelloReply(status: number, body: Buffer): void {
    try {
      const json: unknown = JSON.parse(body.toString());
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

function zeroMask(mask: Buffer): void {
  mask.fill(0);
}

function lost(message: string, cause?: unknown): RekindleError {
  return new RekindleError('CONNECTION_LOST', message, cause === undefined ? {} : { cause });
}

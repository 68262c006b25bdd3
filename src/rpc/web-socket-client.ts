/**
 * The client side of one WebSocket (RFC 6455) on Node's own socket: handshake, frames, pings.
 *
 * Made for bulk: all sockets read into one buffer of this thread and a body is copied once, to
 * where its receiver wants it; small messages are gathered in one memory (outbox.ts), parts of
 * large ones are handed to the kernel from where they lie.
 * The library this replaced allocated every 64 KB that it read and joined them afterwards, and
 * V8's garbage collector took more processor time in a recovery than all of the store's own code.
 *
 * The mask is zero, which leaves the bytes as they are: masks protect proxies from browsers, and
 * here is neither. `setNoDelay`: a split frame took 44 ms without.
 */
import { createHash, randomBytes } from 'node:crypto';
import { connect, type Socket } from 'node:net';
import {
  MessageReader,
  type MessageReaderEvents,
  OPCODE_BINARY,
  OPCODE_CLOSE,
  OPCODE_PING,
  OPCODE_PONG,
} from './message-reader.js';
import { Outbox } from './outbox.js';

/** Up to here a message is copied together: that costs less than a write of each part. */
const JOINED_BYTES_MAX = 16 * 1024;
const READ_BYTES = 256 * 1024;
/** Read and taken apart within one callback, so that all connections can share it. */
const readBuffer = new Uint8Array(READ_BYTES);
const RESPONSE_BYTES_MAX = 8 * 1024;
const ACCEPT_SUFFIX = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11';
const NO_PAYLOAD = new Uint8Array(0);

export interface WebSocketClientEvents extends Pick<MessageReaderEvents, 'place' | 'message'> {
  /** The handshake of WebSocket succeeded. */
  opened(): void;
  pong(): void;
  /** The end, exactly once, unless this side terminated. */
  closed(reason: string, cause?: Error): void;
}

export class WebSocketClient {
  readonly #events: WebSocketClientEvents;
  readonly #socket: Socket;
  readonly #outbox: Outbox;
  readonly #reader: MessageReader;
  readonly #key = randomBytes(16).toString('base64');
  /** Of the answer to the handshake; null once it is complete. */
  #response: Buffer | null = Buffer.alloc(0);
  #ended = false;

  /** `address` is host:port as src/rpc/address.ts checks it. */
  constructor(address: string, path: string, events: WebSocketClientEvents) {
    this.#events = events;
    this.#reader = new MessageReader({
      place: (head, bytes) => events.place(head, bytes),
      message: (head, body) => events.message(head, body),
      control: (opcode, payload) => this.#onControl(opcode, payload),
    });
    const colon = address.lastIndexOf(':');
    this.#socket = connect({
      host: address.slice(0, colon).replace(/^\[|\]$/g, ''),
      port: Number(address.slice(colon + 1)),
      noDelay: true,
      onread: {
        buffer: readBuffer,
        callback: (bytes) => {
          this.#onBytes(readBuffer.subarray(0, bytes));
          return !this.#ended;
        },
      },
    });
    this.#outbox = new Outbox(this.#socket);
    this.#socket.on('connect', () => this.#socket.write(this.#request(address, path)));
    this.#socket.on('error', (cause) => {
      this.#close(cause.message === '' ? 'refused' : cause.message, cause);
    });
    this.#socket.on('close', () => this.#close('closed (1006)'));
  }

  /** Bytes accepted that the kernel has not taken yet. */
  get unsentBytes(): number {
    return this.#outbox.unsentBytes;
  }

  /**
   * One message that leaves with the next `flush`, or before. `head` is copied; `parts` are too if
   * they are small, else they leave from where they lie and must not change until they have left.
   */
  send(head: Uint8Array, parts: readonly Uint8Array[]): void {
    if (this.#ended) return;
    let bytes = head.length;
    for (const part of parts) bytes += part.length;
    const joined = bytes <= JOINED_BYTES_MAX;
    const outbox = this.#outbox;
    let at = outbox.take(frameHeaderBytes(bytes) + (joined ? bytes : head.length));
    const { memory } = outbox;
    at = writeFrameHeader(memory, at, OPCODE_BINARY, bytes);
    memory.set(head, at);
    at += head.length;
    for (const part of parts) {
      if (joined) memory.set(part, at);
      else outbox.append(part);
      at += part.length;
    }
  }

  /** All that was sent leaves. */
  flush(): void {
    if (!this.#ended) this.#outbox.flush();
  }

  /** A message that is being read no longer goes where `place` said: that memory is not ours. */
  letGo(body: Uint8Array): void {
    this.#reader.letGo(body);
  }

  ping(): void {
    this.#sendControl(OPCODE_PING, NO_PAYLOAD);
  }

  /** Drops the connection; nothing is reported any more. */
  terminate(): void {
    this.#ended = true;
    this.#reader.stop();
    this.#socket.destroy();
  }

  #request(address: string, path: string): string {
    return [
      `GET ${path} HTTP/1.1`,
      `Host: ${address}`,
      'Upgrade: websocket',
      'Connection: Upgrade',
      `Sec-WebSocket-Key: ${this.#key}`,
      'Sec-WebSocket-Version: 13',
      '\r\n',
    ].join('\r\n');
  }

  #onBytes(bytes: Uint8Array): void {
    if (this.#ended) return;
    const frames = this.#response === null ? bytes : this.#readResponse(this.#response, bytes);
    if (frames === null || this.#ended) return;
    const problem = this.#reader.read(frames);
    if (problem !== null) this.#close(problem);
  }

  /** The frames behind the answer to the handshake; null if it is not complete or is refused. */
  #readResponse(before: Buffer, bytes: Uint8Array): Uint8Array | null {
    const response = Buffer.concat([before, bytes]);
    const end = response.indexOf('\r\n\r\n');
    if (end < 0) {
      this.#response = response;
      if (response.length > RESPONSE_BYTES_MAX) this.#close('does not speak WebSocket');
      return null;
    }
    this.#response = null;
    const [status = '', ...fields] = response.toString('latin1', 0, end).split('\r\n');
    const accept = createHash('sha1').update(`${this.#key}${ACCEPT_SUFFIX}`).digest('base64');
    const accepted = fields.some((field) => {
      const colon = field.indexOf(':');
      return (
        field.slice(0, colon).toLowerCase() === 'sec-websocket-accept' &&
        field.slice(colon + 1).trim() === accept
      );
    });
    if (!/^HTTP\/1\.1 101\b/.test(status) || !accepted) {
      this.#close(`does not speak WebSocket: "${status.slice(0, 80)}"`);
      return null;
    }
    this.#events.opened();
    return response.subarray(end + 4);
  }

  #onControl(opcode: number, payload: Uint8Array): void {
    switch (opcode) {
      case OPCODE_PING:
        this.#sendControl(OPCODE_PONG, payload);
        return;
      case OPCODE_PONG:
        this.#events.pong();
        return;
      case OPCODE_CLOSE: {
        const code = payload.length >= 2 ? payload[0]! * 256 + payload[1]! : 1005;
        const why = Buffer.from(payload.subarray(2)).toString();
        this.#close(`closed (${code}${why === '' ? '' : `: ${why}`})`);
      }
    }
  }

  #sendControl(opcode: number, payload: Uint8Array): void {
    if (this.#ended) return;
    const start = this.#outbox.take(frameHeaderBytes(payload.length) + payload.length);
    const { memory } = this.#outbox;
    memory.set(payload, writeFrameHeader(memory, start, opcode, payload.length));
    this.#outbox.flush();
  }

  #close(reason: string, cause?: Error): void {
    if (this.#ended) return;
    this.terminate();
    this.#events.closed(reason, cause);
  }
}

function frameHeaderBytes(payloadBytes: number): number {
  return payloadBytes < 126 ? 6 : payloadBytes < 65_536 ? 8 : 14;
}

/** A final, masked frame; its mask is zero. Returns where its payload begins. */
function writeFrameHeader(
  target: Buffer,
  start: number,
  opcode: number,
  payloadBytes: number,
): number {
  target[start] = 0x80 | opcode;
  let at = start + 2;
  if (payloadBytes < 126) {
    target[start + 1] = 0x80 | payloadBytes;
  } else if (payloadBytes < 65_536) {
    target[start + 1] = 0x80 | 126;
    at = target.writeUInt16BE(payloadBytes, at);
  } else {
    target[start + 1] = 0x80 | 127;
    at = target.writeUInt32BE(Math.floor(payloadBytes / 2 ** 32), at);
    at = target.writeUInt32BE(payloadBytes % 2 ** 32, at);
  }
  return target.writeUInt32LE(0, at);
}

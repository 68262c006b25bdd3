/**
 * Takes the bytes that a server sends on a WebSocket (RFC 6455) apart: frames, and in each binary
 * frame one message, a 16-byte head and a body. No I/O; chunks may be cut anywhere and are reused
 * by their owner, so whatever outlives the call is copied, once, to where it is to stay.
 *
 * Rule: nothing is allocated before the length of a message is known and allowed, and a body is
 * one piece of memory from its first byte on. Servers of ours send unmasked frames without
 * fragments and without text; all else ends the connection.
 */
import { HEADER_BYTES, MESSAGE_BYTES_MAX } from './frame.js';

export const OPCODE_BINARY = 2;
export const OPCODE_CLOSE = 8;
export const OPCODE_PING = 9;
export const OPCODE_PONG = 10;

const FRAME_HEADER_BYTES_MIN = 2;
const CONTROL_BYTES_MAX = 125;
const FIN = 0x80;
const MASKED = 0x80;
const LENGTH_16 = 126;
const LENGTH_64 = 127;
const NOTHING = new Uint8Array(0);

export interface MessageReaderEvents {
  /**
   * Where the body of this message goes; exactly `bytes` long. `head` is valid until it returns.
   * A reader that is stopped meanwhile never calls again.
   */
  place(head: Uint8Array, bytes: number): Uint8Array;
  /** A whole message. `head` is valid until it returns; `body` is what `place` gave. */
  message(head: Uint8Array, body: Uint8Array): void;
  /** A close, ping or pong. `payload` is valid until it returns. */
  control(opcode: number, payload: Uint8Array): void;
}

export class MessageReader {
  readonly #events: MessageReaderEvents;
  /** The bytes being gathered: a frame's header, a message's head, a control frame's payload. */
  readonly #gathered = new Uint8Array(CONTROL_BYTES_MAX);
  #gatheredBytes = 0;
  #wantedBytes = FRAME_HEADER_BYTES_MIN;
  #state: 'frame' | 'head' | 'control' | 'body' = 'frame';
  #opcode = 0;
  #messageBytes = 0;
  #body: Uint8Array = NOTHING;
  #bodyBytes = 0;
  #stopped = false;

  constructor(events: MessageReaderEvents) {
    this.#events = events;
  }

  /** Takes no more bytes, not even the rest of a chunk that is being read. */
  stop(): void {
    this.#stopped = true;
    this.#body = NOTHING;
  }

  /** The rest of a body that was to go here is read and thrown away. */
  letGo(body: Uint8Array): void {
    if (this.#body === body && body.length > 0) this.#body = new Uint8Array(body.length);
  }

  /** What is wrong with the stream, or null. After a problem nothing more may be read. */
  read(chunk: Uint8Array): string | null {
    let at = 0;
    while (at < chunk.length && !this.#stopped) {
      if (this.#state === 'body') {
        const bytes = Math.min(chunk.length - at, this.#body.length - this.#bodyBytes);
        this.#body.set(chunk.subarray(at, at + bytes), this.#bodyBytes);
        this.#bodyBytes += bytes;
        at += bytes;
        if (this.#bodyBytes === this.#body.length) this.#endMessage();
        continue;
      }
      const bytes = Math.min(chunk.length - at, this.#wantedBytes - this.#gatheredBytes);
      for (let i = 0; i < bytes; i++) this.#gathered[this.#gatheredBytes + i] = chunk[at + i]!;
      this.#gatheredBytes += bytes;
      at += bytes;
      if (this.#gatheredBytes < this.#wantedBytes) continue;
      const problem = this.#gatheredAll();
      if (problem !== null) return problem;
    }
    return null;
  }

  #gather(state: 'frame' | 'head' | 'control', bytes: number): void {
    this.#state = state;
    this.#gatheredBytes = 0;
    this.#wantedBytes = bytes;
  }

  #gatheredAll(): string | null {
    switch (this.#state) {
      case 'frame':
        return this.#readFrameHeader();
      case 'head':
        this.#beginBody();
        return null;
      default:
        this.#endControl();
        return null;
    }
  }

  #readFrameHeader(): string | null {
    const bytes = this.#gathered;
    const [first, second] = [bytes[0]!, bytes[1]!];
    let length = second & ~MASKED;
    const extended = length === LENGTH_16 ? 2 : length === LENGTH_64 ? 8 : 0;
    if (this.#gatheredBytes < FRAME_HEADER_BYTES_MIN + extended) {
      this.#wantedBytes = FRAME_HEADER_BYTES_MIN + extended;
      return null;
    }
    if (extended > 0) {
      length = 0;
      for (let i = 0; i < extended; i++) length = length * 256 + bytes[2 + i]!;
    }
    this.#opcode = first & 0x0f;
    if ((first & 0x70) !== 0) return 'a frame of an unknown extension';
    if ((second & MASKED) !== 0) return 'a masked frame from a server';
    if ((first & FIN) === 0) return 'a fragment of a message';
    if (this.#opcode >= OPCODE_CLOSE && this.#opcode <= OPCODE_PONG) {
      if (length > CONTROL_BYTES_MAX) return `a control frame of ${length} bytes`;
      this.#gather('control', length);
      if (length === 0) this.#endControl();
      return null;
    }
    if (this.#opcode !== OPCODE_BINARY) return `a frame of kind ${this.#opcode}`;
    if (length < HEADER_BYTES) return `message of ${length} bytes has no header`;
    if (length > MESSAGE_BYTES_MAX) return `message of ${length} bytes is too long`;
    this.#messageBytes = length;
    this.#gather('head', HEADER_BYTES);
    return null;
  }

  #beginBody(): void {
    const bytes = this.#messageBytes - HEADER_BYTES;
    const head = this.#gathered.subarray(0, HEADER_BYTES);
    this.#body = bytes === 0 ? NOTHING : this.#events.place(head, bytes);
    this.#bodyBytes = 0;
    this.#state = 'body';
    if (bytes === 0) this.#endMessage();
  }

  #endMessage(): void {
    const body = this.#body;
    this.#body = NOTHING;
    // The head stays where it is until the next frame begins.
    this.#gather('frame', FRAME_HEADER_BYTES_MIN);
    this.#events.message(this.#gathered.subarray(0, HEADER_BYTES), body);
  }

  #endControl(): void {
    const payload = this.#gathered.subarray(0, this.#gatheredBytes);
    const opcode = this.#opcode;
    this.#gather('frame', FRAME_HEADER_BYTES_MIN);
    this.#events.control(opcode, payload);
  }
}

/**
 * The 16-byte header of every message (docs/formats.md §3) and the limits that both ends keep.
 *
 * Plain byte stores: the header is written and read once a message on the hot path, and a
 * `DataView` would be one more object for each.
 */

export const HEADER_BYTES = 16;
/** Header included. */
export const MESSAGE_BYTES_MAX = 16 * 1024 * 1024;
export const PROTOCOL_VERSION = 1;
export const KIND_REQUEST = 0;
export const KIND_REPLY = 1;
export const KIND_ERROR_REPLY = 2;

const TWO_32 = 0x1_0000_0000;
const MAGIC_LOW = 0x52;
const MAGIC_HIGH = 0x4b;

export interface Header {
  kind: number;
  opcode: number;
  status: number;
  callId: number;
  deadlineMs: number;
}

export function emptyHeader(): Header {
  return { kind: 0, opcode: 0, status: 0, callId: 0, deadlineMs: 0 };
}

/** Little-endian, as everything here. */
export function storeU32(target: Uint8Array, at: number, value: number): void {
  target[at] = value;
  target[at + 1] = value >>> 8;
  target[at + 2] = value >>> 16;
  target[at + 3] = value >>> 24;
}

/** Of an integer below 2^53. */
export function storeU64(target: Uint8Array, at: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  storeU32(target, at, value - high * TWO_32);
  storeU32(target, at + 4, high);
}

export function loadU32(source: Uint8Array, at: number): number {
  return (
    (source[at]! | (source[at + 1]! << 8) | (source[at + 2]! << 16) | (source[at + 3]! << 24)) >>> 0
  );
}

/** Writes the header to target[0 .. 16). */
export function writeHeader(
  target: Uint8Array,
  kind: number,
  opcode: number,
  status: number,
  callId: number,
  deadlineMs: number,
): void {
  target[0] = MAGIC_LOW;
  target[1] = MAGIC_HIGH;
  target[2] = PROTOCOL_VERSION;
  target[3] = kind;
  target[4] = opcode;
  target[5] = opcode >>> 8;
  target[6] = status;
  target[7] = status >>> 8;
  storeU32(target, 8, callId);
  storeU32(target, 12, deadlineMs);
}

/** Reads a header into `header`; returns what is wrong with it, or null. */
export function readHeader(bytes: Uint8Array, header: Header): string | null {
  if (bytes.length < HEADER_BYTES) return `message of ${bytes.length} bytes has no header`;
  if (bytes[0] !== MAGIC_LOW || bytes[1] !== MAGIC_HIGH) return 'wrong magic';
  if (bytes[2] !== PROTOCOL_VERSION) {
    return `message format ${bytes[2]}, this side speaks ${PROTOCOL_VERSION}`;
  }
  header.kind = bytes[3]!;
  if (header.kind > KIND_ERROR_REPLY) return `unknown message kind ${header.kind}`;
  header.opcode = bytes[4]! | (bytes[5]! << 8);
  header.status = bytes[6]! | (bytes[7]! << 8);
  header.callId = loadU32(bytes, 8);
  header.deadlineMs = loadU32(bytes, 12);
  return null;
}

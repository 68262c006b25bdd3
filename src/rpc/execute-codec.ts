/**
 * EXECUTE bodies (docs/formats.md §3). The SDK encodes requests and reads replies; the other
 * direction exists for tests and tools: on servers only the native core reads these bytes.
 *
 * Encoders write into a buffer that the caller has sized with `operationBytes` / `resultBytes`.
 */
import { bodyMemory } from './body-memory.js';
import { RekindleError } from './errors.js';
import { loadU32, storeU32, storeU64 } from './frame.js';
import type { KeyBytes } from './key-hash.js';

export const OP_READ = 1;
export const OP_WRITE = 2;
export const OP_REMOVE = 3;

/** Bits of `reject`, tested in this order. */
export const REJECT_ABSENT = 1;
export const REJECT_EXISTS = 2;
export const REJECT_VERSION_LE = 4;
export const REJECT_VERSION_NE = 8;

export const VALUE_BYTES_MAX = 1_048_576;
export const OPERATIONS_MAX = 65_536;

export const EXECUTE_HEADER_BYTES = 24;
export const EXECUTE_REPLY_HEADER_BYTES = 8;
const OPERATION_HEADER_BYTES = 32;
const RESULT_HEADER_BYTES = 16;
const TWO_32 = 0x1_0000_0000;
const COPIED_BY_HAND_MAX = 32;
/** Of a reply whose values are handed out as views of it. */
export const SHARED_BYTES_MAX = 64 * 1024;

export interface ExecuteOperation<Key extends KeyBytes = Uint8Array> {
  op: number;
  reject: number;
  tableId: number;
  rpcId: number;
  givenVersion: number;
  key: Key;
  /** Null for operations without a value. */
  value: Uint8Array | null;
}

function align8(bytes: number): number {
  return (bytes + 7) & ~7;
}

export function operationBytes(keyLength: number, valueLength: number): number {
  return OPERATION_HEADER_BYTES + align8(keyLength + valueLength);
}

export function resultBytes(valueLength: number): number {
  return RESULT_HEADER_BYTES + align8(valueLength);
}

/** A u64 that must be below 2^53. */
export function loadU64(source: Uint8Array, at: number): number {
  const high = loadU32(source, at + 4);
  if (high >= 0x20_0000) throw malformed(`u64 at ${at} is not below 2^53`);
  return high * TWO_32 + loadU32(source, at);
}

/** Short ones by hand: a call of `set` costs more than a few dozen bytes. */
function storeBytes(target: Uint8Array, at: number, bytes: Uint8Array): void {
  if (bytes.length > COPIED_BY_HAND_MAX) {
    target.set(bytes, at);
    return;
  }
  for (let i = 0; i < bytes.length; i++) target[at + i] = bytes[i]!;
}

/** As `storeBytes`, one byte a character. */
function storeAscii(target: Buffer, at: number, text: string): void {
  if (text.length > COPIED_BY_HAND_MAX) {
    target.write(text, at, 'latin1');
    return;
  }
  for (let i = 0; i < text.length; i++) target[at + i] = text.charCodeAt(i);
}

function malformed(what: string): RekindleError {
  return new RekindleError('MALFORMED_REQUEST', `EXECUTE: ${what}`);
}

export function writeExecuteHeader(
  target: Buffer,
  clientId: number,
  ackId: number,
  count: number,
): void {
  storeU64(target, 0, clientId);
  storeU64(target, 8, ackId);
  storeU32(target, 16, count);
  storeU32(target, 20, 0);
}

/** Writes one operation at `at` (a multiple of 8) and returns where the next begins. */
export function writeOperation(
  target: Buffer,
  at: number,
  operation: ExecuteOperation<KeyBytes>,
): number {
  const { key, value } = operation;
  const valueLength = value === null ? 0 : value.length;
  target[at] = operation.op;
  target[at + 1] = operation.reject;
  target[at + 2] = key.length;
  target[at + 3] = key.length >>> 8;
  storeU32(target, at + 4, valueLength);
  storeU64(target, at + 8, operation.tableId);
  storeU64(target, at + 16, operation.rpcId);
  storeU64(target, at + 24, operation.givenVersion);
  const keyAt = at + OPERATION_HEADER_BYTES;
  if (typeof key === 'string') storeAscii(target, keyAt, key);
  else storeBytes(target, keyAt, key);
  if (value !== null) storeBytes(target, keyAt + key.length, value);
  const next = at + operationBytes(key.length, valueLength);
  for (let end = keyAt + key.length + valueLength; end < next; end++) target[end] = 0;
  return next;
}

export interface ExecuteRequest {
  clientId: number;
  ackId: number;
  operations: ExecuteOperation[];
}

/** Encodes a whole request into a buffer of its own. */
export function encodeExecuteRequest(request: ExecuteRequest): Buffer {
  let bytes = EXECUTE_HEADER_BYTES;
  for (const { key, value } of request.operations) {
    bytes += operationBytes(key.length, value === null ? 0 : value.length);
  }
  const body = Buffer.allocUnsafe(bytes);
  writeExecuteHeader(body, request.clientId, request.ackId, request.operations.length);
  let at = EXECUTE_HEADER_BYTES;
  for (const operation of request.operations) at = writeOperation(body, at, operation);
  return body;
}

/** Table and key of the first operation; null if there is none, or it is cut off. */
export function firstOperation(body: Uint8Array): { tableId: number; key: Uint8Array } | null {
  const at = EXECUTE_HEADER_BYTES;
  const keyAt = at + OPERATION_HEADER_BYTES;
  if (body.length < keyAt) return null;
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const keyLength = view.getUint16(at + 2, true);
  if (keyAt + keyLength > body.length) return null;
  const tableId = view.getUint32(at + 12, true) * TWO_32 + view.getUint32(at + 8, true);
  return { tableId, key: body.subarray(keyAt, keyAt + keyLength) };
}

/** Keys and values are views of `bytes`. Throws `MALFORMED_REQUEST`. */
export function decodeExecuteRequest(bytes: Uint8Array): ExecuteRequest {
  const body = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (body.length < EXECUTE_HEADER_BYTES) throw malformed('shorter than its header');
  if (body.readUInt32LE(20) !== 0) throw malformed('unknown flags');
  const count = body.readUInt32LE(16);
  if (count > OPERATIONS_MAX) throw malformed(`${count} operations`);
  const operations: ExecuteOperation[] = [];
  let at = EXECUTE_HEADER_BYTES;
  for (let i = 0; i < count; i++) {
    if (at + OPERATION_HEADER_BYTES > body.length) throw malformed(`operation ${i} is cut off`);
    const keyLength = body.readUInt16LE(at + 2);
    const valueLength = body.readUInt32LE(at + 4);
    const next = at + operationBytes(keyLength, valueLength);
    if (next > body.length) throw malformed(`operation ${i} is cut off`);
    const keyAt = at + OPERATION_HEADER_BYTES;
    const op = body[at]!;
    operations.push({
      op,
      reject: body[at + 1]!,
      tableId: loadU64(body, at + 8),
      rpcId: loadU64(body, at + 16),
      givenVersion: loadU64(body, at + 24),
      key: body.subarray(keyAt, keyAt + keyLength),
      value:
        op === OP_WRITE ? body.subarray(keyAt + keyLength, keyAt + keyLength + valueLength) : null,
    });
    at = next;
  }
  if (at !== body.length) throw malformed(`${body.length - at} bytes behind the last operation`);
  return { clientId: loadU64(body, 0), ackId: loadU64(body, 8), operations };
}

export interface ExecuteResult {
  status: number;
  retryAfterMs: number;
  version: number;
  /** Empty where there is none. */
  value: Uint8Array;
}

export function encodeExecuteReply(results: readonly ExecuteResult[]): Buffer {
  let bytes = EXECUTE_REPLY_HEADER_BYTES;
  for (const { value } of results) bytes += resultBytes(value.length);
  const body = Buffer.alloc(bytes);
  body.writeUInt32LE(results.length, 0);
  let at = EXECUTE_REPLY_HEADER_BYTES;
  for (const { status, retryAfterMs, version, value } of results) {
    body.writeUInt16LE(status, at);
    body.writeUInt16LE(retryAfterMs, at + 2);
    body.writeUInt32LE(value.length, at + 4);
    storeU64(body, at + 8, version);
    body.set(value, at + RESULT_HEADER_BYTES);
    at += resultBytes(value.length);
  }
  return body;
}

/**
 * A cursor over the results of a reply; `next` moves to the following one and fills the fields, so
 * that reading a reply allocates only the values that the caller takes.
 */
export class ExecuteReplyReader {
  readonly count: number;
  status = 0;
  retryAfterMs = 0;
  version = 0;
  valueLength = 0;
  readonly #body: Buffer;
  readonly #reused: boolean;
  #at = EXECUTE_REPLY_HEADER_BYTES;
  #valueAt = 0;

  /** `reused`: the memory of `bytes` is used again, so all values are copied out of it. */
  constructor(bytes: Uint8Array, reused = false) {
    this.#reused = reused;
    this.#body = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (this.#body.length < EXECUTE_REPLY_HEADER_BYTES) throw brokenReply('no header');
    this.count = this.#body.readUInt32LE(0);
  }

  /** Throws `INTERNAL` if the reply ends too early. */
  next(): void {
    const at = this.#at;
    if (at + RESULT_HEADER_BYTES > this.#body.length) throw brokenReply('cut off');
    const body = this.#body;
    this.status = body[at]! | (body[at + 1]! << 8);
    this.retryAfterMs = body[at + 2]! | (body[at + 3]! << 8);
    this.valueLength = loadU32(body, at + 4);
    this.version = loadU64(body, at + 8);
    this.#valueAt = at + RESULT_HEADER_BYTES;
    if (this.#valueAt + this.valueLength > this.#body.length) throw brokenReply('cut off');
    this.#at = at + resultBytes(this.valueLength);
  }

  /**
   * The value of the present result: a view that keeps all of the message alive if that is asked
   * for, if the message is short, as Node's own pool would, or hardly longer than the value; else a
   * copy.
   */
  takeValue(asView: boolean): Buffer {
    const view = this.#body.subarray(this.#valueAt, this.#valueAt + this.valueLength);
    const shared =
      asView || this.#body.length <= SHARED_BYTES_MAX || this.valueLength * 2 > this.#body.length;
    if (shared && !this.#reused) return view;
    const copy = bodyMemory(this.valueLength);
    copy.set(view);
    return copy;
  }
}

function brokenReply(what: string): RekindleError {
  return new RekindleError('INTERNAL', `EXECUTE reply is broken: ${what}`);
}

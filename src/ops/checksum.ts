/**
 * The formats' checksum, computed by `crc-32` and not by the native core: what the inspector finds
 * is a second opinion.
 */
import crc32cSigned from 'crc-32/crc32c.js';

/** CRC-32C of a byte string whose first part has the checksum `prefix` and the rest is `bytes`. */
export function crc32c(bytes: Uint8Array, prefix = 0): number {
  return crc32cSigned.buf(bytes, prefix) >>> 0;
}

/** Ids, versions and positions stay below 2^53 by contract; anything else is damage. */
export function safeU64(bytes: Buffer, at: number): number | null {
  const value = bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32;
  return Number.isSafeInteger(value) ? value : null;
}

/**
 * The formats' checksum where the native core is not loaded or must not be its own witness:
 * computed by `crc-32`.
 */
import crc32cSigned from 'crc-32/crc32c.js';

/** CRC-32C of a byte string whose first part has the checksum `prefix` and the rest is `bytes`. */
export function crc32c(bytes: Uint8Array, prefix = 0): number {
  return crc32cSigned.buf(bytes, prefix) >>> 0;
}

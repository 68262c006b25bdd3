/**
 * LZ4 images of closed replicas (docs/formats.md §4), decompressed by `lz4-napi`. Rule: a block is
 * decompressed only after its lengths are within their limits and its checksum matches, so that
 * damaged bytes cannot ask for much memory.
 */
import { uncompressSync } from 'lz4-napi';
import { crc32c } from '../checksum.js';

export const IMAGE_BLOCK_BYTES = 256 * 2 ** 10;

const headerBytes = 8;
const descriptorBytes = 16;

/** The `rawLength` raw bytes of an image, or what is wrong with it. */
export function decodeLz4Image(image: Buffer, rawLength: number): Buffer | string {
  if (image.length < headerBytes) return 'the image is cut off';
  const count = image.readUInt32LE(0);
  if (count !== Math.ceil(rawLength / IMAGE_BLOCK_BYTES)) return `the image has ${count} blocks`;
  let at = headerBytes + count * descriptorBytes;
  if (at > image.length) return 'the image is cut off';
  const blocks: Buffer[] = [];
  for (let index = 0; index < count; index++) {
    const descriptor = image.subarray(headerBytes + index * descriptorBytes);
    const expected = Math.min(IMAGE_BLOCK_BYTES, rawLength - index * IMAGE_BLOCK_BYTES);
    const stored = image.subarray(at, at + descriptor.readUInt32LE(4));
    const block = decodeBlock(descriptor, stored, expected);
    if (typeof block === 'string') return `block ${index}: ${block}`;
    blocks.push(block);
    at += stored.length;
  }
  return Buffer.concat(blocks);
}

function decodeBlock(descriptor: Buffer, stored: Buffer, expected: number): Buffer | string {
  if (descriptor.readUInt32LE(0) !== expected) return 'the raw length is wrong';
  if (stored.length !== descriptor.readUInt32LE(4)) return 'the block is cut off';
  if (crc32c(stored) !== descriptor.readUInt32LE(8)) return 'the checksum is wrong';
  const codec = descriptor.readUInt32LE(12);
  if (codec > 1) return `unknown codec ${codec}`;
  const raw = codec === 0 ? stored : decompress(stored, expected);
  if (typeof raw === 'string') return raw;
  return raw.length === expected ? raw : 'the raw length is wrong';
}

/** lz4-napi wants the raw length before the block, which the image keeps in its descriptor. */
function decompress(stored: Buffer, rawLength: number): Buffer | string {
  const sized = Buffer.allocUnsafe(4 + stored.length);
  sized.writeUInt32LE(rawLength, 0);
  stored.copy(sized, 4);
  try {
    return uncompressSync(sized);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/**
 * The key hash of docs/formats.md §1 in plain TypeScript: MurmurHash3_x86_128 over 32-bit lanes,
 * seeded with the whole table id. The same function as `native/core/src/key_hash.rs`;
 * `test/golden/key-hash.json` holds the two together.
 *
 * The result is left in `KeyHash.low` and `KeyHash.slot`, so that a hash allocates nothing.
 */

import { invariant } from './errors.js';

/**
 * The bytes of a key. A string stands for itself while it is ASCII, one byte a character: then no
 * buffer is made of it, here and in messages.
 */
export type KeyBytes = Uint8Array | string;

export const KEY_BYTES_MAX = 65_535;
/** Not a slot. */
export const NOT_ASCII = -1;

const C1 = 0x239b961b;
const C2 = 0xab0e9789 | 0;
const C3 = 0x38b34ae5;
const C4 = 0xa1e38b93 | 0;
const TWO_32 = 0x1_0000_0000;

function rotateLeft(value: number, bits: number): number {
  return (value << bits) | (value >>> (32 - bits));
}

function mix(word: number, first: number, rotation: number, second: number): number {
  return Math.imul(rotateLeft(Math.imul(word, first), rotation), second);
}

function finalMix(value: number): number {
  let h = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return h ^ (h >>> 16);
}

function word(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);
}

/** The word at `at`, with zeros for bytes behind the end. */
function tailWord(bytes: Uint8Array, at: number, end: number): number {
  let result = 0;
  for (let i = 0; i < 4 && at + i < end; i++) result |= bytes[at + i]! << (8 * i);
  return result;
}

/** Of the string that is being hashed; as long as the longest key once one is longer than this. */
let characters = new Uint8Array(256);

/** Result of the newest `hashKey`: both unsigned; the 64-bit hash is low | slot << 32. */
export const KeyHash = { low: 0, slot: 0 };

/** Hashes a key and returns its slot; `KeyHash` has both halves. */
export function hashKey(tableId: number, key: KeyBytes): number {
  if (typeof key !== 'string') return hashBytes(tableId, key, key.length);
  const slot = hashText(tableId, key);
  invariant(slot !== NOT_ASCII, 'a key that is a string is ASCII');
  return slot;
}

/** The same of a string that may be other than ASCII, or too long for a key: then `NOT_ASCII`. */
export function hashText(tableId: number, text: string): number {
  const { length } = text;
  if (length > KEY_BYTES_MAX) return NOT_ASCII;
  if (characters.length < length) characters = new Uint8Array(KEY_BYTES_MAX);
  let bits = 0;
  for (let i = 0; i < length; i++) {
    const code = text.charCodeAt(i);
    characters[i] = code;
    bits |= code;
  }
  return bits < 0x80 ? hashBytes(tableId, characters, length) : NOT_ASCII;
}

/** Of the first `length` bytes. */
function hashBytes(tableId: number, key: Uint8Array, length: number): number {
  let h1 = tableId | 0;
  let h2 = Math.floor(tableId / TWO_32) | 0;
  let h3 = h1;
  let h4 = h2;
  const blocksEnd = length - (length % 16);
  for (let at = 0; at < blocksEnd; at += 16) {
    h1 ^= mix(word(key, at), C1, 15, C2);
    h1 = (Math.imul((rotateLeft(h1, 19) + h2) | 0, 5) + 0x561ccd1b) | 0;
    h2 ^= mix(word(key, at + 4), C2, 16, C3);
    h2 = (Math.imul((rotateLeft(h2, 17) + h3) | 0, 5) + 0x0bcaa747) | 0;
    h3 ^= mix(word(key, at + 8), C3, 17, C4);
    h3 = (Math.imul((rotateLeft(h3, 15) + h4) | 0, 5) + 0x96cd1c35) | 0;
    h4 ^= mix(word(key, at + 12), C4, 18, C1);
    h4 = (Math.imul((rotateLeft(h4, 13) + h1) | 0, 5) + 0x32ac3b17) | 0;
  }
  if (blocksEnd < length) {
    // A lane without tail bytes mixes a zero word, which leaves it unchanged.
    h4 ^= mix(tailWord(key, blocksEnd + 12, length), C4, 18, C1);
    h3 ^= mix(tailWord(key, blocksEnd + 8, length), C3, 17, C4);
    h2 ^= mix(tailWord(key, blocksEnd + 4, length), C2, 16, C3);
    h1 ^= mix(tailWord(key, blocksEnd, length), C1, 15, C2);
  }
  h1 ^= length;
  h2 ^= length;
  h3 ^= length;
  h4 ^= length;
  h1 = (h1 + h2 + h3 + h4) | 0;
  h2 = finalMix((h2 + h1) | 0);
  h3 = finalMix((h3 + h1) | 0);
  h4 = finalMix((h4 + h1) | 0);
  h1 = (finalMix(h1) + h2 + h3 + h4) | 0;
  KeyHash.low = h1 >>> 0;
  KeyHash.slot = (h2 + h1) >>> 0;
  return KeyHash.slot;
}

/**
 * Superblocks and slots of frames (docs/formats.md §4), read without the native core. A slot counts
 * only if both of its checksums match; which slot of a frame counts is the caller's question.
 */
import { crc32c } from '../checksum.js';

export const BLOCK_BYTES = 4096;
export const SLOT_BYTES = 2 * BLOCK_BYTES;
export const DATA_OFFSET = 2 * SLOT_BYTES;
export const SEGMENT_BYTES = 8 * 2 ** 20;
export const FRAME_BYTES = DATA_OFFSET + SEGMENT_BYTES;

const superblockMagic = 'RKSB';
const frameMagic = 'RKFR';
const format = 1;
const fencedMax = 448;
const primaryBit = 256;
const states = { 1: 'open', 2: 'closed', 3: 'free', 4: 'ahead' } as const;
const codecs = ['raw', 'lz4'] as const;

export interface Superblock {
  sequence: number;
  serverId: number;
  /** Null before the first enlistment. */
  clusterId: string | null;
  segmentBytes: number;
  fenced: number[];
}

export interface Slot {
  sequence: number;
  masterId: number;
  segmentId: number;
  epoch: number;
  length: number;
  checksum: number;
  /** `ahead`: open, and bytes behind these may have been acknowledged. */
  state: 'open' | 'closed' | 'free' | 'ahead';
  primary: boolean;
  codec: 'raw' | 'lz4';
  stored: number;
  /** The last, partial block of a raw replica, zero-padded. */
  tail: Buffer;
}

/** A superblock, or what is wrong with it. */
export function decodeSuperblock(bytes: Buffer): Superblock | string {
  if (bytes.length !== BLOCK_BYTES) return `${bytes.length} bytes instead of ${BLOCK_BYTES}`;
  const opening = openingDamage(bytes, superblockMagic);
  if (opening !== null) return opening;
  const [sequence, serverId] = [safeU64(bytes, 8), safeU64(bytes, 16)];
  const fencedCount = bytes.readUInt32LE(68);
  if (fencedCount > fencedMax) return `${fencedCount} fences`;
  const fenced = Array.from({ length: fencedCount }, (_, index) => safeU64(bytes, 72 + 8 * index));
  if (sequence === null || serverId === null || !allPresent(fenced)) return 'an id is above 2^53';
  const clusterId = bytes.subarray(24, 60);
  return {
    sequence,
    serverId,
    clusterId: isZero(clusterId) ? null : clusterId.toString('latin1'),
    segmentBytes: bytes.readUInt32LE(64),
    fenced,
  };
}

/** The 8 KiB of a slot; null if it was never written, a text if it is damaged. */
export function decodeSlot(bytes: Buffer): Slot | string | null {
  if (bytes.length !== SLOT_BYTES) return 'the slot is cut off';
  if (isZero(bytes)) return null;
  const block = bytes.subarray(0, BLOCK_BYTES);
  const tail = bytes.subarray(BLOCK_BYTES);
  const opening = openingDamage(block, frameMagic);
  if (opening !== null) return opening;
  if (crc32c(tail) !== block.readUInt32LE(BLOCK_BYTES - 8)) return "the tail's checksum is wrong";
  const stateBits = block.readUInt32LE(48);
  const state = states[(stateBits & ~primaryBit) as keyof typeof states];
  const codec = codecs[block.readUInt32LE(52)];
  if (state === undefined || codec === undefined) return 'unknown state or codec';
  const [length, stored] = [block.readUInt32LE(40), block.readUInt32LE(56)];
  if (length > SEGMENT_BYTES || stored > SEGMENT_BYTES) return 'a length exceeds the segment';
  const ids = [8, 16, 24, 32].map((at) => safeU64(block, at));
  if (!allPresent(ids)) return 'an id is above 2^53';
  const [sequence = 0, masterId = 0, segmentId = 0, epoch = 0] = ids;
  const checksum = block.readUInt32LE(44);
  const primary = (stateBits & primaryBit) !== 0;
  const replica = { sequence, masterId, segmentId, epoch, length, checksum };
  return { ...replica, state, primary, codec, stored, tail };
}

/** Bytes of `length` that lie in complete blocks. */
export function blockFloor(length: number): number {
  return length - (length % BLOCK_BYTES);
}

export function openingDamage(block: Buffer, magic: string): string | null {
  if (block.toString('latin1', 0, 4) !== magic) return 'the magic number is wrong';
  if (block.readUInt32LE(4) !== format) return `unknown format ${block.readUInt32LE(4)}`;
  const right = crc32c(block.subarray(0, BLOCK_BYTES - 4)) === block.readUInt32LE(BLOCK_BYTES - 4);
  return right ? null : 'the checksum is wrong';
}

function isZero(bytes: Buffer): boolean {
  return bytes.every((byte) => byte === 0);
}

function allPresent(values: (number | null)[]): values is number[] {
  return values.every((value) => value !== null);
}

/** Ids, versions and positions stay below 2^53 by contract; anything else is damage. */
export function safeU64(bytes: Buffer, at: number): number | null {
  const value = bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32;
  return Number.isSafeInteger(value) ? value : null;
}

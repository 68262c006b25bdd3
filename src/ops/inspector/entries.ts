/**
 * Log entries (docs/formats.md §2), read without the native core. Rule: no field of an entry is
 * given out before its lengths are checked against the bytes at hand and its checksum matches.
 */
import { crc32c } from '../checksum.js';

export const ENTRY_HEADER_BYTES = 32;

const typeNames = {
  1: 'SEGMENT_HEADER',
  2: 'OBJECT',
  3: 'TOMBSTONE',
  4: 'LOG_DIGEST',
  5: 'SAFE_VERSION',
  6: 'TABLE_STATS',
  8: 'PADDING',
  9: 'NOTE',
} as const;
const flagMore = 1;
const flagsUnknown = 0b1110;
const priorShift = 4;

export type EntryType = (typeof typeNames)[keyof typeof typeNames];

export interface LogEntry {
  type: EntryType;
  /** The next entry belongs to the same atomic append. */
  more: boolean;
  timestamp: number;
  tableId: bigint;
  version: bigint;
  /** Segments that may hold older, dead versions of the key. */
  prior: bigint[];
  key: Buffer;
  value: Buffer;
  offset: number;
  /** Padding included. */
  bytes: number;
}

/** Entries up to the first that is damaged; `damage` says what is wrong with that one. */
export interface EntryList {
  entries: LogEntry[];
  damage: string | null;
}

export interface TabletStats {
  tableId: bigint;
  startSlot: number;
  endSlot: number;
  bytes: bigint;
  records: bigint;
}

/** The entry at `offset`, or what is wrong with it. */
export function decodeEntry(bytes: Buffer, offset = 0): LogEntry | string {
  if (bytes.length - offset < ENTRY_HEADER_BYTES) return 'the header is cut off';
  const type = typeNames[bytes.readUInt8(offset + 4) as keyof typeof typeNames];
  if (type === undefined) return `unknown type ${bytes.readUInt8(offset + 4)}`;
  const flags = bytes.readUInt8(offset + 5);
  if ((flags & flagsUnknown) !== 0) return `unknown flags ${flags}`;
  const priorStart = offset + ENTRY_HEADER_BYTES;
  const keyStart = priorStart + 8 * (flags >> priorShift);
  const valueStart = keyStart + bytes.readUInt16LE(offset + 6);
  const end = valueStart + bytes.readUInt32LE(offset + 8);
  if (end > bytes.length) return 'the entry is cut off';
  const covered = type === 'PADDING' ? priorStart : end;
  if (crc32c(bytes.subarray(offset + 4, covered)) !== bytes.readUInt32LE(offset)) {
    return 'the checksum is wrong';
  }
  return {
    type,
    more: (flags & flagMore) !== 0,
    timestamp: bytes.readUInt32LE(offset + 12),
    tableId: bytes.readBigUInt64LE(offset + 16),
    version: bytes.readBigUInt64LE(offset + 24),
    prior: rows(bytes.subarray(priorStart, keyStart), 8).map((row) => row.readBigUInt64LE(0)),
    key: bytes.subarray(keyStart, valueStart),
    value: bytes.subarray(valueStart, end),
    offset,
    bytes: Math.ceil((end - offset) / 8) * 8,
  };
}

/** All entries of a segment or recovery segment, which ends where its certificate ends. */
export function decodeEntries(bytes: Buffer): EntryList {
  const entries: LogEntry[] = [];
  for (let offset = 0; offset < bytes.length; ) {
    const entry = decodeEntry(bytes, offset);
    if (typeof entry === 'string') return { entries, damage: `entry at ${offset}: ${entry}` };
    entries.push(entry);
    offset += entry.bytes;
  }
  const cut = entries.at(-1)?.more === true;
  return { entries, damage: cut ? 'the last atomic append is cut off' : null };
}

export function decodeDigest(value: Buffer): bigint[] {
  return rows(value, 8).map((row) => row.readBigUInt64LE(0));
}

export function decodeTableStats(value: Buffer): TabletStats[] {
  return rows(value, 32).map((row) => ({
    tableId: row.readBigUInt64LE(0),
    startSlot: row.readUInt32LE(8),
    endSlot: row.readUInt32LE(12),
    bytes: row.readBigUInt64LE(16),
    records: row.readBigUInt64LE(24),
  }));
}

function rows(value: Buffer, rowBytes: number): Buffer[] {
  return Array.from({ length: Math.floor(value.length / rowBytes) }, (_, index) =>
    value.subarray(index * rowBytes, (index + 1) * rowBytes),
  );
}

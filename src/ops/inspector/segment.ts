/**
 * Segments and recovery segments (docs/formats.md §2): bytes that count as far as a certificate
 * reaches, and what is in them. Everything is checked: the certificate against all bytes, each
 * entry against its own checksum, the opening against what a segment must begin with.
 */
import { crc32c } from '../checksum.js';
import { decodeDigest, decodeEntries, type EntryType, type LogEntry } from './entries.js';

export interface Certificate {
  length: number;
  checksum: number;
}

export interface SegmentSummary {
  kind: 'log' | 'side' | null;
  counts: Partial<Record<EntryType, number>>;
  /** Segments that the digest names; null without one. */
  digest: string[] | null;
  /** What a head says of its master; null without a digest. */
  notes: Record<string, string> | null;
  damage: string[];
}

export interface RecoverySegment {
  certificate: Certificate;
  entries: LogEntry[];
  damage: string[];
}

const segmentKinds = ['log', 'side'] as const;
const recoveryTypes: readonly EntryType[] = ['OBJECT', 'TOMBSTONE', 'SAFE_VERSION'];

/** Looks at all bytes of a replica of segment `segmentId` of log `logId`. */
export function inspectSegment(
  bytes: Buffer,
  certificate: Certificate,
  logId: bigint,
  segmentId: bigint,
): SegmentSummary {
  const { entries, damage } = decodeEntries(bytes);
  const findings = [certificateDamage(bytes, certificate), damage];
  const header = entries[0];
  let kind: SegmentSummary['kind'] = null;
  if (header?.type === 'SEGMENT_HEADER' && header.value.length === 16) {
    kind = segmentKinds[header.value.readUInt32LE(4)] ?? null;
    if (header.tableId !== logId || header.version !== segmentId) {
      findings.push(`the header names segment ${header.version} of log ${header.tableId}`);
    }
  }
  if (kind === null) findings.push('there is no segment header');
  const counts: SegmentSummary['counts'] = {};
  for (const { type } of entries) counts[type] = (counts[type] ?? 0) + 1;
  const digest = entries.find(({ type }) => type === 'LOG_DIGEST');
  return {
    kind,
    counts,
    digest: digest === undefined ? null : decodeDigest(digest.value).map(String),
    notes: digest === undefined ? null : notesOf(entries),
    damage: findings.filter((finding) => finding !== null),
  };
}

/** The opening repeats all notes that there were; an empty value takes one back. */
function notesOf(entries: readonly LogEntry[]): Record<string, string> {
  const notes = new Map<string, string>();
  for (const { type, key, value } of entries) {
    if (type !== 'NOTE') continue;
    if (value.length === 0) notes.delete(key.toString());
    else notes.set(key.toString(), value.toString());
  }
  return Object.fromEntries(notes);
}

/** The body of a GET_RECOVERY_DATA reply; its checksum covers the checksums of the entries. */
export function decodeRecoverySegment(body: Buffer): RecoverySegment {
  const certificate = { length: body.readUInt32LE(0), checksum: body.readUInt32LE(4) };
  const bytes = body.subarray(8);
  const { entries, damage } = decodeEntries(bytes);
  const foreign = entries.find(({ type }) => !recoveryTypes.includes(type));
  const checksums = Buffer.concat(entries.map(({ offset }) => bytes.subarray(offset, offset + 4)));
  const findings = [
    bytes.length === certificate.length ? null : lengthDamage(bytes, certificate),
    crc32c(checksums) === certificate.checksum ? null : 'the certificate does not match',
    damage,
    foreign === undefined ? null : `a ${foreign.type} at ${foreign.offset}`,
  ];
  return { certificate, entries, damage: findings.filter((finding) => finding !== null) };
}

function lengthDamage(bytes: Buffer, certificate: Certificate): string {
  return `${bytes.length} bytes, ${certificate.length} are certified`;
}

export function certificateDamage(bytes: Buffer, certificate: Certificate): string | null {
  if (bytes.length !== certificate.length) return lengthDamage(bytes, certificate);
  return crc32c(bytes) === certificate.checksum ? null : 'the certificate does not match';
}

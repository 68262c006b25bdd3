/**
 * Vectors of `test/golden` for the log and the disk, decoded by the inspector, which computes
 * checksums with crc-32 and decompresses with lz4-napi. native/core/tests/golden.rs checks the
 * same vectors from the other side.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeBackupWriteHeader } from '../../src/master/replica-manager-runtime.js';
import { crc32c } from '../../src/ops/checksum.js';
import { type Directory, decodeDirectory, isDirectory } from '../../src/ops/inspector/directory.js';
import {
  decodeDigest,
  decodeEntries,
  decodeEntry,
  decodeTableStats,
  type LogEntry,
} from '../../src/ops/inspector/entries.js';
import { decodeSlot, decodeSuperblock, type Slot } from '../../src/ops/inspector/frame.js';
import { decodeLz4Image } from '../../src/ops/inspector/lz4-image.js';
import {
  type Certificate,
  decodeRecoverySegment,
  inspectSegment,
} from '../../src/ops/inspector/segment.js';
import { decodeStateCopy } from '../../src/ops/inspector/state-copy.js';
import { hashKey } from '../../src/rpc/key-hash.js';
import { bytesOf, golden, hexOf, type Patched, patched } from './golden-vectors.js';

interface EntryFields {
  type: string;
  more: boolean;
  timestamp: number;
  tableId: string;
  version: string;
  prior: string[];
  key: string;
  value: string;
}

interface SegmentVector {
  logId: string;
  segmentId: number;
  entries: EntryFields[];
  opening: Certificate;
  certificate: Certificate;
  bytes: string;
}

const SEGMENT = golden<SegmentVector>('segment');

function fieldsOf(entry: LogEntry): EntryFields {
  const { type, more, timestamp, tableId, version, prior, key, value } = entry;
  const ids = { tableId: String(tableId), version: String(version), prior: prior.map(String) };
  return { type, more, timestamp, ...ids, key: hexOf(key), value: hexOf(value) };
}

function inspected(bytes: Buffer, certificate: Certificate) {
  return inspectSegment(bytes, certificate, BigInt(SEGMENT.logId), BigInt(SEGMENT.segmentId));
}

test('the checksum is the standard one and continues', () => {
  assert.equal(crc32c(Buffer.from('123456789')), 0xe306_9283);
  assert.equal(crc32c(Buffer.from('56789'), crc32c(Buffer.from('1234'))), 0xe306_9283);
});

test('log entries equal their vectors, others are refused', () => {
  const { vectors, refused } = golden<{
    vectors: (EntryFields & { bytes: string })[];
    refused: { why: string; bytes: string }[];
  }>('entries');
  for (const { bytes, ...fields } of vectors) {
    const entry = decodeEntry(bytesOf(bytes));
    assert.ok(typeof entry !== 'string', String(entry));
    assert.deepEqual(fieldsOf(entry), fields);
    assert.equal(entry.bytes, bytesOf(bytes).length);
  }
  for (const { why, bytes } of refused) {
    assert.equal(typeof decodeEntry(bytesOf(bytes)), 'string', why);
  }
});

test('a segment has its opening, its entries and its certificate', () => {
  const bytes = bytesOf(SEGMENT.bytes);
  const { entries, damage } = decodeEntries(bytes);
  assert.equal(damage, null);
  assert.deepEqual(entries.map(fieldsOf), SEGMENT.entries);
  const opening = bytes.subarray(0, SEGMENT.opening.length);
  assert.deepEqual(inspected(opening, SEGMENT.opening).damage, []);
  const { kind, digest, counts } = inspected(bytes, SEGMENT.certificate);
  assert.deepEqual([kind, digest, counts.OBJECT], ['log', ['2', '3', '5'], 5]);
  const [, digestEntry, statsEntry] = entries;
  assert.deepEqual(decodeDigest(digestEntry?.value ?? Buffer.alloc(0)), [2n, 3n, 5n]);
  assert.deepEqual(decodeTableStats(statsEntry?.value ?? Buffer.alloc(0)), [
    { tableId: 1n, startSlot: 0, endSlot: 0xffff_ffff, bytes: 1234n, records: 7n },
    {
      tableId: 9n,
      startSlot: 0x8000_0000,
      endSlot: 0xffff_ffff,
      bytes: 2n ** 40n,
      records: 2n ** 33n,
    },
  ]);
});

test('every flipped bit of a segment is found, and half an atomic append', () => {
  const bytes = bytesOf(SEGMENT.bytes);
  for (let bit = 0; bit < bytes.length * 8; bit += 13) {
    const damaged = Buffer.from(bytes);
    damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    assert.notDeepEqual(inspected(damaged, SEGMENT.certificate).damage, [], `bit ${bit}`);
  }
  const { entries } = decodeEntries(bytes);
  const half = entries.find(({ more }) => more);
  assert.ok(half !== undefined);
  const cut = bytes.subarray(0, half.offset + half.bytes);
  assert.match(decodeEntries(cut).damage ?? '', /atomic append/);
});

interface PieceVector {
  tablets: { tableId: string; startSlot: number; endSlot: number }[];
  certificate: Certificate;
  bytes: string;
}

test('recovery segments are the segment, filtered by partition', () => {
  const source = decodeEntries(bytesOf(SEGMENT.bytes)).entries;
  for (const piece of golden<{ partitions: PieceVector[] }>('recovery-segment').partitions) {
    const { certificate, entries, damage } = decodeRecoverySegment(bytesOf(piece.bytes));
    assert.deepEqual([certificate, damage], [piece.certificate, []]);
    const belongs = ({ type, tableId, key }: LogEntry): boolean => {
      if (type === 'SAFE_VERSION') return true;
      if (type !== 'OBJECT' && type !== 'TOMBSTONE') return false;
      const slot = hashKey(Number(tableId), key);
      return piece.tablets.some(
        (tablet) =>
          BigInt(tablet.tableId) === tableId && slot >= tablet.startSlot && slot <= tablet.endSlot,
      );
    };
    assert.deepEqual(entries.map(fieldsOf), source.filter(belongs).map(fieldsOf));
  }
});

test('headers of BACKUP_WRITE equal their vectors', () => {
  const { masterId, writes } = golden<{
    masterId: string;
    writes: {
      epoch: number;
      offset: number;
      end: number;
      open: boolean;
      close: boolean;
      primary: boolean;
      certified: boolean;
      checksum: number;
      header: string;
    }[];
  }>('backup-write');
  for (const { header, primary, ...write } of writes) {
    const addressee = { segmentId: SEGMENT.segmentId, replicaIndex: 0, serverId: 1, token: 1 };
    const segmentWrite = { ...write, ...addressee };
    const encoded = encodeBackupWriteHeader(Number(masterId), segmentWrite, primary);
    assert.equal(hexOf(encoded), header);
  }
});

interface SuperblockVector extends Patched {
  sequence: number;
  serverId: number;
  clusterId: string | null;
  fenced: number[];
}

test('superblocks equal their vectors', () => {
  for (const vector of golden<{ vectors: SuperblockVector[] }>('superblock').vectors) {
    const { sequence, serverId, clusterId, fenced } = vector;
    const expected = { sequence, serverId, clusterId, segmentBytes: 8_388_608, fenced };
    const bytes = patched(vector);
    assert.deepEqual(decodeSuperblock(bytes), expected);
    bytes[2000] = 1;
    assert.equal(decodeSuperblock(bytes), 'the checksum is wrong');
    bytes[0] = 0;
    assert.equal(decodeSuperblock(bytes), 'the magic number is wrong');
  }
});

type SlotVector = Omit<Slot, 'tail'> & Pick<Patched, 'patches'> & { tail: string };

test('slots of frames equal their vectors', () => {
  for (const vector of golden<{ vectors: SlotVector[] }>('frame-slot').vectors) {
    const { patches, tail, ...fields } = vector;
    const bytes = patched({ length: 8192, patches });
    const slot = decodeSlot(bytes);
    assert.ok(slot !== null && typeof slot !== 'string', String(slot));
    const { tail: tailBlock, ...found } = slot;
    assert.deepEqual(found, fields);
    assert.equal(hexOf(tailBlock.subarray(0, tail.length / 2)), tail);
    for (const at of [9, 4000, 4090, 4097, 8191]) {
      const damaged = Buffer.from(bytes);
      damaged[at] = (damaged[at] ?? 0) ^ 0x10;
      assert.equal(typeof decodeSlot(damaged), 'string', `byte ${at}`);
    }
  }
  assert.equal(decodeSlot(Buffer.alloc(8192)), null);
});

type DirectoryVector = Directory & Pick<Patched, 'patches'>;

test('directories of shared frames equal their vectors', () => {
  for (const vector of golden<{ vectors: DirectoryVector[] }>('frame-directory').vectors) {
    const { patches, ...fields } = vector;
    const block = patched({ length: 4096, patches });
    assert.ok(isDirectory(block));
    assert.deepEqual(decodeDirectory(block), fields);
    for (const at of [9, 16, 70, 109, 3000, 4095]) {
      const damaged = Buffer.from(block);
      damaged[at] = (damaged[at] ?? 0) ^ 0x10;
      assert.equal(typeof decodeDirectory(damaged), 'string', `byte ${at}`);
    }
  }
});

test('an LZ4 image gives back its raw bytes or says what is wrong', () => {
  const vector = golden<{
    unit: string;
    repeat: number;
    fill: number;
    rest: string;
    rawLength: number;
    checksum: number;
    image: string;
  }>('lz4-image');
  const rest = bytesOf(vector.rest);
  const raw = Buffer.alloc(vector.rawLength, vector.fill);
  const { length } = bytesOf(vector.unit);
  raw.fill(bytesOf(vector.unit), 0, vector.repeat * length);
  rest.copy(raw, raw.length - rest.length);
  assert.equal(crc32c(raw), vector.checksum);
  const image = bytesOf(vector.image);
  const decoded = decodeLz4Image(image, vector.rawLength);
  assert.ok(typeof decoded !== 'string', String(decoded));
  assert.ok(decoded.equals(raw));
  assert.equal(typeof decodeLz4Image(image.subarray(0, -1), vector.rawLength), 'string');
  assert.equal(typeof decodeLz4Image(image, vector.rawLength - 1), 'string');
  for (let at = 8; at < image.length; at += 7) {
    const damaged = Buffer.from(image);
    damaged[at] = (damaged[at] ?? 0) ^ 0x40;
    assert.equal(typeof decodeLz4Image(damaged, vector.rawLength), 'string', `byte ${at}`);
  }
});

test('the copy of the coordinator state equals its vector', () => {
  const { clusterId, term, revision, keys, file } = golden<{
    clusterId: string;
    term: number;
    revision: number;
    keys: string[];
    file: string;
  }>('coordinator-state');
  assert.deepEqual(decodeStateCopy(file), { clusterId, term, revision, keys });
  assert.equal(decodeStateCopy(file.replace('"up', '"uq')), 'the checksum is wrong');
  assert.equal(decodeStateCopy(`${file}}`), 'the file is no JSON');
});

/**
 * The frame file of a server that is stopped, frame by frame: which slot counts, which replicas it
 * names, whether every byte of them is right. Follows *Restart* of docs/formats.md §4, but where a
 * restart believes the slot of a closed replica, the inspector reads all of its bytes.
 *
 * One replica is in memory at a time. A live server changes frames meanwhile: its findings may be
 * false.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import {
  type Directory,
  decodeDirectory,
  isDirectory,
  type Piece,
  type Tenant,
  UNIT_BYTES,
  unitsOf,
} from './directory.js';
import {
  BLOCK_BYTES,
  blockFloor,
  DATA_OFFSET,
  decodeSlot,
  FRAME_BYTES,
  SLOT_BYTES,
  type Slot,
} from './frame.js';
import { decodeLz4Image } from './lz4-image.js';
import { inspectSegment, type SegmentSummary } from './segment.js';

export interface FrameReport {
  frame: number;
  /** `bad`: slots were written, and no replica that they name is whole. */
  status: 'free' | 'replica' | 'shared' | 'bad';
  /** Of a shared frame: the images that have their home here. */
  replicas: ReplicaReport[];
  /** What does not match its checksum, the slot that does not count included. */
  damage: string[];
}

export interface ReplicaReport extends Omit<Slot, 'tail'>, Omit<SegmentSummary, 'damage'> {
  slot: number;
  /** Where an image lies in shared frames, its home first. */
  pieces: Piece[];
}

interface Found<T> {
  slot: T;
  index: number;
}

/** Reports every frame to `each`, in the order of the file. */
export function inspectFrameFile(path: string, each: (report: FrameReport) => void): void {
  const file = openSync(path, 'r');
  try {
    const frames = Math.ceil(fstatSync(file).size / FRAME_BYTES);
    for (let frame = 0; frame < frames; frame++) each(inspectFrame(file, frame));
  } finally {
    closeSync(file);
  }
}

function inspectFrame(file: number, frame: number): FrameReport {
  const start = frame * FRAME_BYTES;
  const damage: string[] = [];
  const valid: Found<Slot | Directory>[] = [];
  for (const index of [0, 1]) {
    const bytes = readUpTo(file, start + index * SLOT_BYTES, SLOT_BYTES);
    const shared = isDirectory(bytes);
    const slot = shared ? decodeDirectory(bytes.subarray(0, BLOCK_BYTES)) : decodeSlot(bytes);
    if (typeof slot === 'string') damage.push(`slot ${index}: ${slot}`);
    else if (slot !== null) valid.push({ slot, index });
  }
  valid.sort((one, other) => other.slot.sequence - one.slot.sequence);
  const [newest] = valid;
  if (newest === undefined) {
    return { frame, status: damage.length === 0 ? 'free' : 'bad', replicas: [], damage };
  }
  if ('tenants' in newest.slot) {
    return inspectShared(file, frame, newest as Found<Directory>, damage);
  }
  const slots = valid.filter((found): found is Found<Slot> => !('tenants' in found.slot));
  return inspectWhole(file, frame, slots, damage);
}

/** The slots of a frame that one replica has for itself, the newest first. */
function inspectWhole(
  file: number,
  frame: number,
  slots: Found<Slot>[],
  damage: string[],
): FrameReport {
  const newest = slots[0]?.slot;
  if (newest === undefined || newest.state === 'free') {
    return { frame, status: 'free', replicas: [], damage };
  }
  const { masterId, segmentId } = newest;
  for (const { slot, index } of slots) {
    const same = slot.masterId === masterId && slot.segmentId === segmentId;
    if (!same || slot.state === 'free') continue;
    const bytes = replicaBytes(file, frame * FRAME_BYTES, slot);
    const summary = inspectReplica(bytes, slot);
    damage.push(...summary.damage.map((finding) => `replica of slot ${index}: ${finding}`));
    if (summary.damage.length === 0) {
      const { tail: _, ...fields } = slot;
      const { damage: _damage, ...content } = summary;
      const replica = { ...fields, slot: index, pieces: [], ...content };
      return { frame, status: 'replica', replicas: [replica], damage };
    }
  }
  return { frame, status: 'bad', replicas: [], damage };
}

function inspectShared(
  file: number,
  frame: number,
  { slot, index }: Found<Directory>,
  damage: string[],
): FrameReport {
  const replicas: ReplicaReport[] = [];
  const { sequence, tenants } = slot;
  for (const tenant of tenants) {
    const { units, next, ...fields } = tenant;
    const pieces = [{ frame, units }, ...(next === null ? [] : [next])];
    const image = Buffer.concat(pieces.flatMap((piece) => readUnits(file, piece)));
    const bytes = decodeLz4Image(image.subarray(0, tenant.stored), tenant.length);
    const { damage: found, ...summary } = inspectReplica(bytes, tenant);
    damage.push(...found.map((finding) => `image of segment ${tenant.segmentId}: ${finding}`));
    if (found.length > 0) continue;
    const closed = { sequence, state: 'closed', codec: 'lz4', slot: index } as const;
    replicas.push({ ...fields, ...closed, pieces, ...summary });
  }
  return { frame, status: replicas.length > 0 ? 'shared' : 'bad', replicas, damage };
}

function readUnits(file: number, { frame, units }: Piece): Buffer[] {
  const data = frame * FRAME_BYTES + DATA_OFFSET;
  return unitsOf(units).map((unit) => readUpTo(file, data + unit * UNIT_BYTES, UNIT_BYTES));
}

function inspectReplica(bytes: Buffer | string, named: Slot | Tenant): SegmentSummary {
  const { length, checksum, masterId, segmentId } = named;
  if (typeof bytes === 'string') {
    return { kind: null, counts: {}, digest: null, notes: null, damage: [bytes] };
  }
  return inspectSegment(bytes, { length, checksum }, BigInt(masterId), BigInt(segmentId));
}

function replicaBytes(file: number, frameStart: number, slot: Slot): Buffer | string {
  const { length, stored, codec, tail } = slot;
  const data = frameStart + DATA_OFFSET;
  if (codec === 'lz4') return decodeLz4Image(readUpTo(file, data, stored), length);
  const floor = blockFloor(length);
  const whole = readUpTo(file, data, floor);
  return Buffer.concat([whole, tail.subarray(0, length % BLOCK_BYTES)]);
}

/** Fewer bytes only at the end of the file: whoever checks the length or checksum finds it. */
function readUpTo(file: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  let at = 0;
  while (at < length) {
    const count = readSync(file, bytes, at, length - at, offset + at);
    if (count === 0) break;
    at += count;
  }
  return bytes.subarray(0, at);
}

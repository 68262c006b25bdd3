/**
 * The frame file of a server that is stopped, frame by frame: which slot counts, which replica it
 * holds, whether every byte of it is right. Follows *Restart* of docs/formats.md §4, but where a
 * restart believes the slot of a closed replica, the inspector reads all of its bytes.
 *
 * One frame is in memory at a time. A live server changes frames meanwhile: its findings may be
 * false.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
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
  /** `bad`: slots were written, and no replica of them is whole. */
  status: 'free' | 'replica' | 'bad';
  replica: ReplicaReport | null;
  /** What does not match its checksum, the slot that does not count included. */
  damage: string[];
}

export interface ReplicaReport extends Omit<Slot, 'tail'>, Omit<SegmentSummary, 'damage'> {
  slot: number;
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
  const valid: { slot: Slot; index: number }[] = [];
  for (const index of [0, 1]) {
    const slot = decodeSlot(readUpTo(file, start + index * SLOT_BYTES, SLOT_BYTES));
    if (typeof slot === 'string') damage.push(`slot ${index}: ${slot}`);
    else if (slot !== null) valid.push({ slot, index });
  }
  valid.sort((one, other) => other.slot.sequence - one.slot.sequence);
  const newest = valid[0]?.slot;
  if (newest === undefined) {
    return { frame, status: damage.length === 0 ? 'free' : 'bad', replica: null, damage };
  }
  if (newest.state === 'free') return { frame, status: 'free', replica: null, damage };
  const { masterId, segmentId } = newest;
  for (const { slot, index } of valid) {
    const same = slot.masterId === masterId && slot.segmentId === segmentId;
    if (!same || slot.state === 'free') continue;
    const summary = inspectReplica(file, start, slot);
    damage.push(...summary.damage.map((finding) => `replica of slot ${index}: ${finding}`));
    if (summary.damage.length === 0) {
      const { tail: _, ...fields } = slot;
      const { kind, counts, digest } = summary;
      const replica = { ...fields, slot: index, kind, counts, digest };
      return { frame, status: 'replica', replica, damage };
    }
  }
  return { frame, status: 'bad', replica: null, damage };
}

function inspectReplica(file: number, frameStart: number, slot: Slot): SegmentSummary {
  const { length, checksum, masterId, segmentId } = slot;
  const bytes = replicaBytes(file, frameStart, slot);
  if (typeof bytes === 'string') return { kind: null, counts: {}, digest: null, damage: [bytes] };
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

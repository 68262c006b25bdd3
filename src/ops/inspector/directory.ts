/**
 * The directory of a shared frame (docs/formats.md §4): which LZ4 images lie in its units. An image
 * lies in one frame or in two; only the first, its home, names it.
 */
import { BLOCK_BYTES, openingDamage, SEGMENT_BYTES, safeU64 } from './frame.js';

const UNITS = 8;
export const UNIT_BYTES = SEGMENT_BYTES / UNITS;

const directoryMagic = 'RKSF';
const tenantsAt = 64;
const tenantBytes = 64;

/** Units of one frame; bit i: unit i. */
export interface Piece {
  frame: number;
  units: number;
}

export interface Tenant {
  masterId: number;
  segmentId: number;
  epoch: number;
  length: number;
  checksum: number;
  stored: number;
  primary: boolean;
  /** In the frame of the directory. */
  units: number;
  /** The rest of the image. */
  next: Piece | null;
}

export interface Directory {
  sequence: number;
  tenants: Tenant[];
}

export function isDirectory(slot: Buffer): boolean {
  return slot.toString('latin1', 0, 4) === directoryMagic;
}

/** The first block of a slot, or what is wrong with it. */
export function decodeDirectory(block: Buffer): Directory | string {
  if (block.length !== BLOCK_BYTES) return 'the directory is cut off';
  const opening = openingDamage(block, directoryMagic);
  if (opening !== null) return opening;
  const sequence = safeU64(block, 8);
  const count = block.readUInt32LE(16);
  if (sequence === null) return 'an id is above 2^53';
  if (count === 0 || count > UNITS) return `${count} images`;
  const tenants: Tenant[] = [];
  let taken = 0;
  for (let index = 0; index < count; index++) {
    const tenant = decodeTenant(block.subarray(tenantsAt + index * tenantBytes));
    if (typeof tenant === 'string') return tenant;
    if (tenant.units === 0 || (taken & tenant.units) !== 0) return 'units have two images or none';
    taken |= tenant.units;
    tenants.push(tenant);
  }
  return { sequence, tenants };
}

function decodeTenant(row: Buffer): Tenant | string {
  const [masterId, segmentId, epoch] = [safeU64(row, 0), safeU64(row, 8), safeU64(row, 16)];
  if (masterId === null || segmentId === null || epoch === null) return 'an id is above 2^53';
  const [length, checksum, stored] = [24, 28, 32].map((at) => row.readUInt32LE(at)) as Triple;
  const [units, nextUnits] = [row.readUInt8(44), row.readUInt8(45)];
  const room = (unitsOf(units).length + unitsOf(nextUnits).length) * UNIT_BYTES;
  if (length > SEGMENT_BYTES || stored > Math.min(room, SEGMENT_BYTES)) {
    return 'a length exceeds the segment or its units';
  }
  const primary = (row.readUInt32LE(36) & 1) !== 0;
  const next = nextUnits === 0 ? null : { frame: row.readUInt32LE(40), units: nextUnits };
  return { masterId, segmentId, epoch, length, checksum, stored, primary, units, next };
}

type Triple = [number, number, number];

/** The units of a mask, ascending. */
export function unitsOf(mask: number): number[] {
  return Array.from({ length: UNITS }, (_, unit) => unit).filter((unit) => (mask >> unit) & 1);
}

/**
 * The data folder of one server as a whole: superblocks, frames, the copy of the coordinator's
 * state. Reads, never writes. `damaged` means that some stored bytes do not match their checksum,
 * whether or not a restart could do without them; what is absent is not damaged.
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { RekindleError } from '../../rpc/errors.js';
import { decodeSuperblock, SEGMENT_BYTES, type Superblock } from './frame.js';
import { type FrameReport, inspectFrameFile } from './frame-file.js';
import { decodeStateCopy, type StateCopyReport } from './state-copy.js';

export interface FolderReport {
  damaged: boolean;
  /** The valid one with the higher sequence. */
  superblock: Superblock | null;
  stateCopy: StateCopyReport | null;
  frames: FrameReport[];
  /** Everything that is wrong, with the file or frame where it is. */
  damage: string[];
}

/** @throws `INVALID_ARGUMENT` if the folder is not one of a server. */
export function inspectDataFolder(folder: string): FolderReport {
  const backup = join(folder, 'backup');
  if (!existsSync(backup) || !statSync(backup).isDirectory()) {
    throw new RekindleError(
      'INVALID_ARGUMENT',
      `${folder} has no folder "backup": it is not the data folder of a server`,
    );
  }
  const damage: string[] = [];
  const superblock = newestSuperblock(backup, damage);
  const stateCopy = readStateCopy(join(folder, 'coordinator-state.json'), damage);
  const frames: FrameReport[] = [];
  const framesFile = join(backup, 'frames');
  if (existsSync(framesFile)) {
    inspectFrameFile(framesFile, (report) => {
      frames.push(report);
      damage.push(...report.damage.map((finding) => `frame ${report.frame}: ${finding}`));
    });
  }
  // A frame in which other frames' images end has no directory that says so.
  const pieces = frames.flatMap(({ replicas }) => replicas.flatMap((replica) => replica.pieces));
  for (const { frame } of pieces) {
    const report = frames[frame];
    if (report?.status === 'free') report.status = 'shared';
  }
  return { damaged: damage.length > 0, superblock, stateCopy, frames, damage };
}

function newestSuperblock(backup: string, damage: string[]): Superblock | null {
  let newest: Superblock | null = null;
  for (const name of ['superblock-0', 'superblock-1']) {
    const path = join(backup, name);
    if (!existsSync(path)) continue;
    const found = decodeSuperblock(readFileSync(path));
    if (typeof found === 'string') damage.push(`${name}: ${found}`);
    else if (found.segmentBytes !== SEGMENT_BYTES) {
      damage.push(`${name}: segments of ${found.segmentBytes} bytes`);
    } else if (newest === null || found.sequence > newest.sequence) newest = found;
  }
  return newest;
}

function readStateCopy(path: string, damage: string[]): StateCopyReport | null {
  if (!existsSync(path)) return null;
  const found = decodeStateCopy(readFileSync(path, 'utf8'));
  if (typeof found !== 'string') return found;
  damage.push(`coordinator-state.json: ${found}`);
  return null;
}

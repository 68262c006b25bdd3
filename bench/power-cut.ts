/**
 * A power cut, made of the files of a killed process and of what native/power-loss has recorded:
 * each 4-KiB block that was not flushed is kept, dropped or torn at 512 bytes, by a seed; names
 * that were not flushed are undone from the last one on, as many as the seed says.
 *
 * The layer's ledger.rs and name_log.rs say what is in a sidecar. A sidecar is used up by the cut.
 */
import {
  closeSync,
  existsSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { invariant } from '../src/rpc/errors.js';
import { randomStream } from './dataset.js';

const BLOCK_BYTES = 4096;
const SECTOR_BYTES = 512;
const HEADER_BYTES = 24;
const RECORD_BYTES = 16;
const MAGIC = 'RKPL';
const KIND_CONTENT = 1;
const KIND_DURABLE = 2;

export interface PowerCutReport {
  kept: number;
  dropped: number;
  torn: number;
  namesUndone: number;
  /**
   * Blocks that are not zero, of files that were never flushed, and that the layer has not seen
   * written: not 0 means that its picture has holes.
   */
  unseen: number;
}

/** What is not flushed is lost entirely ('drop'), or as the seed says. */
export type PowerCutMode = 'random' | 'drop';

/** Former contents of the blocks of one file, oldest first; null: zeros. */
interface Ledger {
  formerBytes: number;
  blocks: Map<number, (Buffer | null)[]>;
  /** Where the last block ends that a write with O_DSYNC made durable. */
  durableEnd: number;
}

export function cutPower(
  root: string,
  sidecar: string,
  seed: number,
  mode: PowerCutMode = 'random',
): PowerCutReport {
  const random = randomStream(seed);
  const report: PowerCutReport = { kept: 0, dropped: 0, torn: 0, namesUndone: 0, unseen: 0 };
  const paths = pathsByInode(root);
  for (const [inode, ledger] of readLedgers(sidecar)) {
    const path = paths.get(inode);
    // Gone: replaced by a rename, whose former file was flushed before.
    if (path !== undefined) cutFile(path, ledger, random, mode, report);
  }
  undoNames(sidecar, random, mode, report);
  for (const name of readdirSync(sidecar)) {
    if (/^(data-|former-|names$)/.test(name)) rmSync(join(sidecar, name));
  }
  return report;
}

function pathsByInode(root: string): Map<number, string> {
  const paths = new Map<number, string>();
  for (const entry of readdirSync(root, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath, entry.name);
    if (entry.isFile()) paths.set(statSync(path).ino, path);
  }
  return paths;
}

function readLedgers(sidecar: string): Map<number, Ledger> {
  const ledgers = new Map<number, Ledger>();
  const files = readdirSync(sidecar)
    .map((name) => /^data-(\d+)-(\d+)$/.exec(name))
    .filter((match) => match !== null)
    .sort((left, right) => Number(left[2]) - Number(right[2]));
  for (const [name, inode] of files) {
    const bytes = readFileSync(join(sidecar, name));
    // Killed while it wrote the header: nothing was overwritten yet.
    if (bytes.length < HEADER_BYTES) continue;
    invariant(bytes.toString('latin1', 0, 4) === MAGIC, `${name} is a ledger`);
    const formerBytes = Number(bytes.readBigUInt64LE(16));
    const ledger = ledgers.get(Number(inode)) ?? { formerBytes, blocks: new Map(), durableEnd: 0 };
    ledgers.set(Number(inode), ledger);
    readRecords(bytes, ledger);
  }
  return ledgers;
}

/** A record that is not whole is the last one, and its write never began. */
function readRecords(bytes: Buffer, ledger: Ledger): void {
  for (let at = HEADER_BYTES; at + RECORD_BYTES <= bytes.length; ) {
    const offset = Number(bytes.readBigUInt64LE(at));
    const length = bytes.readUInt32LE(at + 8);
    const kind = bytes.readUInt32LE(at + 12);
    at += RECORD_BYTES;
    const content = kind === KIND_CONTENT ? bytes.subarray(at, at + length) : null;
    if (content !== null && content.length < length) return;
    if (kind === KIND_DURABLE) ledger.durableEnd = Math.max(ledger.durableEnd, offset + length);
    for (let inRun = 0; inRun < length; inRun += BLOCK_BYTES) {
      const block = (offset + inRun) / BLOCK_BYTES;
      if (kind === KIND_DURABLE) {
        ledger.blocks.delete(block);
        continue;
      }
      const former = ledger.blocks.get(block) ?? [];
      former.push(content?.subarray(inRun, inRun + BLOCK_BYTES) ?? null);
      ledger.blocks.set(block, former);
    }
    at += content?.length ?? 0;
  }
}

function cutFile(
  path: string,
  ledger: Ledger,
  random: () => number,
  mode: PowerCutMode,
  report: PowerCutReport,
): void {
  const file = openSync(path, 'r+');
  const bytesNow = statSync(path).size;
  let end = Math.max(ledger.formerBytes, ledger.durableEnd);
  const present = Buffer.alloc(BLOCK_BYTES);
  if (ledger.formerBytes === 0 && ledger.durableEnd === 0) {
    report.unseen += countUnseen(file, bytesNow, ledger);
  }
  for (const [block, former] of [...ledger.blocks].sort(([left], [right]) => left - right)) {
    present.fill(0);
    readSync(file, present, 0, BLOCK_BYTES, block * BLOCK_BYTES);
    const fate = mode === 'drop' ? 'dropped' : drawFate(random);
    report[fate] += 1;
    if (fate !== 'dropped') end = Math.max(end, Math.min(bytesNow, (block + 1) * BLOCK_BYTES));
    if (fate === 'kept') continue;
    const left =
      fate === 'torn'
        ? tear(present, former, random)
        : (former[mode === 'drop' ? 0 : random() % former.length] ?? Buffer.alloc(BLOCK_BYTES));
    writeSync(file, left, 0, BLOCK_BYTES, block * BLOCK_BYTES);
  }
  ftruncateSync(file, end);
  closeSync(file);
}

function countUnseen(file: number, bytes: number, { blocks }: Ledger): number {
  const content = Buffer.alloc(BLOCK_BYTES);
  let unseen = 0;
  for (let block = 0; block * BLOCK_BYTES < bytes; block++) {
    if (blocks.has(block)) continue;
    content.fill(0);
    readSync(file, content, 0, BLOCK_BYTES, block * BLOCK_BYTES);
    if (content.some((byte) => byte !== 0)) unseen += 1;
  }
  return unseen;
}

function drawFate(random: () => number): 'kept' | 'dropped' | 'torn' {
  return (['kept', 'dropped', 'torn'] as const)[random() % 3] ?? 'kept';
}

/** Each sector is that of the last write, or of one of the former contents. */
function tear(present: Buffer, former: (Buffer | null)[], random: () => number): Buffer {
  const torn = Buffer.from(present);
  for (let at = 0; at < BLOCK_BYTES; at += SECTOR_BYTES) {
    const choice = random() % (former.length + 1);
    if (choice === former.length) continue;
    const source = former[choice];
    if (source) source.copy(torn, at, at, at + SECTOR_BYTES);
    else torn.fill(0, at, at + SECTOR_BYTES);
  }
  return torn;
}

interface NameStep {
  kind: 'create' | 'rename';
  path: string;
  from: string;
  former: string | undefined;
}

function undoNames(
  sidecar: string,
  random: () => number,
  mode: PowerCutMode,
  report: PowerCutReport,
): void {
  const steps = volatileNames(join(sidecar, 'names'));
  const undone = mode === 'drop' ? steps.length : random() % (steps.length + 1);
  for (const { kind, path, from, former } of steps.slice(steps.length - undone).reverse()) {
    if (kind === 'rename') {
      if (existsSync(path)) renameSync(path, from);
      if (former !== undefined) renameSync(former, path);
    } else {
      rmSync(path, { force: true });
    }
    report.namesUndone += 1;
  }
}

/** Steps that no flush has made durable, in their order. */
function volatileNames(file: string): NameStep[] {
  if (!existsSync(file)) return [];
  let steps: NameStep[] = [];
  for (const line of readFileSync(file, 'utf8').split('\n').slice(0, -1)) {
    const [kind, first = '', second = '', former] = line.split('\t');
    if (kind === 'create') steps.push({ kind, path: first, from: '', former: undefined });
    else if (kind === 'rename') steps.push({ kind, path: second, from: first, former });
    else if (kind === 'folder') steps = steps.filter(({ path }) => dirname(path) !== first);
    else steps = steps.filter((step) => step.kind === 'rename' || step.path !== first);
  }
  return steps;
}

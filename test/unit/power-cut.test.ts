/**
 * The power cut on files and sidecars made by hand: what was flushed stays, what was not is kept,
 * dropped or torn at sectors, the oldest state comes back when all is dropped, names are undone
 * from the last one on, and a block that the layer has not seen is noticed.
 */
import assert from 'node:assert/strict';
import {
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cutPower } from '../../bench/power-cut.js';

const BLOCK = 4096;
const ZEROS = 0;
const CONTENT = 1;
const DURABLE = 2;

interface Folders {
  root: string;
  sidecar: string;
}

function withFolders(body: (folders: Folders) => void): void {
  const base = mkdtempSync(join(tmpdir(), 'rekindle-cut-'));
  const folders = { root: join(base, 'root'), sidecar: join(base, 'sidecar') };
  mkdirSync(folders.root);
  mkdirSync(folders.sidecar);
  try {
    body(folders);
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
}

const block = (fill: number): Buffer => Buffer.alloc(BLOCK, fill);

interface LedgerRecord {
  kind: number;
  block: number;
  content?: Buffer;
}

function writeLedger(
  { sidecar }: Folders,
  path: string,
  epoch: number,
  formerBytes: number,
  records: readonly LedgerRecord[],
): void {
  const inode = statSync(path).ino;
  const header = Buffer.alloc(24);
  header.write('RKPL', 'latin1');
  header.writeBigUInt64LE(BigInt(inode), 8);
  header.writeBigUInt64LE(BigInt(formerBytes), 16);
  const parts = records.map(({ kind, block: at, content }) => {
    const record = Buffer.alloc(16);
    record.writeBigUInt64LE(BigInt(at * BLOCK), 0);
    record.writeUInt32LE(BLOCK, 8);
    record.writeUInt32LE(kind, 12);
    return Buffer.concat([record, content ?? Buffer.alloc(0)]);
  });
  writeFileSync(join(sidecar, `data-${inode}-${epoch}`), Buffer.concat([header, ...parts]));
}

test('what is dropped is what was there before the oldest epoch that is left', () => {
  withFolders((folders) => {
    const file = join(folders.root, 'frames');
    writeFileSync(file, Buffer.concat([block(1), block(2), block(3)]));
    const older = { kind: CONTENT, block: 0, content: block(7) };
    const newer = { kind: CONTENT, block: 0, content: block(8) };
    writeLedger(folders, file, 4, 2 * BLOCK, [older, { kind: ZEROS, block: 2 }]);
    writeLedger(folders, file, 5, 3 * BLOCK, [newer]);
    const report = cutPower(folders.root, folders.sidecar, 1, 'drop');
    assert.deepEqual(readFileSync(file), Buffer.concat([block(7), block(2)]));
    assert.equal(report.dropped, 2);
    assert.deepEqual(readdirSync(folders.sidecar), []);
  });
});

test('a block that a synchronous write made durable stays, and so does the length', () => {
  withFolders((folders) => {
    const file = join(folders.root, 'data.mdb');
    writeFileSync(file, Buffer.concat([block(1), block(2)]));
    const written = { kind: CONTENT, block: 1, content: block(9) };
    writeLedger(folders, file, 0, BLOCK, [written, { kind: DURABLE, block: 1 }]);
    cutPower(folders.root, folders.sidecar, 1, 'drop');
    assert.deepEqual(readFileSync(file), Buffer.concat([block(1), block(2)]));
  });
});

test('a seed keeps, drops and tears whole sectors, and the same seed the same ones', () => {
  const left: Buffer[] = [];
  for (let run = 0; run < 2; run += 1) {
    withFolders((folders) => {
      const file = join(folders.root, 'frames');
      const blocks = 64;
      writeFileSync(file, Buffer.alloc(blocks * BLOCK, 2));
      const records = Array.from({ length: blocks }, (_, at) => ({
        kind: CONTENT,
        block: at,
        content: block(1),
      }));
      writeLedger(folders, file, 0, blocks * BLOCK, records);
      const report = cutPower(folders.root, folders.sidecar, 4711);
      assert.ok(report.kept > 0 && report.dropped > 0 && report.torn > 0, JSON.stringify(report));
      assert.equal(report.kept + report.dropped + report.torn, blocks);
      const bytes = readFileSync(file);
      for (let at = 0; at < bytes.length; at += 512) {
        const sector = bytes.subarray(at, at + 512);
        assert.ok(sector.every((byte) => byte === sector[0] && (byte === 1 || byte === 2)));
      }
      left.push(bytes);
    });
  }
  assert.deepEqual(left[0], left[1]);
});

test('a record that is not whole belongs to a write that never began', () => {
  withFolders((folders) => {
    const file = join(folders.root, 'frames');
    writeFileSync(file, block(5));
    const cut = { kind: CONTENT, block: 0, content: Buffer.alloc(100, 6) };
    writeLedger(folders, file, 0, BLOCK, [cut]);
    cutPower(folders.root, folders.sidecar, 1, 'drop');
    assert.deepEqual(readFileSync(file), block(5));
  });
});

test('a block that was written unseen is counted', () => {
  withFolders((folders) => {
    const file = join(folders.root, 'frames');
    writeFileSync(file, Buffer.concat([block(1), block(2), block(0)]));
    writeLedger(folders, file, 0, 0, [{ kind: ZEROS, block: 0 }]);
    assert.equal(cutPower(folders.root, folders.sidecar, 1, 'drop').unseen, 1);
  });
});

test('names are undone unless a flush has made them durable', () => {
  withFolders((folders) => {
    const path = (name: string): string => join(folders.root, name);
    writeFileSync(path('kept'), 'kept');
    writeFileSync(path('born'), 'born');
    writeFileSync(path('copy'), 'new');
    writeFileSync(path('former'), 'old');
    const former = join(folders.sidecar, 'former-1-1');
    linkSync(path('former'), former);
    rmSync(path('former'));
    const lines = [
      `create\t${path('kept')}`,
      `file\t${path('kept')}`,
      `create\t${path('settled')}`,
      `folder\t${folders.root}`,
      `create\t${path('born')}`,
      `rename\t${path('copy.new')}\t${path('copy')}\t${former}`,
      '',
    ];
    writeFileSync(join(folders.sidecar, 'names'), lines.join('\n'));
    assert.equal(cutPower(folders.root, folders.sidecar, 1, 'drop').namesUndone, 2);
    assert.equal(readFileSync(path('copy'), 'utf8'), 'old');
    assert.equal(readFileSync(path('copy.new'), 'utf8'), 'new');
    assert.ok(existsSync(path('kept')) && !existsSync(path('born')));
  });
});

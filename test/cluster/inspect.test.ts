/**
 * `rekindle inspect` reads what the native core has written: a stopped server's folder is whole,
 * its closed replicas are LZ4 images that lz4-napi decompresses, and one flipped byte is found.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { waitFor } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { writeDataset } from '../../bench/dataset-transfer.js';
import { type FolderReport, inspectDataFolder } from '../../src/ops/inspector/data-folder.js';
import { UNIT_BYTES, unitsOf } from '../../src/ops/inspector/directory.js';
import { BLOCK_BYTES, DATA_OFFSET, FRAME_BYTES } from '../../src/ops/inspector/frame.js';
import { rekindle, withCluster, withFolder } from './fixture.js';

async function inspected(folder: string, exitCode: number): Promise<FolderReport> {
  const { code, stdout, stderr } = await rekindle(['inspect', folder, '--json']);
  assert.equal(code, exitCode, `${stdout}${stderr}`);
  return JSON.parse(stdout) as FolderReport;
}

function flipByte(path: string, offset: number): void {
  const file = openSync(path, 'r+');
  try {
    const byte = Buffer.alloc(1);
    readSync(file, byte, 0, 1, offset);
    byte.writeUInt8(byte.readUInt8(0) ^ 0x04);
    writeSync(file, byte, 0, 1, offset);
  } finally {
    closeSync(file);
  }
}

test('the folder of a stopped server is inspected', { timeout: 240_000 }, async () => {
  await withCluster({ readyTimeoutMs: 30_000 }, async (cluster, client) => {
    const table = await client.createTable('kept', { span: 4 });
    const text = 'A text that compresses well. '.repeat(3_000);
    const textKeys = Array.from({ length: 300 }, (_, index) => `text-${index}`);
    await Promise.all(textKeys.map((key) => table.put(key, text)));
    await writeDataset(table, new Dataset('object', 60_000, 500));
    const folder = join(cluster.dataDirectory, 'server-1');
    await waitFor('compression of a closed replica', 60_000, async () => {
      const { frames } = inspectDataFolder(folder);
      return frames.some(({ status }) => status === 'shared') || undefined;
    });
    await cluster.killAll('SIGTERM');

    const report = await inspected(folder, 0);
    assert.equal(report.superblock?.clusterId, report.stateCopy?.clusterId);
    const replicas = report.frames.flatMap((frame) => frame.replicas);
    assert.ok(replicas.some(({ state }) => state === 'open'));
    const closed = replicas.find(({ state, counts }) => state === 'closed' && counts.OBJECT);
    assert.ok(closed !== undefined, 'a segment was filled');
    assert.ok(closed.digest !== null && closed.kind === 'log');
    assert.ok(replicas.some(({ state, codec }) => state === 'closed' && codec === 'lz4'));

    const shown = await rekindle(['inspect', folder]);
    assert.deepEqual([shown.code, shown.stderr], [0, '']);
    assert.match(shown.stdout, /all checksums match/);

    const image = replicas.find(({ pieces }) => pieces.length > 0);
    const home = image?.pieces[0];
    assert.ok(image !== undefined && home !== undefined);
    const unit = unitsOf(home.units)[0] ?? 0;
    const offset = home.frame * FRAME_BYTES + DATA_OFFSET + unit * UNIT_BYTES + BLOCK_BYTES + 5;
    flipByte(join(folder, 'backup', 'frames'), offset);
    const after = await inspected(folder, 1);
    const wholeAfter = after.frames.flatMap((frame) => frame.replicas);
    assert.equal(wholeAfter.length, replicas.length - 1);
    const nameOf = (replica: typeof image) => `${replica.masterId}/${replica.segmentId}`;
    assert.ok(!wholeAfter.map(nameOf).includes(nameOf(image)));
    assert.equal(after.damage.length, 1);
  });
});

test('a folder that is not one of a server is refused', async () => {
  await withFolder(async (folder) => {
    const { code, stderr } = await rekindle(['inspect', folder]);
    assert.equal(code, 2);
    assert.match(stderr, /not the data folder of a server/);
  });
});

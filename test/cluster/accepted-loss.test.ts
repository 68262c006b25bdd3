/**
 * What is gone for ever: recoveries wait, name what they miss and who may have it, and go on when
 * an operator has given up exactly that, whatever happens to the coordinator on the way.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { EtcdCluster, withoutEtcd } from '../../bench/etcd.js';
import { FaultFiles } from '../../bench/fault-files.js';
import type { Client } from '../../src/client/index.js';
import type { LocalCluster } from '../../src/cluster/local-cluster.js';
import { inspectFrameFile } from '../../src/ops/inspector/frame-file.js';
import type { RecoveryReport } from '../../src/rpc/messages.js';
import { rekindle, withCluster, withFolder } from './fixture.js';

const MEMORY_BYTES = 128 * 2 ** 20;
const FRAME_BYTES = 16_384 + 2 ** 23;

function folderOf(cluster: LocalCluster, index: number): string {
  return join(cluster.dataDirectory, `server-${index + 1}`);
}

/** Overwrites something in every frame of a disk that holds this segment alone. */
function overwrite(
  cluster: LocalCluster,
  index: number,
  { masterId, segmentId }: { masterId: number; segmentId: number },
  { at, bytes }: { at: number; bytes: Buffer },
): number {
  const path = join(folderOf(cluster, index), 'backup', 'frames');
  const frames: number[] = [];
  inspectFrameFile(path, ({ frame, status, replicas }) => {
    const found = replicas.some((one) => one.masterId === masterId && one.segmentId === segmentId);
    if (found && status === 'replica') frames.push(frame);
  });
  const file = openSync(path, 'r+');
  for (const frame of frames) {
    writeSync(file, bytes, 0, bytes.length, frame * FRAME_BYTES + at);
  }
  closeSync(file);
  return frames.length;
}

function waitForGap(client: Client, serverId: number): Promise<RecoveryReport> {
  return waitFor(`recovery of server ${serverId} to wait`, 60_000, async () => {
    const { recoveries } = await client.status();
    return recoveries.find(({ crashedServerId, gap }) => {
      const settled = gap?.holders.every(({ state }) => state !== 'silent');
      return crashedServerId === serverId && settled;
    });
  });
}

async function accept(
  cluster: LocalCluster,
  serverId: number,
  ...more: string[]
): ReturnType<typeof rekindle> {
  const command = ['admin', 'accept-loss', String(serverId), '--timeout', '20s', ...more];
  return rekindle(command, { url: cluster.url });
}

/** Two coordinators on etcd, whose processes can be armed while they run. */
async function withStandby(
  body: (world: { cluster: LocalCluster; client: Client; files: FaultFiles }) => Promise<void>,
): Promise<void> {
  const etcd = await EtcdCluster.start(1);
  try {
    await withFolder(async (dataDirectory) => {
      const files = new FaultFiles(dataDirectory);
      const options = {
        dataDirectory,
        servers: 4,
        memoryBytes: MEMORY_BYTES,
        coordinators: 2,
        storage: `etcd://${etcd.endpoints.join(',')}/losses`,
        environmentOf: (name: string) => files.environmentOf(name),
      };
      await withCluster(options, (cluster, client) => body({ cluster, client, files }));
    });
  } finally {
    await etcd.stop();
  }
}

/** The coordinator dies at this fault point while it is asked to accept the loss. */
async function acceptAt(
  cluster: LocalCluster,
  fault: string,
  serverId: number,
  segments: string,
): Promise<void> {
  await cluster.killCoordinator();
  await cluster.restartCoordinator({ REKINDLE_FAULT: `${fault}=crash` });
  const command = ['admin', 'accept-loss', String(serverId), '--segments', segments];
  const asked = rekindle([...command, '--timeout', '10s'], { url: cluster.url });
  const isDead = async () => (cluster.processes()[0]?.pid === undefined ? true : undefined);
  await waitFor(`the crash at ${fault}`, 20_000, isDead);
  const { code, stderr } = await asked;
  assert.equal(code, 2);
  assert.match(stderr, /COORDINATOR_UNAVAILABLE/);
  await cluster.restartCoordinator();
}

test('a lost segment is named, given up once (loss-1, loss-2), and the rest is served', {
  timeout: 240_000,
}, async () => {
  await withCluster({ servers: 4, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    const table = await client.createTable('objects');
    const value = randomBytes(100_000);
    for (let i = 0; i < 250; i += 1) await table.put(`key-${i}`, value);
    const serverId = (await client.status()).tables[0]?.tablets[0]?.serverId ?? 0;
    await cluster.killAll();
    // As if their frames had never been used.
    const slots = { at: 0, bytes: Buffer.alloc(16_384) };
    let erased = 0;
    for (let i = 0; i < 4; i += 1) {
      erased += overwrite(cluster, i, { masterId: serverId, segmentId: 2 }, slots);
    }
    assert.equal(erased, 3);
    await cluster.startAll();

    const { gap, waitingFor } = await waitForGap(client, serverId);
    assert.deepEqual(gap, { headMissing: false, missing: [2], doubtful: [], holders: [] });
    assert.match(waitingFor ?? '', /1 missing segments: 2; no backup is left/);
    const shown = await accept(cluster, serverId);
    assert.equal(shown.code, 1, 'nothing is given up without a list');
    assert.match(shown.stdout, /no backup can deliver segments 2\n/);
    assert.match(shown.stdout, new RegExp(`accept-loss ${serverId} --segments 2 `));
    const held = await accept(cluster, serverId, '--segments', '2-3');
    assert.equal(held.code, 2);
    assert.match(held.stderr, /INVALID_ARGUMENT.*does not wait for: 3/);
    const unknown = await accept(cluster, 4_000, '--segments', '2');
    assert.equal(unknown.code, 2);
    assert.match(unknown.stderr, /RECOVERY_UNKNOWN/);

    await acceptAt(cluster, 'loss-1', serverId, '2');
    await waitForGap(client, serverId);
    assert.deepEqual((await client.status()).losses, []);
    await acceptAt(cluster, 'loss-2', serverId, '2');
    const { losses } = await waitUntilWhole(client, 4, 60_000);
    const [loss] = losses;
    assert.ok(loss !== undefined && losses.length === 1);
    assert.deepEqual(loss.segments, [{ segmentId: 2, fromByte: 0 }]);
    assert.equal(loss.bytesMax, 2 ** 23);
    assert.match(loss.operator, /.@./);
    const again = await accept(cluster, serverId, '--segments', '2', '--json');
    assert.equal(again.code, 0, again.stderr);
    assert.deepEqual(JSON.parse(again.stdout), { accepted: loss });
    const status = await rekindle(['status'], { url: cluster.url });
    assert.equal(status.code, 0, 'healthy again');
    assert.match(status.stdout, /loss 1: segments 2 of server .* tables objects/);

    let lost = 0;
    for (let i = 0; i < 250; i += 1) {
      const found = await table.get(`key-${i}`);
      if (found === undefined) lost += 1;
      else assert.deepEqual(Buffer.from(found), value);
    }
    assert.ok(lost > 0 && lost * value.length <= 2 ** 23, `${lost} objects of 8 MiB`);
  });
});

test('a leader that dies at loss-1 or loss-2 has a standby, which gives the rest up once', {
  skip: withoutEtcd,
  timeout: 240_000,
}, async () => {
  await withStandby(async ({ cluster, client, files }) => {
    const table = await client.createTable('objects');
    const value = randomBytes(100_000);
    for (let i = 0; i < 330; i += 1) await table.put(`key-${i}`, value);
    const serverId = (await client.status()).tables[0]?.tablets[0]?.serverId ?? 0;
    await cluster.killAll();
    const slots = { at: 0, bytes: Buffer.alloc(16_384) };
    for (let i = 0; i < 4; i += 1) {
      for (const segmentId of [2, 3])
        overwrite(cluster, i, { masterId: serverId, segmentId }, slots);
    }
    await cluster.startAll();
    const { gap } = await waitForGap(client, serverId);
    assert.deepEqual(gap?.missing, [2, 3]);

    for (const [fault, segment] of [
      ['loss-1', 2],
      ['loss-2', 3],
    ] as const) {
      const { leader, term } = await client.status();
      const index = cluster.coordinatorAt(leader) ?? 0;
      const name = cluster.processes()[index]?.name ?? '';
      await files.arm(name, `${fault}=crash`);
      const accepted = await accept(cluster, serverId, '--segments', String(segment));
      assert.equal(accepted.code, 0, accepted.stderr);
      assert.ok(files.hasStruck(name, fault, 'crash'), `${name} has died at ${fault}`);
      const status = await client.status();
      assert.ok(status.term > term, 'by the next leader');
      const given = status.losses.flatMap(({ segments }) => segments.map((one) => one.segmentId));
      assert.deepEqual(given.sort(), segment === 2 ? [2] : [2, 3]);
      files.disarm(name);
      await cluster.restartCoordinator({}, index);
    }
    const { losses } = await waitUntilWhole(client, 4, 60_000);
    assert.equal(losses.length, 2);
    let lost = 0;
    for (let i = 0; i < 330; i += 1) lost += Number((await table.get(`key-${i}`)) === undefined);
    assert.ok(lost > 84 && lost * value.length <= 2 ** 24, `${lost} objects of 16 MiB`);
  });
});

test('a segment that has rotted on all its backups is missing, and can be given up', {
  timeout: 240_000,
}, async () => {
  await withCluster({ servers: 4, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    const table = await client.createTable('objects');
    const value = randomBytes(100_000);
    for (let i = 0; i < 200; i += 1) await table.put(`key-${i}`, value);
    const serverId = (await client.status()).tables[0]?.tablets[0]?.serverId ?? 0;
    await cluster.killAll();
    // A restart believes closed replicas; the first who read this one are recovery masters.
    const rot = { at: 16_384 + 500_000, bytes: randomBytes(100) };
    for (let i = 0; i < 4; i += 1) {
      overwrite(cluster, i, { masterId: serverId, segmentId: 1 }, rot);
    }
    await cluster.startAll();
    const { gap } = await waitForGap(client, serverId);
    assert.deepEqual(gap?.missing, [1]);
    const accepted = await accept(cluster, serverId, '--segments', '1');
    assert.equal(accepted.code, 0, accepted.stderr);
    await waitUntilWhole(client, 4, 60_000);
    let found = 0;
    for (let i = 0; i < 200; i += 1) found += Number((await table.get(`key-${i}`)) !== undefined);
    assert.ok(found >= 200 - 84 && found < 200, `${found} of 200 objects`);
  });
});

test('with as many disks wiped as there are replicas, the rest is served', {
  timeout: 240_000,
}, async () => {
  await withCluster({ servers: 4, memoryBytes: MEMORY_BYTES }, async (cluster, client) => {
    // One table a master.
    for (let t = 0; t < 4; t += 1) {
      const table = await client.createTable(`table-${t}`);
      for (let i = 0; i < 100; i += 1) await table.put(`key-${i}`, `value ${i}`);
    }
    const survivor = cluster.serverId(3) ?? 0;
    const { tables } = await client.status();
    const lostTable = tables.find(({ tablets }) => tablets[0]?.serverId === survivor)?.name;
    assert.ok(lostTable !== undefined);
    await cluster.killAll();
    for (const index of [0, 1, 2]) rmSync(folderOf(cluster, index), { recursive: true });
    await cluster.startAll();

    const { gap } = await waitForGap(client, survivor);
    assert.equal(gap?.headMissing, true, 'the disk that is left has the other logs');
    assert.deepEqual(
      gap?.holders.map(({ state }) => state),
      ['emptied', 'emptied', 'emptied'],
    );
    const accepted = await accept(cluster, survivor, '--segments', 'head', '--reason', 'fire');
    assert.equal(accepted.code, 0, accepted.stderr);
    assert.match(accepted.stdout, /segments head of server .*: fire; tables table-/);
    await waitUntilWhole(client, 4, 60_000);
    for (const { name } of tables) {
      const table = client.table(name);
      for (let i = 0; i < 100; i += 1) {
        const found = (await table.get(`key-${i}`))?.toString();
        assert.equal(found, name === lostTable ? undefined : `value ${i}`);
      }
      await table.put('after', 'the loss');
    }
  });
});

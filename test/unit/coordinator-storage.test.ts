/**
 * `LmdbStorage` on a real disk: what is committed survives SIGKILL, conditions hold, a directory
 * has one owner at a time whichever way the last one ended.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { LmdbStorage } from '../../src/coordinator/external-storage/lmdb.js';
import { copyOf, restoreState } from '../../src/coordinator/state-copy.js';
import { RekindleError } from '../../src/rpc/errors.js';

async function withDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'rekindle-lmdb-'));
  try {
    await run(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

const hasCode = (code: string) => (error: unknown) =>
  error instanceof RekindleError && error.code === code;

test('a commit is all or nothing, conditional on the revision, and there after a reopen', () =>
  withDirectory(async (directory) => {
    let storage = await LmdbStorage.open(directory);
    assert.deepEqual(storage.list(''), { revision: 0, pairs: [] });
    const writes = [
      { key: 'servers/1', value: { a: 1 } },
      { key: 'tables/1', value: { b: [2] } },
    ];
    assert.equal(await storage.commit(0, writes), 1);
    await assert.rejects(storage.commit(0, [{ key: 'servers/9', value: 9 }]), hasCode('FENCED'));
    assert.equal(storage.get('servers/9'), undefined);
    assert.equal(await storage.commit(1, [{ key: 'servers/1', value: undefined }]), 2);
    await storage.close();

    storage = await LmdbStorage.open(directory);
    assert.deepEqual(storage.list(''), {
      revision: 2,
      pairs: [{ key: 'tables/1', value: { b: [2] } }],
    });
    assert.deepEqual(storage.list('servers/').pairs, []);
    await storage.close();
  }));

test('too large a commit is refused before anything is written', () =>
  withDirectory(async (directory) => {
    const storage = await LmdbStorage.open(directory);
    const large = { key: 'tables/1', value: 'x'.repeat(2_000_000) };
    await assert.rejects(storage.commit(0, [large]), hasCode('REQUEST_TOO_LARGE'));
    assert.deepEqual(storage.list(''), { revision: 0, pairs: [] });
    await storage.close();
  }));

const CHILD = `
const { LmdbStorage } = await import(process.argv[1]);
const storage = await LmdbStorage.open(process.argv[2]);
let revision = storage.list('').revision;
for (;;) {
  revision = await storage.commit(revision, [{ key: 'servers/1', value: revision + 1 }]);
  process.stdout.write(revision + '\\n');
}`;

test('kill -9: every reported commit is there, the lock is gone; a live owner is respected', () =>
  withDirectory(async (directory) => {
    const lmdb = new URL('../../src/coordinator/external-storage/lmdb.js', import.meta.url).href;
    const child = spawn(process.execPath, ['--input-type=module', '-e', CHILD, lmdb, directory], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let reported = 0;
    const enough = new Promise<void>((resolve) => {
      child.stdout.on('data', (chunk: Buffer) => {
        reported = Number(chunk.toString().trim().split('\n').at(-1));
        if (reported >= 20) resolve();
      });
    });
    await enough;
    await assert.rejects(LmdbStorage.open(directory), (error: unknown) => {
      assert.ok(error instanceof RekindleError);
      assert.match(error.message, /in use by another running coordinator/);
      return true;
    });
    const exited = once(child, 'close');
    child.kill('SIGKILL');
    await exited;

    const storage = await LmdbStorage.open(directory);
    const { revision } = storage.list('');
    assert.ok(revision >= reported, `revision ${revision} < reported ${reported}`);
    assert.equal(storage.get('servers/1'), revision);
    await storage.close();
  }));

test('a copy restores an empty storage, never gives an id again, and refuses damage', () =>
  withDirectory(async (directory) => {
    const storage = await LmdbStorage.open(directory);
    const cluster = {
      clusterId: 'c-1',
      term: 4,
      nextServerIndex: 6,
      serverGeneration: 0,
      nextTableId: 3,
      nextRecoveryId: 2,
      serverListVersion: 9,
      replicas: 3,
      durability: 'fsync' as const,
      allowSameHost: false,
      recentDrops: [],
    };
    const table = { tableId: 2, name: 'täble', state: 'normal' as const, tablets: [] };
    const state = CoordinatorState.from([
      { key: 'cluster', value: cluster },
      { key: 'tables/2', value: table },
    ]);
    const copy = copyOf(state, 17);
    const damaged = { ...copy, state: copy.state.replace('täble', 'table') };
    await assert.rejects(
      restoreState(storage, JSON.stringify(damaged)),
      hasCode('CHECKSUM_MISMATCH'),
    );
    await assert.rejects(restoreState(storage, 'no json'), hasCode('INVALID_ARGUMENT'));
    assert.deepEqual(storage.list('').pairs, []);

    const restored = await restoreState(storage, JSON.stringify(copy));
    assert.deepEqual(restored, { clusterId: 'c-1', revision: 17, servers: 0, tables: 1 });
    const after = CoordinatorState.from(storage.list('').pairs);
    assert.equal(after.tableNamed('täble')?.tableId, 2);
    assert.equal(after.cluster.clusterId, 'c-1');
    assert.equal(after.cluster.serverGeneration, 1);
    assert.ok(after.cluster.term > 4 && after.cluster.nextTableId > 1_000);
    await assert.rejects(restoreState(storage, JSON.stringify(copy)), hasCode('INVALID_ARGUMENT'));
    await storage.close();
  }));

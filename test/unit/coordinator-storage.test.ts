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
import { conformance, hasCode, take } from '../cluster/storage-conformance.js';

async function withDirectory(run: (directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'rekindle-lmdb-'));
  try {
    await run(directory);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

conformance('LMDB', false, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'rekindle-lmdb-'));
  let storage = await LmdbStorage.open(directory);
  return {
    storage,
    again: async () => {
      await storage.close();
      storage = await LmdbStorage.open(directory);
      return storage;
    },
    close: async () => {
      await storage.close();
      await rm(directory, { recursive: true, force: true });
    },
  };
});

test('who opens a directory leads from scratch; what the last one left does not count', () =>
  withDirectory(async (directory) => {
    let storage = await LmdbStorage.open(directory);
    const first = await take(storage);
    const revision = await storage.commit(first.leadership, 0, [{ key: 'servers/1', value: 1 }]);
    await storage.close();
    storage = await LmdbStorage.open(directory);
    assert.equal((await storage.list()).leaderState.leader, null);
    await storage.commit(first.leadership, revision, [{ key: 'servers/1', value: 2 }]);
    const second = await take(storage);
    assert.ok(second.leadership.version > first.leadership.version);
    const late = storage.commit(first.leadership, revision + 1, []);
    await assert.rejects(late, hasCode('FENCED'));
    await storage.close();
  }));

const CHILD = `
const { LmdbStorage } = await import(process.argv[1]);
const storage = await LmdbStorage.open(process.argv[2]);
const mine = { term: 1, candidateId: 'child', address: '' };
let { leader, revision } = await storage.campaign(null, mine);
for (;;) {
  revision = await storage.commit(leader, revision, [{ key: 'servers/1', value: revision + 1 }]);
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
    const { revision, pairs } = await storage.list();
    assert.ok(revision >= reported, `revision ${revision} < reported ${reported}`);
    assert.deepEqual(pairs, [{ key: 'servers/1', value: revision }]);
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
    const lead = { ...(await take(storage)), state: new CoordinatorState() };
    const restore = (text: string, onto = lead) => restoreState(storage, onto, text);
    await assert.rejects(restore(JSON.stringify(damaged)), hasCode('CHECKSUM_MISMATCH'));
    await assert.rejects(restore('no json'), hasCode('INVALID_ARGUMENT'));
    assert.deepEqual((await storage.list()).pairs, []);

    const restored = await restore(JSON.stringify(copy));
    const report = { clusterId: 'c-1', revision: 17, servers: 0, tables: 1 };
    assert.deepEqual(restored.report, report);
    const { pairs, revision } = await storage.list();
    assert.equal(restored.lead.revision, revision);
    const after = CoordinatorState.from(pairs);
    assert.equal(after.tableNamed('täble')?.tableId, 2);
    assert.equal(after.cluster.clusterId, 'c-1');
    assert.equal(after.cluster.serverGeneration, 1);
    assert.ok(after.cluster.term > 4 && after.cluster.nextTableId > 1_000);
    const again = restore(JSON.stringify(copy), restored.lead);
    await assert.rejects(again, hasCode('INVALID_ARGUMENT'));
    await storage.close();
  }));

/**
 * `rekindle dev --data DIR` finds everything again: after Ctrl-C, and after SIGKILL of all its
 * processes at once with durability fsync.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { waitFor } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { connect } from '../../src/client/index.js';
import { CLI, withFolder } from './fixture.js';

interface Started {
  child: ChildProcess;
  url: string;
  pids: number[];
}

const OPTIONS = { timeout: 240_000 };

async function startDev(folder: string): Promise<Started> {
  const child = spawn(
    process.execPath,
    [CLI, 'dev', '--data', folder, '--memory', '128MB', '--json'],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece;
  });
  const { url, processes } = await waitFor('rekindle dev', 90_000, async () => {
    assert.equal(child.exitCode, null, 'rekindle dev has ended');
    if (!text.endsWith('}\n')) return undefined;
    return JSON.parse(text) as { url: string; processes: { pid: number }[] };
  });
  return { child, url, pids: processes.map(({ pid }) => pid) };
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'ESRCH');
    return false;
  }
}

async function allGone(pids: readonly number[]): Promise<void> {
  await waitFor('end of all processes', 20_000, async () => !pids.some(isAlive) || undefined);
}

async function restartKeepsEverything(stop: (started: Started) => Promise<void>): Promise<void> {
  await withFolder(async (folder) => {
    const dataset = new Dataset('object', 20_000, 300);
    const first = await startDev(folder);
    let second: Started | undefined;
    try {
      {
        await using client = await connect(first.url, { timeoutMs: 60_000 });
        const table = await client.createTable('kept', { span: 8 });
        await writeDataset(table, dataset);
        await table.put('deleted', 'x');
        await table.delete('deleted');
      }
      await stop(first);
      await allGone(first.pids);

      second = await startDev(folder);
      assert.equal(second.url, first.url);
      await using client = await connect(second.url, { timeoutMs: 90_000 });
      const table = client.table('kept');
      assert.equal(await countWrong(table, dataset), 0);
      assert.equal(await table.get('deleted'), undefined);
      await table.put('after', 'restart');
    } finally {
      for (const { child } of second === undefined ? [first] : [first, second]) {
        if (child.exitCode === null && child.signalCode === null) {
          const ended = once(child, 'exit');
          child.kill('SIGINT');
          await ended;
        }
      }
    }
    if (second !== undefined) await allGone(second.pids);
  });
}

test('dev --data finds everything after Ctrl-C', OPTIONS, () =>
  restartKeepsEverything(async ({ child }) => {
    const ended = once(child, 'exit');
    child.kill('SIGINT');
    assert.deepEqual(await ended, [0, null]);
  }),
);

test('dev --data finds everything after kill -9 of all processes', OPTIONS, () =>
  restartKeepsEverything(async ({ child, pids }) => {
    const ended = once(child, 'exit');
    for (const pid of pids) process.kill(pid, 'SIGKILL');
    child.kill('SIGKILL');
    await ended;
  }),
);

test('no process outlives a dev that is killed', OPTIONS, () =>
  withFolder(async (folder) => {
    const { child, pids } = await startDev(folder);
    child.kill('SIGKILL');
    await allGone(pids);
  }),
);

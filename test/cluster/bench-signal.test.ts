/**
 * A benchmark that is interrupted leaves nothing behind: no process, also none that it has stopped
 * (SIGSTOP), and no folder. Processes are found in /proc by their parent.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { waitFor } from '../../bench/cluster-health.js';
import { CLI, withFolder } from './fixture.js';

const skip = process.platform === 'linux' ? false : 'processes are looked up in /proc';
const redis = spawnSync('redis-server', ['--version']).status === 0;
const OPTIONS = { skip, timeout: 120_000 };

interface Found {
  pid: number;
  /** R, S, T: stopped … */
  state: string;
}

/** Children of a process; zombies have ended. */
function childrenOf(parent: number | undefined): Found[] {
  return readdirSync('/proc').flatMap((name) => {
    const pid = Number(name);
    if (!Number.isInteger(pid)) return [];
    const [state = '', parentPid = ''] = statusOf(pid);
    return Number(parentPid) === parent && state !== 'Z' ? [{ pid, state }] : [];
  });
}

/** State and parent; empty if there is no such process any more. */
function statusOf(pid: number): string[] {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return text.slice(text.lastIndexOf(')') + 2).split(' ');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return [];
    throw error;
  }
}

async function interrupted(
  words: readonly string[],
  signal: NodeJS.Signals,
  isTime: (children: readonly Found[]) => boolean,
): Promise<number | null> {
  let code: number | null = null;
  await withFolder(async (folder) => {
    const bench: ChildProcess = spawn(process.execPath, [CLI, 'bench', ...words], {
      env: { ...process.env, TMPDIR: folder },
      stdio: 'ignore',
    });
    const exited = once(bench, 'exit');
    let children: Found[] = [];
    try {
      await waitFor('the moment to interrupt', 60_000, async () => {
        assert.equal(bench.exitCode, null, 'the benchmark runs');
        children = childrenOf(bench.pid);
        return isTime(children) ? true : undefined;
      });
      assert.notDeepEqual(readdirSync(folder), [], 'it has made folders');
      bench.kill(signal);
      [code] = (await exited) as [number | null];
    } finally {
      bench.kill('SIGKILL');
    }
    await waitFor('the end of what it has started', 5_000, async () => {
      const left = children.filter(({ pid }) => !['Z', undefined].includes(statusOf(pid)[0]));
      return left.length === 0 ? true : undefined;
    });
    assert.deepEqual(readdirSync(folder), []);
  });
  return code;
}

test('Ctrl-C while a cluster stands still', OPTIONS, async () => {
  const peer = redis ? ['--peer', 'redis'] : [];
  const words = ['durable', '--quick', '--memory', '64MB', ...peer];
  const stopped = (children: readonly Found[]): boolean =>
    children.filter(({ state }) => state === 'T').length >= 5;
  assert.equal(await interrupted(words, 'SIGINT', stopped), 130);
});

test('SIGTERM while servers start', OPTIONS, async () => {
  const words = ['latency', '--quick', '--memory', '64MB'];
  assert.equal(await interrupted(words, 'SIGTERM', ({ length }) => length >= 2), 143);
});

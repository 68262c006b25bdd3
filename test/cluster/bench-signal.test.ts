/**
 * A benchmark that is interrupted leaves nothing behind: no process, also none that it has stopped
 * (SIGSTOP), and no folder. One of its own processes that dies fails it by name. Processes are
 * found in /proc by their parent.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { waitFor } from '../../bench/cluster-health.js';
import { coreBinary } from '../../bench/core-binary.js';
import { ifThere } from '../../bench/process-usage.js';
import { CLI, withFolder } from './fixture.js';

const skip = process.platform === 'linux' ? false : 'processes are looked up in /proc';
const redis = spawnSync('redis-server', ['--version']).status === 0;
const OPTIONS = { skip, timeout: 120_000 };
/** Of tests that may have to build the load generator. */
const BUILDS = { skip, timeout: 300_000 };

interface Found {
  pid: number;
  parent: number;
  /** Program and arguments. */
  command: string;
  /** R, S, T: stopped … */
  state: string;
}

/** Processes that have not ended; zombies have. */
function processes(): Found[] {
  return readdirSync('/proc').flatMap((entry) => {
    const found = Number.isInteger(Number(entry)) ? processOf(Number(entry)) : undefined;
    return found === undefined ? [] : [found];
  });
}

/** Children of a process, and theirs. */
function descendantsOf(pid: number | undefined, all = processes()): Found[] {
  const children = all.filter(({ parent }) => parent === pid);
  return [...children, ...children.flatMap((child) => descendantsOf(child.pid, all))];
}

/** undefined: there is no such process any more. */
function processOf(pid: number): Found | undefined {
  return ifThere(() => {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [state = '', parent = ''] = text.slice(text.lastIndexOf(')') + 2).split(' ');
    const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
    return state === 'Z' ? undefined : { pid, parent: Number(parent), command, state };
  });
}

type Moment = (started: readonly Found[]) => boolean;

interface Ended {
  code: number | null;
  stderr: string;
  /** In its temporary folder. */
  left: string[];
}

/** Runs a benchmark until it is time for `interrupt`, and until all that it has started is gone. */
async function interrupted(
  words: readonly string[],
  isTime: Moment,
  interrupt: (bench: ChildProcess, started: readonly Found[]) => void,
): Promise<Ended> {
  const ended: Ended = { code: null, stderr: '', left: [] };
  await withFolder(async (folder) => {
    const bench = spawn(process.execPath, [CLI, 'bench', ...words], {
      env: { ...process.env, TMPDIR: folder },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    bench.stderr.setEncoding('utf8').on('data', (text: string) => {
      ended.stderr += text;
    });
    const closed = once(bench, 'close');
    let started: Found[] = [];
    try {
      await waitFor('the moment to interrupt', 60_000, async () => {
        assert.equal(bench.exitCode, null, `the benchmark runs: ${ended.stderr}`);
        started = descendantsOf(bench.pid);
        return isTime(started) ? true : undefined;
      });
      assert.notDeepEqual(readdirSync(folder), [], 'it has made folders');
      interrupt(bench, started);
      [ended.code] = (await closed) as [number | null];
    } finally {
      bench.kill('SIGKILL');
    }
    await waitFor('the end of what it has started', 5_000, async () => {
      return started.every(({ pid }) => processOf(pid) === undefined) ? true : undefined;
    });
    ended.left = readdirSync(folder);
  });
  return ended;
}

test('Ctrl-C while a cluster stands still', OPTIONS, async () => {
  const peer = redis ? ['--peer', 'redis'] : [];
  const words = ['durable', '--quick', '--memory', '64MB', ...peer];
  const stopped: Moment = (started) => started.filter(({ state }) => state === 'T').length >= 5;
  const { code, left } = await interrupted(words, stopped, (bench) => bench.kill('SIGINT'));
  assert.deepEqual({ code, left }, { code: 130, left: [] });
});

test('SIGTERM while servers start', OPTIONS, async () => {
  const words = ['latency', '--quick', '--memory', '64MB'];
  const starting: Moment = ({ length }) => length >= 2;
  const { code, left } = await interrupted(words, starting, (bench) => bench.kill('SIGTERM'));
  assert.deepEqual({ code, left }, { code: 143, left: [] });
});

const throughput = ['throughput', '--quick', '--memory', '64MB'];
if (redis) throughput.push('--peer', 'redis');

const find = (started: readonly Found[], words: string): Found | undefined =>
  started.find(({ command }) => command.includes(words));

/** All sides have their servers. */
const sidesRun: Moment = (started) =>
  find(started, 'main.js server ') !== undefined &&
  (!redis || find(started, 'redis-server 127.') !== undefined);

for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGKILL', null],
] as const) {
  test(`${signal} while each store has a process of its own`, BUILDS, async () => {
    coreBinary(); // not while it is waited for
    const { code, left } = await interrupted(throughput, sidesRun, (bench) => bench.kill(signal));
    assert.deepEqual({ code, left }, { code: status, left: [] });
  });
}

test('a side that dies fails the benchmark by its name', BUILDS, async () => {
  coreBinary();
  const name = redis ? 'redis' : 'rekindle';
  const kill = (_: ChildProcess, started: readonly Found[]): void => {
    const side = find(started, `side-program.js {"name":"${name}"`);
    assert.ok(side);
    process.kill(side.pid, 'SIGKILL');
  };
  const { code, stderr } = await interrupted(throughput, sidesRun, kill);
  assert.equal(code, 2);
  assert.match(stderr, new RegExp(`the process of ${name} has ended with SIGKILL`));
});

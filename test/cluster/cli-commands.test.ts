/** The commands as a user or a script runs them: what they print, and their exit codes. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { waitForRecovery } from '../../bench/cluster-health.js';
import { CLI, rekindle, withCluster, withFolder } from './fixture.js';

const OPTIONS = { timeout: 240_000 };

test('objects, tables and status from the command line', OPTIONS, async () => {
  await withCluster({ servers: 5 }, async (cluster, client) => {
    const { url } = cluster;
    const run = (line: string, stdin?: string | Buffer) =>
      rekindle(line.split(' '), { url, ...(stdin === undefined ? {} : { stdin }) });

    assert.equal((await run('table create notes')).code, 0);
    assert.equal((await run('put notes hello world')).code, 0);
    assert.deepEqual(await run('get notes hello'), { code: 0, stdout: 'world', stderr: '' });
    const bytes = Buffer.from([0, 255, 10, 13, 0]);
    assert.equal((await run('put notes bytes', bytes)).code, 0);
    const entry = JSON.parse((await run('get notes bytes --json')).stdout);
    assert.equal(entry.encoding, 'base64');
    assert.equal(entry.value, bytes.toString('base64'));
    assert.ok(entry.version > 0);

    assert.equal((await run('delete notes hello')).code, 0);
    assert.equal((await run('delete notes hello')).code, 1);
    assert.equal((await run('get notes hello')).code, 1);
    const absent = JSON.parse((await run('get notes hello --json')).stdout);
    assert.equal(absent.found, false);

    const unknown = await run('get nowhere key');
    assert.equal(unknown.code, 2);
    assert.match(unknown.stderr, /TABLE_NOT_FOUND/);
    assert.match(unknown.stderr, /rekindle table list/);
    assert.doesNotMatch(unknown.stderr, /\n\s+at /);
    assert.match((await run('get nowhere key --verbose')).stderr, /\n\s+at /);

    const tables = JSON.parse((await run('table list --json')).stdout);
    assert.deepEqual(
      tables.map(({ name }: { name: string }) => name),
      ['notes'],
    );
    const healthy = await run('status --json');
    assert.equal(healthy.code, 0, healthy.stdout);
    assert.equal(JSON.parse(healthy.stdout).servers.length, 5);

    const serverId = cluster.serverId(0) ?? 0;
    await cluster.killServer(0);
    await waitForRecovery(client, serverId, 60_000);
    const fewer = await run('status');
    assert.equal(fewer.code, 0, 'that one more loss would stop writes is advice');
    assert.match(fewer.stdout, /note: .*writes would wait/);
    await cluster.killServer(1);
    assert.equal((await run('status')).code, 1, 'three servers are too few for three replicas');
    await cluster.restartServer(1);
    assert.equal((await run('table drop notes')).code, 0);
    const again = await run('table drop notes --json');
    assert.equal(again.code, 1);
    assert.equal(JSON.parse(again.stdout).dropped, false);
  });
});

test('a coordinator starts again without the settings that it has stored', OPTIONS, async () => {
  await withFolder(async (folder) => {
    const settings = ['--replicas', '2', '--durability', 'replicated', '--allow-same-host'];
    for (const given of [settings, [], ['--replicas', '2']]) {
      const { code, line } = await startAndStop(['coordinator', '--data', folder, ...given]);
      assert.match(line, /"ready":true/);
      assert.equal(code, 0);
    }
    const other = ['coordinator', '--data', folder, '--port', '0', '--replicas', '3'];
    const { code, stderr } = await rekindle(other);
    assert.equal(code, 2);
    assert.match(stderr, /replicas = 2/);
  });
});

/** Starts a service on any port, waits for its ready line, sends SIGTERM. */
async function startAndStop(
  commandArguments: readonly string[],
): Promise<{ code: number | null; line: string }> {
  const child = spawn(
    process.execPath,
    [CLI, ...commandArguments, '--port', '0', '--ready-json', '--exit-with-parent'],
    { stdio: ['pipe', 'pipe', 'ignore'] },
  );
  const ended = once(child, 'close');
  const line = await Promise.race([
    once(child.stdout, 'data').then(([piece]) => String(piece)),
    ended.then(() => 'ended without a ready line'),
  ]);
  child.kill('SIGTERM');
  const [code] = (await ended) as [number | null];
  return { code, line };
}

test('a new cluster of the usual size is healthy, with a note', OPTIONS, async () => {
  await withCluster({}, async ({ url }) => {
    const status = await rekindle(['status', '--json'], { url });
    assert.equal(status.code, 0, status.stdout);
    const { healthy, warnings, notes } = JSON.parse(status.stdout);
    assert.deepEqual([healthy, warnings, notes.length], [true, [], 1]);
  });
});

test('a reader that goes away ends a command without a stack', OPTIONS, async () => {
  const child = spawn(process.execPath, [CLI, '--help'], { stdio: ['ignore', 'pipe', 'pipe'] });
  child.stdout.destroy();
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (piece: string) => {
    stderr += piece;
  });
  await once(child, 'close');
  assert.equal(stderr, '');
});

test('mistakes of usage end with code 2 and say what is wrong', OPTIONS, async () => {
  for (const [line, message] of [
    ['server --data x --memory 12MB', /at least 64MB/],
    ['server --data x --port 70000', /whole number from 0 to 65535/],
    ['server --data x --coordinator nonsense', /host:port/],
    ['coordinator', /--data/],
    ['bench throughput --peer other', /write redis/],
    ['bench ycsb --workloads A,G', /"G" is not a workload/],
    ['nonsense', /unknown command/],
    ['status --url nonsense://x', /INVALID_ARGUMENT/],
    ['status --url rekindle://127.0.0.1:1 --timeout 1s', /COORDINATOR_UNAVAILABLE/],
  ] as const) {
    const { code, stderr } = await rekindle(line.split(' '));
    assert.equal(code, 2, line);
    assert.match(stderr, message, line);
  }
});

test('every command has help with an example', OPTIONS, async () => {
  const commands = ['dev', 'coordinator', 'server', 'status', 'table', 'table create', 'get'];
  const more = [
    'put',
    'delete',
    'bench',
    'bench throughput',
    'bench durable',
    'bench ycsb',
    'bench soak',
    'bench link',
    'bench recovery',
    'bench chaos',
  ];
  for (const command of [...commands, ...more, 'bench latency', 'demo', 'admin accept-loss']) {
    const { code, stdout } = await rekindle([...command.split(' '), '--help']);
    assert.equal(code, 0, command);
    assert.match(stdout, /Examples:\n {2}\$ /, command);
  }
});

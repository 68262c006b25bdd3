/**
 * Fault points in a real process: an armed one kills with SIGKILL, another name does nothing, an
 * action that does not exist is refused at start.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';

const MODULE = new URL('../../src/rpc/fault-point.js', import.meta.url).href;
const SCRIPT = `
const { faultPoint } = await import(${JSON.stringify(MODULE)});
await faultPoint('create-1');
console.log('passed create-1');
await faultPoint('create-2');
console.log('passed create-2');`;

function run(fault: string): { signal: string | null; status: number | null; output: string } {
  const { signal, status, stdout } = spawnSync(
    process.execPath,
    ['--input-type=module', '-e', SCRIPT],
    { env: { ...process.env, REKINDLE_FAULT: fault }, encoding: 'utf8' },
  );
  return { signal, status, output: stdout };
}

test('an armed fault point kills the process there and nowhere else', () => {
  const killed = run('drop-1=crash,create-2=crash');
  assert.equal(killed.signal, 'SIGKILL');
  assert.equal(killed.output, 'passed create-1\n');
  const passed = run('drop-1=crash');
  assert.equal(passed.status, 0);
  assert.match(passed.output, /passed create-2/);
});

test('an unknown action is refused at start', () => {
  const refused = run('create-1=sleep');
  assert.equal(refused.status, 1);
  assert.equal(refused.output, '');
});

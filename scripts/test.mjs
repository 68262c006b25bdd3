/**
 * `npm test`: formatting, the tests of the native core, then those in TypeScript: unit tests side
 * by side, clusters one after the other. The last line is `N passed, N failed`; the exit code is 0
 * only if nothing failed. `npm test -- unit` runs the folders whose path contains the word.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const filters = process.argv.slice(2);
const totals = { passed: 0, failed: 0 };

function run(command, commandArguments) {
  const { status, stdout, stderr, error } = spawnSync(command, commandArguments, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 256 * 2 ** 20,
  });
  return { ok: status === 0, output: `${stdout ?? ''}${stderr ?? ''}${error?.message ?? ''}` };
}

/** A check without tests of its own counts as one. */
function check(title, command, commandArguments) {
  const { ok, output } = run(command, commandArguments);
  process.stdout.write(`${ok ? 'ok  ' : 'FAIL'} ${title}\n`);
  if (!ok) process.stdout.write(output);
  totals[ok ? 'passed' : 'failed']++;
}

function cargoTests() {
  const { ok, output } = run('cargo', ['test', '--workspace', '--quiet']);
  let failed = 0;
  for (const [, passes, failures] of output.matchAll(
    /test result: \w+\. (\d+) passed; (\d+) failed/g,
  )) {
    totals.passed += Number(passes);
    failed += Number(failures);
  }
  // A test binary that does not compile or crashes reports no failed test.
  if (!ok && failed === 0) failed = 1;
  totals.failed += failed;
  process.stdout.write(`${ok ? 'ok  ' : 'FAIL'} cargo test\n`);
  if (!ok) process.stdout.write(output);
}

function nodeTests(title, files, concurrency) {
  if (files.length === 0) return;
  const folder = mkdtempSync(join(tmpdir(), 'rekindle-test-'));
  const tap = join(folder, 'tap');
  const { status } = spawnSync(
    process.execPath,
    [
      '--test',
      `--test-concurrency=${concurrency}`,
      '--test-reporter=spec',
      '--test-reporter-destination=stdout',
      '--test-reporter=tap',
      `--test-reporter-destination=${tap}`,
      ...files,
    ],
    { cwd: root, stdio: 'inherit' },
  );
  const text = readFileSync(tap, 'utf8');
  rmSync(folder, { recursive: true, force: true });
  const count = (name) => Number(text.match(new RegExp(`^# ${name} (\\d+)$`, 'm'))?.[1] ?? 0);
  const failed = count('fail') + count('cancelled');
  totals.passed += count('pass');
  totals.failed += failed === 0 && status !== 0 ? 1 : failed;
  process.stdout.write(`${status === 0 ? 'ok  ' : 'FAIL'} ${title}\n`);
}

const compiled = join(root, 'build', 'test');
const files = readdirSync(compiled, { recursive: true })
  .filter((name) => name.endsWith('.test.js'))
  .filter((name) => filters.length === 0 || filters.some((word) => name.includes(word)))
  .sort()
  .map((name) => join(compiled, name));
const clusterFolders = ['cluster', 'faults'].map((name) => join(compiled, name) + sep);
const isCluster = (file) => clusterFolders.some((folder) => file.startsWith(folder));

if (filters.length === 0) {
  check('biome', join(root, 'node_modules', '.bin', 'biome'), ['ci', '.']);
  check('cargo fmt', 'cargo', ['fmt', '--all', '--', '--check']);
  cargoTests();
  check('loom', process.execPath, [join(root, 'scripts', 'loom.mjs')]);
}
const unitTests = files.filter((file) => !isCluster(file));
nodeTests('unit tests', unitTests, Math.max(1, availableParallelism() - 1));
nodeTests('cluster tests', files.filter(isCluster), 1);

process.stdout.write(`\n${totals.passed} passed, ${totals.failed} failed\n`);
process.exitCode = totals.failed === 0 && totals.passed > 0 ? 0 : 1;

/**
 * `npm run test:sanitize`: the tests of the native core under AddressSanitizer and under
 * ThreadSanitizer; `-- address` or `-- thread` runs one of them. Needs a nightly toolchain and
 * fails without one. docs/safety.md says what this covers and what it does not.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));

function output(command, commandArguments) {
  const { status, stdout } = spawnSync(command, commandArguments, { cwd: root, encoding: 'utf8' });
  return status === 0 ? stdout : undefined;
}

const host = /host: (\S+)/.exec(output('rustc', ['+nightly', '-vV']) ?? '')?.[1];
const metadata = output('cargo', ['metadata', '--format-version=1', '--no-deps']);
if (host === undefined || metadata === undefined) {
  process.stderr.write('no nightly toolchain: `rustup toolchain install nightly` brings it\n');
  process.exit(1);
}
const folder = join(JSON.parse(metadata).target_directory, 'sanitize');

const parts = {
  address: {
    flags: '-Zsanitizer=address',
    packages: ['rekindle-core', 'rekindle-fuzz'],
    // A thread that touches memory may outlive its test and still hold the master.
    variables: { ASAN_OPTIONS: 'detect_leaks=0' },
  },
  thread: {
    // The standard library comes without instrumentation; the suppressions say what that costs.
    flags: '-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer',
    packages: ['rekindle-core'],
    variables: { TSAN_OPTIONS: `suppressions=${join(root, 'scripts', 'thread-sanitizer.supp')}` },
  },
};

function passes(name, { flags, packages, variables }) {
  const chosen = packages.flatMap((each) => ['--package', each]);
  // A target of its own, so that build scripts and macros are built without the flags.
  const build = ['--target', host, '--target-dir', join(folder, name)];
  const started = Date.now();
  const { status } = spawnSync(
    'cargo',
    ['+nightly', 'test', '--quiet', '--no-fail-fast', '--tests', ...chosen, ...build],
    { cwd: root, env: { ...process.env, ...variables, RUSTFLAGS: flags }, stdio: 'inherit' },
  );
  const seconds = Math.round((Date.now() - started) / 1000);
  process.stdout.write(`${status === 0 ? 'ok  ' : 'FAIL'} ${name} sanitizer, ${seconds} s\n`);
  return status === 0;
}

const wanted = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(parts);
const unknown = wanted.filter((name) => parts[name] === undefined);
if (unknown.length > 0) {
  process.stderr.write(`${unknown} is none of ${Object.keys(parts).join(', ')}\n`);
  process.exit(2);
}
const failed = wanted.filter((name) => !passes(name, parts[name]));
process.exitCode = failed.length === 0 ? 0 : 1;

/**
 * `npm run fuzz -- TARGET [SECONDS]`: libFuzzer over one target of native/fuzz, or `all` in turn
 * (60 seconds each unless said). Uses AddressSanitizer where a nightly toolchain is installed and
 * says so where none is. What is found lies in TARGET-DIR/fuzz/; seeds are in native/fuzz/corpus.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const corpus = join(root, 'native', 'fuzz', 'corpus');
const known = readdirSync(corpus).sort();
const [name = '', secondsText = '60'] = process.argv.slice(2);
const seconds = Number(secondsText);
if ((name !== 'all' && !known.includes(name)) || !Number.isInteger(seconds) || seconds < 1) {
  process.stderr.write(`npm run fuzz -- TARGET [SECONDS]; targets: all, ${known.join(', ')}\n`);
  process.exit(2);
}

function output(command, commandArguments) {
  const { status, stdout } = spawnSync(command, commandArguments, { cwd: root, encoding: 'utf8' });
  return status === 0 ? stdout : undefined;
}

const nightly = output('cargo', ['+nightly', '--version']) !== undefined;
const toolchain = nightly ? ['+nightly'] : [];
if (!nightly) process.stdout.write('no nightly toolchain: without AddressSanitizer\n');
const host = /host: (\S+)/.exec(output('rustc', [...toolchain, '-vV']) ?? '')?.[1];
if (host === undefined) {
  process.stderr.write('Rust is missing; https://rustup.rs installs it.\n');
  process.exit(1);
}
const metadata = output('cargo', ['metadata', '--format-version=1', '--no-deps']);
const folder = join(JSON.parse(metadata).target_directory, 'fuzz');

// What libFuzzer needs to see: edges, comparisons, and overflows as panics.
const flags = [
  '-Cpasses=sancov-module',
  '-Cllvm-args=-sanitizer-coverage-level=4',
  '-Cllvm-args=-sanitizer-coverage-inline-8bit-counters',
  '-Cllvm-args=-sanitizer-coverage-pc-table',
  '-Cllvm-args=-sanitizer-coverage-trace-compares',
  '-Cdebug-assertions=on',
  ...(nightly ? ['-Zsanitizer=address'] : []),
];
// A target of its own, so that build scripts are built without these flags.
const build = ['build', '--release', '--package', 'rekindle-fuzz', '--bin', 'libfuzzer'];
build.push('--features', 'libfuzzer', '--target', host, '--target-dir', join(folder, 'build'));
const environment = {
  ...process.env,
  RUSTFLAGS: flags.join(' '),
  CARGO_PROFILE_RELEASE_LTO: 'off',
};
const built = spawnSync('cargo', [...toolchain, ...build], {
  cwd: root,
  env: environment,
  stdio: 'inherit',
});
if (built.status !== 0) process.exit(1);

let failed = 0;
for (const target of name === 'all' ? known : [name]) {
  const [found, kept] = [join(folder, 'found', target), join(folder, 'corpus', target)];
  for (const path of [found, kept]) mkdirSync(path, { recursive: true });
  process.stdout.write(`${target}: ${seconds} s\n`);
  const binary = join(folder, 'build', host, 'release', 'libfuzzer');
  const options = [
    `-max_total_time=${seconds}`,
    '-max_len=16384',
    '-verbosity=0',
    '-print_final_stats=1',
  ];
  options.push(
    `-artifact_prefix=${found}/`,
    '-rss_limit_mb=4096',
    '-timeout=30',
    '-detect_leaks=0',
  );
  const { status } = spawnSync(binary, [...options, kept, join(corpus, target)], {
    cwd: root,
    env: { ...process.env, REKINDLE_FUZZ_TARGET: target, ASAN_OPTIONS: 'detect_leaks=0' },
    stdio: 'inherit',
  });
  if (status !== 0) failed++;
}
process.exitCode = failed === 0 ? 0 : 1;

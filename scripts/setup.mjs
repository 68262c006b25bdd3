/**
 * Brings a fresh clone to where it runs: packages, addon, JavaScript. Does only what is out of
 * date, says nothing when all goes well (one line a step on a terminal), and shows the whole
 * output of a step that fails. `--test` also builds what the tests need.
 *
 * Plain JavaScript without dependencies: it runs before there are any.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const forTests = process.argv.includes('--test');

/** Newest modification below a file or folder in ms; 0 if there is nothing. */
function newestMs(path, accept = () => true) {
  const full = join(root, path);
  if (!existsSync(full)) return 0;
  const stat = statSync(full);
  if (!stat.isDirectory()) return accept(full) ? stat.mtimeMs : 0;
  const names = readdirSync(full).filter((name) => name !== 'target' && name !== 'node_modules');
  return Math.max(0, ...names.map((name) => newestMs(join(path, name), accept)));
}

function step(title, command, commandArguments) {
  if (process.stderr.isTTY) process.stderr.write(`${title} …\n`);
  const { status, error, stdout, stderr } = spawnSync(command, commandArguments, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 64 * 2 ** 20,
  });
  if (status === 0) return;
  process.stderr.write(`${stdout ?? ''}${stderr ?? ''}`);
  const why = error === undefined ? `exit code ${status}` : error.message;
  process.stderr.write(
    `\nsetup failed: ${title}: ${command} ${commandArguments.join(' ')}: ${why}\n`,
  );
  if (error?.code === 'ENOENT' && command === 'cargo') {
    process.stderr.write('Rust is missing; https://rustup.rs installs it.\n');
  }
  process.exit(1);
}

const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
if (major < 20 || (major === 20 && minor < 19)) {
  process.stderr.write(`Node ${process.versions.node} is too old; 20.19 or later is needed.\n`);
  process.exit(1);
}

// npm writes this file at the end of an installation.
const installedMs = newestMs('node_modules/.package-lock.json');
if (installedMs === 0 || installedMs < newestMs('package-lock.json')) {
  // Not `npm ci`: that refuses a registry that lacks optional builds for other platforms. Versions
  // are those of the lock file all the same.
  step('installing packages', 'npm', ['install', '--no-save', '--no-audit', '--no-fund']);
}

const rustMs = Math.max(...['native', 'Cargo.toml', 'Cargo.lock'].map((path) => newestMs(path)));
const addonMs = newestMs('build/native', (file) => file.endsWith('.node'));
if (addonMs < rustMs) {
  step('building the native core', 'npm', ['run', '--silent', 'build:native']);
}

const sources = ['src', 'bench', 'test', 'tsconfig.json', 'package-lock.json'];
const sourceMs = Math.max(...sources.map((path) => newestMs(path)));
if (newestMs('build/.tsbuildinfo') < sourceMs || !existsSync(join(root, 'build/src/cli/main.js'))) {
  step('compiling TypeScript', 'npm', ['run', '--silent', 'build:ts']);
}

if (forTests) {
  step('building the tests of the core', 'cargo', ['test', '--workspace', '--no-run', '--quiet']);
}

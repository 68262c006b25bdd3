/**
 * `npm run test:loom`: the models of native/loom, which try all schedules of the code that threads
 * share. LOOM_MAX_PREEMPTIONS=4 looks deeper and takes minutes. docs/safety.md says what they show.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const metadata = spawnSync('cargo', ['metadata', '--format-version=1', '--no-deps'], {
  cwd: root,
  encoding: 'utf8',
});
if (metadata.status !== 0) {
  process.stderr.write(`${metadata.stderr ?? ''}${metadata.error?.message ?? ''}\n`);
  process.exit(1);
}
// A folder of its own: the flag changes every crate, and would rebuild all of them each time.
const folder = join(JSON.parse(metadata.stdout).target_directory, 'loom');
const { status } = spawnSync(
  'cargo',
  [
    'test',
    '--quiet',
    '--no-fail-fast',
    '--package',
    'rekindle-loom',
    '--tests',
    '--target-dir',
    folder,
  ],
  {
    cwd: root,
    env: {
      ...process.env,
      RUSTFLAGS: '--cfg loom',
      CARGO_PROFILE_DEV_DEBUG: 'none', // half of the time to build
    },
    stdio: 'inherit',
  },
);
process.exitCode = status === 0 ? 0 : 1;

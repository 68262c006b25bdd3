/** Where the repository is and what is in it, for the tests that look at its text. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

function findRoot(): string {
  const starts = [dirname(fileURLToPath(import.meta.url)), process.cwd()];
  for (const start of starts) {
    for (let folder = start; folder !== dirname(folder); folder = dirname(folder)) {
      if (existsSync(join(folder, 'Cargo.toml')) && existsSync(join(folder, 'package.json'))) {
        return folder;
      }
    }
  }
  throw new Error('no repository above this file or the working directory');
}

export const root = findRoot();

export interface TextFile {
  /** Relative to the root, with slashes. */
  path: string;
  text: string;
  lines: string[];
}

/** Files of the repository (tracked, or new and not ignored) whose path matches. */
export function files(pattern: RegExp): TextFile[] {
  const list = execFileSync('git', ['ls-files', '-co', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  });
  return list
    .split('\n')
    .filter((path) => pattern.test(path) && existsSync(join(root, path)))
    .map((path) => {
      const text = readFileSync(join(root, path), 'utf8');
      return { path, text, lines: text.replace(/\n$/, '').split('\n') };
    });
}

export function read(path: string): string {
  return readFileSync(join(root, path), 'utf8');
}

/**
 * The repository checks itself: widths, lengths, openings of files, the arrows between folders,
 * and tables that must agree. Each finding names file and line. docs/lint.md says why.
 */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { test } from 'node:test';
import ts from 'typescript';
import { STATUS } from '../../src/rpc/status.js';
import { files, read, root, type TextFile } from './repository.js';

const WIDTH_MAX = 100;
const FILE_LINES_MAX = 600;
const FUNCTION_LINES_MAX = 70;

const code = files(/\.(ts|mjs|rs)$/);
const typeScript = code.filter(({ path }) => path.endsWith('.ts'));
const rust = code.filter(({ path }) => path.endsWith('.rs'));
const markdown = files(/\.md$/);

function assertNone(findings: readonly string[]): void {
  assert.deepEqual(findings, []);
}

test('no line is wider than 100 columns', () => {
  // The formatter does not break an import of one name.
  const breakable = (line: string): boolean => !/^import (type )?\{ \w+ \} from '.*';$/.test(line);
  assertNone(
    code.flatMap(({ path, lines }) =>
      lines.flatMap((line, index) =>
        [...line].length > WIDTH_MAX && breakable(line)
          ? [`${path}:${index + 1} has ${[...line].length}`]
          : [],
      ),
    ),
  );
});

test('no file is longer than 600 lines', () => {
  assertNone(
    code.flatMap(({ path, lines }) =>
      lines.length > FILE_LINES_MAX ? [`${path} has ${lines.length}`] : [],
    ),
  );
});

test('no function is longer than 70 lines', () => {
  assertNone([...typeScript.flatMap(longFunctions), ...rust.flatMap(longRustFunctions)]);
});

function longFunctions({ path, text }: TextFile): string[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.ES2023, true);
  const found: string[] = [];
  const lineOf = (at: number): number => source.getLineAndCharacterOfPosition(at).line + 1;
  const visit = (node: ts.Node): void => {
    if (ts.isFunctionLike(node) && 'body' in node && node.body !== undefined) {
      const first = lineOf(node.getStart());
      const length = lineOf(node.getEnd()) - first + 1;
      if (length > FUNCTION_LINES_MAX) found.push(`${path}:${first} has ${length}`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

/** rustfmt puts the closing brace of a function under its first line. */
function longRustFunctions({ path, lines }: TextFile): string[] {
  return lines.flatMap((line, index) => {
    const start = /^(\s*)(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe |extern "C" )*fn /.exec(
      line,
    );
    if (start === null) return [];
    const end = lines.findIndex((each, at) => at > index && each === `${start[1]}}`);
    const length = end - index + 1;
    return length > FUNCTION_LINES_MAX ? [`${path}:${index + 1} has ${length}`] : [];
  });
}

test('every file opens with what it is', () => {
  const opens: Record<string, RegExp> = {
    ts: /^(#!.*\n)?\/\*\*/,
    mjs: /^(#!.*\n)?\/\*\*/,
    rs: /^\/\/!/,
  };
  assertNone(
    code.flatMap(({ path, text }) =>
      opens[path.slice(path.lastIndexOf('.') + 1)]?.test(text) ? [] : [path],
    ),
  );
});

test('nothing is left to do, nothing is named utils', () => {
  const marker = new RegExp(['TO', 'DO|FIX', 'ME|XX', 'X'].join(''));
  assertNone([
    ...code.flatMap(({ path, lines }) =>
      lines.flatMap((line, index) => (marker.test(line) ? [`${path}:${index + 1}`] : [])),
    ),
    ...code.flatMap(({ path }) => (/(^|\/)(utils?|helpers?|common)\./.test(path) ? [path] : [])),
  ]);
});

/** Folder -> folders that it may import; docs/architecture.md draws it. */
const arrows: Record<string, readonly string[]> = {
  rpc: ['native'],
  native: ['rpc'],
  ops: ['rpc'],
  client: ['rpc'],
  coordinator: ['rpc', 'native', 'ops'],
  master: ['rpc', 'native', 'ops'],
  backup: ['rpc', 'native', 'ops'],
  cluster: ['coordinator', 'master', 'backup', 'rpc', 'native', 'ops'],
  bench: ['client', 'cluster', 'coordinator', 'master', 'backup', 'rpc', 'native', 'ops'],
  cli: ['client', 'cluster', 'rpc', 'ops', 'bench'],
};

function folderOf(path: string): string | undefined {
  const [top, second] = path.split('/');
  return top === 'src' ? second : top === 'bench' ? 'bench' : undefined;
}

function importsOf({ path, text }: TextFile): string[] {
  return ts
    .preProcessFile(text, true, true)
    .importedFiles.map(({ fileName }) =>
      fileName.startsWith('.')
        ? posix.join(dirname(path), fileName).replace(/\.js$/, '.ts')
        : fileName,
    );
}

/** Types vanish at run time: naming one does not use a package. */
function withoutTypes(file: TextFile): TextFile {
  return { ...file, text: file.text.replace(/^import type [^;]*;/gm, '') };
}

test('arrows between folders go one way', () => {
  assertNone(
    typeScript.flatMap((file) => {
      const from = folderOf(file.path);
      if (from === undefined) return [];
      return importsOf(file).flatMap((target) => {
        const to = folderOf(target);
        const fine = to === undefined || to === from || arrows[from]?.includes(to);
        return fine ? [] : [`${file.path} imports ${target}`];
      });
    }),
  );
});

test('the SDK is pure TypeScript with few dependencies', () => {
  const byPath = new Map(typeScript.map((file) => [file.path, file]));
  const pending = ['src/client/index.ts'];
  const seen = new Set(pending);
  const foreign = new Set<string>();
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    const file = byPath.get(path);
    assert.ok(file !== undefined, `${path} exists`);
    for (const target of importsOf(file)) {
      if (!target.startsWith('src/')) foreign.add(target);
      else if (!seen.has(target)) {
        seen.add(target);
        pending.push(target);
      }
    }
  }
  const allowed = /^(node:|crc-32|lz4-napi)/;
  assertNone([...foreign].filter((name) => !allowed.test(name)));
  assertNone([...seen].filter((path) => path === 'src/native/index.ts'));
});

test('foreign packages with one home stay there', () => {
  const homes: Record<string, string> = {
    'uWebSockets.js': 'src/rpc/uws-endpoint.ts',
    lmdb: 'src/coordinator/external-storage/lmdb.ts',
    ioredis: 'bench/redis-server.ts',
    'memcache-client': 'bench/memcached-peer.ts',
  };
  assertNone(
    typeScript
      .filter(({ path }) => folderOf(path) !== undefined)
      .flatMap((file) =>
        importsOf(withoutTypes(file)).flatMap((name) => {
          const home = homes[name];
          return home === undefined || home === file.path ? [] : [`${file.path} imports ${name}`];
        }),
      ),
  );
});

test('state machines have no clock, randomness, timers or I/O of their own', () => {
  const banned: Record<string, RegExp> = {
    'the `now` parameter': /\bDate\.now\b|\bperformance\.now\b|\bnew Date\(\)/,
    'an effect': /\bset(Timeout|Interval|Immediate)\b/,
    'an injected random function': /\bMath\.random\b|\brandomUUID\b|\brandomInt\b/,
    'an effect of the runtime': /from 'node:(fs|net|timers|child_process)/,
  };
  // A file declares itself one by these words in its opening comment.
  const declared = /\bpure (state )?machine|\bpure (data|function)|\bPure\.|\bDecisions about/;
  const machines = typeScript.filter(({ path, text }) => {
    const opening = text.slice(0, text.indexOf('*/')).replace(/\s+\*?\s*/g, ' ');
    return path.startsWith('src/') && declared.test(opening);
  });
  assert.ok(machines.length > 0, 'there are state machines');
  assertNone(
    machines.flatMap(({ path, lines }) =>
      lines.flatMap((line, index) =>
        Object.entries(banned).flatMap(([instead, pattern]) =>
          pattern.test(line) ? [`${path}:${index + 1}: use ${instead}`] : [],
        ),
      ),
    ),
  );
});

test('errors are never swallowed', () => {
  const swallowed = /\.catch\(\(\) => (\{\s*\}|undefined|null)\)|catch( \([^)]*\))? \{\s*\}/;
  assertNone(
    typeScript.flatMap(({ path, text }) => (swallowed.test(text) ? [`${path} swallows`] : [])),
  );
});

test('every page of documentation has one title', () => {
  assertNone(
    markdown.flatMap(({ path, text }) => {
      const prose = text.replace(/^```[\s\S]*?^```/gm, '');
      const titles = prose.match(/^# .+$/gm)?.length ?? 0;
      return titles === 1 ? [] : [`${path} has ${titles}`];
    }),
  );
});

test('links between pages lead somewhere', () => {
  assertNone(
    markdown.flatMap(({ path, text }) =>
      [...text.matchAll(/\]\((?!https?:|#)([^)#\s]+)[^)]*\)/g)].flatMap(([, target = '']) =>
        existsSync(join(root, dirname(path), target)) ? [] : [`${path} -> ${target}`],
      ),
    ),
  );
});

test('what package.json promises is in the sources', () => {
  const manifest = JSON.parse(read('package.json'));
  const targets: string[] = [
    ...Object.values(manifest.bin as Record<string, string>),
    ...Object.values(manifest.exports as Record<string, Record<string, string>>).flatMap(
      (conditions) => Object.values(conditions),
    ),
  ];
  assertNone(
    targets
      .map((target) => target.replace(/^(\.\/)?build\//, '').replace(/(\.d)?\.(js|ts)$/, '.ts'))
      .filter((source) => !existsSync(join(root, source))),
  );
});

test('status codes are the same in Rust and TypeScript', () => {
  const text = read('native/core/src/status.rs');
  const native = [...text.matchAll(/^ {4}([A-Z]\w+) = (\d+),$/gm)];
  assert.ok(native.length > 10, 'the table was found');
  for (const [, name = '', number] of native) {
    const constant = name.replace(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase();
    const row = (STATUS as Record<string, { number: number }>)[constant];
    assert.equal(row?.number, Number(number), constant);
  }
});

test('docs/safety.md counts every unsafe block', () => {
  const counted = new Map<string, number>();
  for (const [, path, lines] of read('docs/safety.md').matchAll(/^\| `(\S+\.rs)` \| (\d+) \|$/gm)) {
    counted.set(`native/${path}`, Number(lines));
  }
  const unsafe = /^(?!\s*\/\/).*\bunsafe (\{|impl|fn)/;
  const found = rust
    .map(({ path, lines }) => [path, lines.filter((line) => unsafe.test(line)).length] as const)
    .filter(([, count]) => count > 0);
  assert.deepEqual(Object.fromEntries(counted), Object.fromEntries(found));
});

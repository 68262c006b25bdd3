/**
 * The catalogue of faults covers the code: every fault point and every RPC has a row, no row names
 * a point that is gone, and docs/faults.md says what the catalogue says.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RPC, type RpcName } from '../../src/rpc/table.js';
import { CASES, CATALOGUE, EXEMPT, LEADER_CRASHES } from '../faults/catalogue.js';
import { page } from '../faults/page.js';
import { files, read } from './repository.js';

const named = new Set(CATALOGUE.map(({ name }) => name));

test('every fault point of the code has a row, and every row a fault point', () => {
  const points = files(/^src\/.*\.ts$/).flatMap(({ text }) =>
    [...text.matchAll(/\bfaultPoint\(\s*['"`]([^'"`]+)['"`]/gi)].map(([, name = '']) => name),
  );
  assert.ok(points.length > 20, 'the fault points were found');
  const steps = [...named].filter((name) => !/^(request|reply|disk)-/.test(name));
  assert.deepEqual([...new Set(points)].sort(), steps.sort());
});

test('every RPC has rows for both directions, or a reason', () => {
  const rpcs = Object.keys(RPC) as RpcName[];
  for (const name of rpcs) {
    const rows = [...named].filter((each) => each.replace(/^\w+-|\..*$/g, '') === name);
    const wanted = EXEMPT[name] === undefined ? ['reply', 'request'] : [];
    const directions = [...new Set(rows.map((each) => each.split('-')[0]))].sort();
    assert.deepEqual(directions, wanted, name);
  }
});

test('the leader dies at every step of its own, with LMDB and with a standby on etcd', () => {
  const own = CATALOGUE.filter(({ at }) => at === 'coordinator');
  assert.ok(own.length > 20, 'the rows of the coordinator were found');
  assert.deepEqual(
    own.map(({ name }) => name),
    LEADER_CRASHES.map(({ row }) => row.name),
  );
  // What the lanes do not play has a test of its own for each.
  for (const { row } of LEADER_CRASHES) {
    if (row.elsewhere === undefined) continue;
    const titles = [...read(row.elsewhere).matchAll(/^test\('(.*)'/gm)].map(([, title]) => title);
    const named = titles.filter((title) => title?.includes(row.name));
    assert.ok(
      named.some((title) => title?.includes('standby')) &&
        named.some((title) => !title?.includes('standby')),
      `${row.elsewhere}: a test of ${row.name} for each`,
    );
  }
});

test('the fault points of the code of the coordinator are rows of it', () => {
  const places = files(/^src\/coordinator\/.*\.ts$/).flatMap(({ text }) =>
    [...text.matchAll(/\bfaultPoint\(\s*['"`]([^'"`]+)['"`]/gi)].map(([, name]) => name),
  );
  const own = CATALOGUE.filter(({ at }) => at === 'coordinator').map(({ name }) => name);
  assert.deepEqual(
    [...new Set(places)].filter((name) => !own.includes(name ?? '')),
    [],
  );
});

test('tests that play rows of their own name them', () => {
  for (const { name, elsewhere } of CATALOGUE) {
    if (elsewhere === undefined) continue;
    assert.match(read(elsewhere), new RegExp(`\\b${name}\\b`), elsewhere);
  }
});

test('no case is there twice', () => {
  const titles = CASES.map(({ row, fault }) => `${row.name}=${fault}`);
  assert.equal(new Set(titles).size, titles.length);
});

test('docs/faults.md is what write-page makes', () => {
  assert.equal(read('docs/faults.md'), page(), 'run: node build/test/faults/write-page.js');
});

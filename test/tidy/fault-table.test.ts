/**
 * The catalogue of faults covers the code: every fault point and every RPC has a row, no row names
 * a point that is gone, and docs/faults.md says what the catalogue says.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RPC, type RpcName } from '../../src/rpc/table.js';
import { CASES, CATALOGUE, EXEMPT } from '../faults/catalogue.js';
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

test('tests that play rows of their own name them', () => {
  for (const { name, elsewhere } of CATALOGUE) {
    if (elsewhere === undefined) continue;
    assert.ok(read(elsewhere).includes(`'${name}'`), `${elsewhere}: ${name}`);
  }
});

test('no case is there twice', () => {
  const titles = CASES.map(({ row, fault }) => `${row.name}=${fault}`);
  assert.equal(new Set(titles).size, titles.length);
});

test('docs/faults.md is what write-page makes', () => {
  assert.equal(read('docs/faults.md'), page(), 'run: node build/test/faults/write-page.js');
});

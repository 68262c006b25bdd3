/**
 * A short run of `bench latency` from end to end: its figures, for both stores, as a table, as JSON
 * and as a page.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Metric } from '../../bench/report.js';
import { rekindle, withFolder } from './fixture.js';

const redis = spawnSync('redis-server', ['--version']).status === 0;

test('latency without replicas, beside redis', { timeout: 120_000 }, async () => {
  await withFolder(async (folder) => {
    const [json, html] = [join(folder, 'latency.json'), join(folder, 'latency.html')];
    const peer = redis ? ['--peer', 'redis'] : [];
    const place = ['--replicas', '0', '--memory', '64MB', '--rate', '500'];
    const words = ['bench', 'latency', '--quick', ...place, ...peer];
    const { code, stdout, stderr } = await rekindle([...words, '--json', json, '--html', html]);
    assert.equal(code, 0, stderr);
    const metrics = JSON.parse(readFileSync(json, 'utf8')).metrics as Metric[];
    const figures = new Map(metrics.map(({ name, value }) => [name, value]));
    const page = readFileSync(html, 'utf8');
    for (const work of ['get, one at a time', 'put, one at a time', 'get, 500/s', 'put, 500/s']) {
      assert.ok(stdout.includes(work), work);
      for (const store of redis ? ['', ' redis'] : ['']) {
        const at = ['p50', 'p90', 'p99', 'p99.9', 'max'].map((each) => `${work} ${each}${store}`);
        const values = at.map((name) => figures.get(name) ?? Number.NaN);
        assert.ok((values[0] ?? 0) > 0, `${at[0]}: ${values[0]}`);
        assert.deepEqual(
          values,
          [...values].sort((a, b) => a - b),
          at.join(),
        );
        for (const name of at) assert.ok(page.includes(`<td>${name}</td>`), name);
      }
    }
    const ratios = metrics.filter(({ name }) => name.endsWith('-vs-ioredis'));
    assert.equal(ratios.length, redis ? 8 : 0);
    for (const { name, value } of ratios) assert.ok(value > 0, `${name}: ${value}`);
    assert.equal(page.split('<svg').length - 1, redis ? 6 : 5, 'µs, ratios and four works');
  });
});

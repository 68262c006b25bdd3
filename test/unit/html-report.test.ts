/**
 * The page of a benchmark has all its figures, needs nothing from elsewhere, and shows what is not
 * HTML as it is. A browser draws it where one is installed.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { barChart, valueText } from '../../bench/bar-chart.js';
import { histogram } from '../../bench/fixed-rate.js';
import { htmlReport } from '../../bench/html-report.js';
import { jsonReport, metric, type Report, reportOf } from '../../bench/report.js';

const HOSTILE = '<script>alert("1 & 2")</script>';
const TEXT = `work   a < b\nline & ${HOSTILE}`;

function example(): Report {
  const times = histogram();
  for (let i = 1; i <= 10_000; i++) times.recordValue(i);
  const rate = { work: 'get, 256 in flight' };
  return reportOf({
    name: 'example',
    parameters: { peer: HOSTILE, quick: true },
    metrics: [
      { ...metric('get-256-ops', 'operations/s', 364_160.4, true), ...rate, store: 'rekindle' },
      { ...metric('get-256-ops-redis', 'operations/s', 115_300, true), ...rate, store: 'redis' },
      metric('get-256-vs-ioredis', 'ratio', 3.1583, true),
      metric('absent', 'µs', Number.NaN),
      metric(HOSTILE, 'B', 0),
    ],
    text: TEXT,
    passed: true,
    distributions: [{ work: 'get', store: 'rekindle', unit: 'µs', histogram: times }],
  });
}

const page = (): string => htmlReport(example(), TEXT, '2 × a processor & 4 GB');

/** Names of elements in the order in which they end; throws where one is not closed. */
function elementsOf(html: string): string[] {
  const open: string[] = [];
  const ended: string[] = [];
  for (const [, slash, name = '', rest = ''] of html.matchAll(/<(\/?)([a-z]\w*)([^<>]*)>/g)) {
    assert.match(rest, /^(\s+[\w:-]+="[^"<>]*")*\s*\/?$/, `attributes of ${name}`);
    if (slash === '/') assert.equal(open.pop(), name, `what </${name}> closes`);
    else if (!rest.endsWith('/')) open.push(name);
    if (slash === '/' || rest.endsWith('/')) ended.push(name);
  }
  assert.deepEqual(open, []);
  return ended;
}

function count(html: string, element: string): number {
  return elementsOf(html).filter((name) => name === element).length;
}

test('the page is well-formed and has every metric', () => {
  const html = page();
  assert.ok(html.startsWith('<!DOCTYPE html>\n'));
  for (const cell of ['get-256-ops', 'get-256-ops-redis', 'get-256-vs-ioredis', 'absent']) {
    assert.ok(html.includes(`<td>${cell}</td>`), cell);
  }
  for (const value of ['364,160', '115,300', '3.158', '–', '0']) {
    assert.ok(html.includes(`<td class="value">${value}</td>`), value);
  }
  assert.equal(count(html, 'tr'), 1 + 5);
  assert.equal(count(html, 'svg'), 4 + 1, 'a chart for each unit and each distribution');
  assert.ok(html.includes('>99.99 %</text>'), 'the axis has percentiles');
  assert.doesNotMatch(html, /NaN|undefined|Infinity/);
});

test('nothing is taken for HTML, nothing comes from elsewhere', () => {
  const html = page();
  assert.equal(count(html, 'script'), 0);
  assert.ok(html.includes('&lt;script&gt;'));
  assert.ok(html.includes('line &amp; '));
  assert.doesNotMatch(html, /&(?!amp;|lt;|gt;)/);
  const elsewhere = html.replaceAll('xmlns="http://www.w3.org/2000/svg"', '');
  assert.doesNotMatch(elsewhere, /https?:|src=|href=|url\(|@import/);
});

test('bars of one work share a scale, those that stand alone another', () => {
  const bars = (...values: number[]) => values.map((value) => ({ store: 'a', value }));
  const groups = [
    { name: 'pair', bars: bars(1_000_000, 500_000) },
    { name: 'one', bars: bars(8) },
    { name: 'other', bars: bars(2) },
    { name: 'none', bars: bars(Number.NaN) },
  ];
  const widths = [...barChart(groups, ['a']).matchAll(/width="([\d.]+)"/g)].map(([, w]) => w);
  assert.deepEqual(widths, ['430.0', '215.0', '430.0', '107.5', '0.0']);
});

test('values keep what is needed to compare them', () => {
  assert.equal(valueText(1_622_280.4), '1,622,280');
  assert.equal(valueText(0.000123456), '0.0001235');
  assert.equal(valueText(-2.71), '-2.71');
});

test('the JSON report has all but the histograms', () => {
  const report = JSON.parse(jsonReport(example()));
  assert.equal(report.metrics.length, 5);
  assert.equal(report.metrics[1].store, 'redis');
  assert.equal(report.distributions, undefined);
});

const browser = ['chromium', 'google-chrome'].find(
  (program) => spawnSync(program, ['--version']).status === 0,
);
const skip = browser === undefined ? 'there is no browser' : false;

test('a browser finds what was written', { skip, timeout: 60_000 }, () => {
  const folder = mkdtempSync(join(tmpdir(), 'rekindle-page-'));
  try {
    const file = join(folder, 'page.html');
    writeFileSync(file, page());
    const headless = ['--headless', '--no-sandbox', '--disable-gpu', `--user-data-dir=${folder}`];
    const { status, stdout } = spawnSync(
      browser ?? '',
      [...headless, '--dump-dom', `file://${file}`],
      { encoding: 'utf8' },
    );
    assert.equal(status, 0);
    for (const element of ['svg', 'rect', 'text', 'polyline', 'td', 'h2']) {
      const drawn = stdout.split(`<${element}`).length - 1;
      assert.equal(drawn, page().split(`<${element}`).length - 1, element);
    }
    assert.ok(!stdout.includes('<script'), 'no script came into being');
  } finally {
    rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
  }
});

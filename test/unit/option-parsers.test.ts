/** What the command line accepts as numbers, sizes and addresses, and what it refuses. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Command } from 'commander';
import {
  flag,
  integer,
  parseAddress,
  parseAllOrNoReplicas,
  parseBytes,
  parseDurationMs,
  parseFactor,
  parseMemoryBytes,
  parsePeers,
  parseWorkloads,
} from '../../src/cli/option-parsers.js';

test('sizes are powers of 1024', () => {
  assert.equal(parseBytes('65536'), 65_536);
  assert.equal(parseBytes('64KB'), 65_536);
  assert.equal(parseBytes('256 mb'), 256 * 2 ** 20);
  assert.equal(parseBytes('1.5GiB'), 1.5 * 2 ** 30);
  for (const text of ['', 'MB', '-1', '12XB', '1e9', 'Infinity', '99999999999GB']) {
    assert.throws(() => parseBytes(text), /is not a size|is too large/, text);
  }
});

test('memory is whole segments, at least 64 MB', () => {
  assert.equal(parseMemoryBytes('64MB'), 64 * 2 ** 20);
  assert.equal(parseMemoryBytes('65MB'), 72 * 2 ** 20);
  assert.throws(() => parseMemoryBytes('63MB'), /at least 64MB/);
});

test('workloads are letters, replicas all or none', () => {
  assert.deepEqual(parseWorkloads('a, F'), ['A', 'F']);
  for (const text of ['', 'G', 'AB', 'A,,B']) {
    assert.throws(() => parseWorkloads(text), /is not a workload/, text);
  }
  assert.deepEqual(['0', '3'].map(parseAllOrNoReplicas), [0, 3]);
  for (const text of ['', '1', '03']) {
    assert.throws(() => parseAllOrNoReplicas(text), /neither 0 nor 3/, text);
  }
});

test('whole numbers have limits', () => {
  const port = integer(0, 65_535);
  assert.equal(port('7411'), 7411);
  for (const text of ['65536', '-1', '1.5', 'x', '', '0x10', '1e3']) {
    assert.throws(() => port(text), /whole number/, text);
  }
});

test('durations and addresses', () => {
  assert.deepEqual(['250', '10s', '2m', '1.5s'].map(parseDurationMs), [250, 10_000, 120_000, 1500]);
  assert.throws(() => parseDurationMs('soon'), /not a duration/);
  assert.equal(parseAddress('localhost:80'), 'localhost:80');
  assert.equal(parseAddress('[::1]:80'), '[::1]:80');
  for (const text of ['localhost', ':80', 'a:0', 'a:70000', 'a b:80', '::1:80']) {
    assert.throws(() => parseAddress(text), /not an address/, text);
  }
});

test('a flag in the environment is set by a yes, not by any text', () => {
  const name = 'REKINDLE_TEST_FLAG';
  try {
    for (const [text, isSet] of [
      ['1', true],
      ['TRUE', true],
      ['0', false],
      ['false', false],
      ['', false],
    ] as const) {
      process.env[name] = text;
      const command = new Command().addOption(flag('--test-flag', 'a flag', 'TEST_FLAG'));
      command.parse([], { from: 'user' });
      assert.equal(command.opts().testFlag ?? false, isSet, `"${text}"`);
    }
  } finally {
    delete process.env[name];
  }
});

test('factors', () => {
  assert.equal(parseFactor('2'), 2);
  assert.equal(parseFactor(' 1.5 '), 1.5);
  for (const text of ['0.5', '-2', '101', 'two', '', 'Infinity', '1e1']) {
    assert.throws(() => parseFactor(text), /is not a number from 1 to 100/, text);
  }
});

test('peers, each once however often it is given', () => {
  assert.deepEqual(parsePeers('valkey', undefined), ['valkey']);
  assert.deepEqual(parsePeers('redis', ['etcd']), ['etcd', 'redis']);
  assert.deepEqual(parsePeers('redis', ['redis', 'memcached']), ['redis', 'memcached']);
  assert.throws(() => parsePeers('dynamo', ['redis']), /redis, valkey, memcached or etcd/);
});

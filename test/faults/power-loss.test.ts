/**
 * The power cut on a real cluster: the disk layer sees every write and every name; nothing
 * acknowledged is lost when flushes work; and when they do nothing the same run notices.
 * REKINDLE_FAULTS=all: more rounds, and `replicated` too.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { CheckedLoad, HEAVY_LOAD } from '../../bench/checked-load.js';
import { runColdStart } from '../../bench/cold-start.js';
import { DiskLayer, diskLayerLibrary } from '../../bench/disk-layer.js';
import { connect } from '../../src/client/index.js';
import { LocalCluster } from '../../src/cluster/local-cluster.js';
import { withFolder } from '../cluster/fixture.js';

const all = process.env.REKINDLE_FAULTS === 'all';
const memoryBytes = 64 * 2 ** 20;

test('the layer sees every write, and follows every call', { timeout: 120_000 }, async () => {
  await withFolder(async (directory) => {
    const layer = new DiskLayer(diskLayerLibrary(), directory, '*');
    const cluster = await LocalCluster.start({
      dataDirectory: directory,
      servers: 4,
      memoryBytes,
      environmentOf: (name) => layer.environmentOf(name),
    });
    try {
      await using client = await connect(cluster.url);
      const load = new CheckedLoad(await client.createTable('objects', { span: 4 }), HEAVY_LOAD, 1);
      load.start();
      await delay(1_500);
      await load.stop();
      assert.equal(load.checker.violationCount, 0, 'the disk writes through');
    } finally {
      await cluster.killAll();
    }
    for (const { name } of cluster.processes()) {
      assert.equal(layer.unsupported(name), '', name);
      const { dropped, unseen, namesUndone } = layer.cutPower(name, 1, 'drop');
      assert.equal(unseen, 0, `${name}: blocks that the layer has not seen written`);
      // No flush: not one file may be left, and the data of a backup is more than its superblock.
      assert.ok(namesUndone >= 1, `${name}: ${namesUndone} names`);
      assert.ok(dropped >= (name === 'coordinator' ? 4 : 100), `${name}: ${dropped} blocks`);
    }
  });
});

const options = { quick: true, servers: 4, memoryBytes, durability: 'fsync' as const };

test('fsync loses nothing in a power cut', { timeout: 600_000 }, async () => {
  // A disk that is quick enough may have nothing unflushed at the moment of a cut.
  for (let attempt = 1, hit = false; !hit; attempt += 1) {
    const result = await runColdStart({
      ...options,
      rounds: all ? 6 : 2,
      seed: undefined,
      powerLoss: true,
      flushIgnored: false,
      wholeTimeoutMs: 60_000,
    });
    assert.ok(result.passed, result.text);
    const cut = result.metrics.find(({ name }) => name === 'unflushed blocks lost or torn');
    hit = (cut?.value ?? 0) > 0;
    assert.ok(hit || attempt < 5, `no cut hit anything\n${result.text}`);
  }
});

test('the same run notices that flushes do nothing', { timeout: 120_000 }, async () => {
  const result = await runColdStart({
    ...options,
    rounds: 2,
    seed: 1,
    powerLoss: true,
    flushIgnored: true,
    wholeTimeoutMs: 10_000,
  });
  assert.ok(!result.passed, result.text);
  // Not merely slow: it names replicas that are gone, or misses writes.
  assert.match(result.text, /VIOLATION .*(waiting for|lost: write|after \d+ was known)/);
});

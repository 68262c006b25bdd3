/**
 * The run of `rekindle bench failover`, short: a leader is killed, one is stopped, a server is
 * killed, and the load through the SDK sees no failed call and loses nothing. Times are looked at
 * in standby.test.ts.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withoutEtcd } from '../../bench/etcd.js';
import { runFailoverBench } from '../../bench/failover.js';

test('no call fails while leaders and servers end', {
  skip: withoutEtcd,
  timeout: 120_000,
}, async () => {
  const result = await runFailoverBench({
    quick: true,
    kills: 1,
    seed: undefined,
    servers: 5,
    durability: 'fsync',
    memoryBytes: 128 * 2 ** 20,
  });
  assert.ok(result.passed, result.text);
  const value = (name: string): number =>
    result.metrics.find((each) => each.name === name)?.value ?? Number.NaN;
  assert.ok(value('acknowledged-writes') > 0, 'something was written');
  for (const name of ['leader-takeover', 'leader-handover', 'server-pause']) {
    assert.ok(value(`${name}-p50-ms`) > 0, name);
  }
});

/**
 * Leader and standbys as real processes on a real etcd: kills, clean stops and pauses of the
 * leader, with and without load. Times are those that a caller sees, from the signal to the first
 * answer of the next leader.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { waitFor, waitUntilWhole } from '../../bench/cluster-health.js';
import { median } from '../../bench/concurrency.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { withoutEtcd } from '../../bench/etcd.js';
import {
  COORDINATORS,
  leaderOf,
  replaceLeader,
  takeoverMs,
  withStandbys,
} from '../../bench/standbys.js';
import { connect } from '../../src/client/index.js';
import { Sluggishness } from '../../src/ops/sluggishness.js';
import { RekindleError } from '../../src/rpc/errors.js';
import { WsLinkPool } from '../../src/rpc/link-pool.js';
import { patience } from '../../src/rpc/probe.js';

const limits = { skip: withoutEtcd, timeout: 150_000 };
/** What a takeover may take, before the patience that a busy machine needs. */
const KILL_MS_MAX = 1_500;
const STOP_MS_MAX = 200;

/** What a busy machine adds to times. */
async function withPatience<T>(body: (lagMs: () => number) => Promise<T>): Promise<T> {
  const lag = new Sluggishness();
  try {
    return await body(() => patience(0, lag.ms()));
  } finally {
    lag.close();
  }
}

test('leaders that are killed and stopped are replaced in time', limits, (context) =>
  withStandbys({}, (cluster) =>
    withPatience(async (lagMs) => {
      await using client = await connect(cluster.url, { timeoutMs: 30_000 });
      for (const [signal, boundMs, rounds] of [
        ['SIGKILL', KILL_MS_MAX, 5],
        ['SIGTERM', STOP_MS_MAX, 5],
      ] as const) {
        const times: number[] = [];
        for (let round = 0; round < rounds; round++) {
          const { standbys } = await client.status();
          assert.equal(standbys.length, COORDINATORS - 1);
          times.push(await replaceLeader(cluster, client, signal));
        }
        const shown = times.map((ms) => Math.round(ms)).join(', ');
        context.diagnostic(`${signal}: takeover after ${shown} ms`);
        const most = boundMs + lagMs();
        assert.ok(median(times) < most, `${signal}: ${shown} ms, at most ${most}`);
      }
    }),
  ),
);

test('a leader that stood still finds itself deposed, changes nothing, and stands by', limits, () =>
  withStandbys({}, async (cluster) => {
    await using client = await connect(cluster.url, { timeoutMs: 30_000 });
    const { term } = await client.status();
    const paused = await leaderOf(client, cluster);
    const address = cluster.url.slice('rekindle://'.length).split(',')[paused] ?? '';
    const pool = new WsLinkPool({
      identity: () => ({ role: 'tool', clusterId: null, serverId: null }),
    });
    try {
      const link = pool.link(address);
      await link.call('LIST_TABLES', {});
      cluster.pauseCoordinator(paused);
      // It finds these, a change and a question, when it wakes.
      const request = { operationId: 'late', name: 'late' };
      const change = link.call('CREATE_TABLE', request, { timeoutMs: 60_000 });
      const question = link.call('VERIFY_MEMBERSHIP', { serverId: 1 }, { timeoutMs: 60_000 });
      const answers = Promise.allSettled([change, question]);
      await takeoverMs(client, term, performance.now());
      const before = await client.status();
      cluster.resumeCoordinator(paused);
      for (const answer of await answers) {
        assert.equal(answer.status, 'rejected');
        const error: unknown = answer.status === 'rejected' ? answer.reason : null;
        assert.ok(error instanceof RekindleError);
        assert.notEqual(error.code, 'TIMEOUT');
      }
      const redirected = await waitFor('a redirect', 10_000, async () => {
        try {
          await link.call('LIST_TABLES', {});
        } catch (error) {
          if (error instanceof RekindleError && error.details !== undefined) return error;
        }
        return undefined;
      });
      assert.equal(redirected.code, 'COORDINATOR_UNAVAILABLE');
      assert.equal(redirected.details?.coordinator, before.leader);
      const after = await client.status();
      assert.deepEqual(
        [after.term, after.leader, after.tables],
        [before.term, before.leader, before.tables],
      );
      assert.ok(cluster.coordinatorIsRunning(paused));
      assert.ok(after.standbys.includes(address));
    } finally {
      pool.close();
    }
  }),
);

test('data traffic does not notice; tables and recoveries go on', limits, () =>
  withStandbys({ servers: 4, memoryBytes: 128 * 2 ** 20, replicas: 2 }, async (cluster) => {
    await cluster.startAll();
    await using client = await connect(cluster.url, { timeoutMs: 60_000 });
    const table = await client.createTable('objects', { span: 8 });
    const dataset = new Dataset('object', 2_000, 100);
    await writeDataset(table, dataset);
    let stopped = false;
    let longestMs = 0;
    const load = (async () => {
      for (let i = 0; !stopped; i = (i + 1) % dataset.count) {
        const fromMs = performance.now();
        await table.put(dataset.key(i), dataset.value(i));
        assert.ok(dataset.matches(i, await table.get(dataset.key(i))));
        longestMs = Math.max(longestMs, performance.now() - fromMs);
        await delay(1);
      }
    })();
    const during = async (): Promise<void> => {
      for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
        const leader = await leaderOf(client, cluster);
        const created = client.createTable(`during-${signal}`, { span: 4 });
        await cluster.killCoordinator(signal, leader);
        await (await created).put('key', 'value');
        await cluster.restartCoordinator({}, leader);
      }
      await withPatience(async (lagMs) => {
        assert.ok(longestMs < 1_000 + lagMs(), `an operation took ${longestMs} ms`);
      });
      // Leader and server at once: the next one begins the recovery.
      const leader = await leaderOf(client, cluster);
      await Promise.all([cluster.killCoordinator('SIGKILL', leader), cluster.killServer(1)]);
      await waitUntilWhole(client, 3, 60_000);
      await cluster.restartCoordinator({}, leader);
      await cluster.restartServer(1);
      await waitUntilWhole(client, 4, 60_000);
    };
    try {
      await Promise.race([load, during()]);
    } finally {
      stopped = true;
    }
    await load;
    assert.equal(await countWrong(table, dataset), 0);
    const names = (await client.listTables()).map(({ name }) => name);
    assert.deepEqual(names.sort(), ['during-SIGKILL', 'during-SIGTERM', 'objects']);
  }),
);

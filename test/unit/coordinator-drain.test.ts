/** Servers that are emptied: the pure decisions, and the loop that carries them out. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import {
  type DrainStep,
  decideDrain,
  decideDrained,
  nextDrainStep,
} from '../../src/coordinator/drain.js';
import { decideCrash, decideEnlist } from '../../src/coordinator/server-list.js';
import { decideCreated, decideCreateTable } from '../../src/coordinator/tables.js';
import {
  decideAbortMigration,
  decideForgetMigration,
  decideMigrate,
  decideMigrated,
} from '../../src/coordinator/tablet-migration.js';
import { applied, enlistRequest } from './coordinator-decisions.js';
import { until, withCluster } from './coordinator-scene.js';

/** Four servers with R = 2, and a table with a tablet on each and one more on the first. */
function scene(): { state: CoordinatorState; servers: number[] } {
  const state = new CoordinatorState();
  applied(state, decideStart(state, { replicas: 2, scatterWidth: 2 }, 'cluster'));
  const servers = [1, 2, 3, 4].map(
    (n) => applied(state, decideEnlist(state, enlistRequest(n), 0)).serverId,
  );
  const create = { operationId: 'create', name: 'table', span: 5 };
  const tableId = applied(state, decideCreateTable(state, create));
  const owners = state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
  applied(state, decideCreated(state, tableId, owners));
  return { state, servers };
}

const drain = (state: CoordinatorState, serverId: number, cancel = false): void =>
  applied(state, decideDrain(state, { serverId, cancel }, 7));

const next = (state: CoordinatorState, serverId: number): DrainStep =>
  nextDrainStep(state, serverId, new Map());

const others = (servers: readonly number[], serverId: number): Set<number> =>
  new Set(servers.filter((each) => each !== serverId));

/** All tablets of a server migrate, one after the other; how many. */
function moveAll(state: CoordinatorState, serverId: number): number {
  let moves = 0;
  for (;;) {
    const step = next(state, serverId);
    if (step.kind !== 'move') return moves;
    const { targetServerId } = step.request;
    const migrationId = applied(state, decideMigrate(state, step.request, 0));
    assert.equal(next(state, serverId).kind, 'wait');
    const report = { migrationId, serverId: targetServerId, ok: true, error: null };
    const sizes = { ctimeSegmentId: 3, objects: 1, bytes: 1 };
    assert.ok(applied(state, decideMigrated(state, { ...report, ...sizes })));
    assert.equal(next(state, serverId).kind, 'wait');
    applied(state, decideForgetMigration(state, migrationId));
    moves += 1;
  }
}

test('a server gives its tablets away, is drained, and its end is no crash', () => {
  const { state, servers } = scene();
  const [first = 0, second = 0] = servers;
  const { serverListVersion } = state.cluster;
  drain(state, first);
  drain(state, first);
  assert.equal(state.cluster.serverListVersion, serverListVersion + 1, 'once');
  assert.equal(state.serverList().servers[0]?.draining, true);
  assert.ok(state.copysets?.sets.every((set) => !set.includes(first)));
  assert.throws(
    () => decideMigrate(state, { name: 'table', slot: 2 ** 31, targetServerId: first }, 0),
    /being drained/,
  );
  const free = others(servers, first);
  assert.equal(applied(state, decideDrained(state, first, free)), false, 'it owns tablets');
  assert.equal(moveAll(state, first), 2);
  const tableId = applied(
    state,
    decideCreateTable(state, { operationId: 'late', name: 'late', span: 8 }),
  );
  assert.ok(state.tables.get(tableId)?.tablets.every(({ serverId }) => serverId !== first));
  free.delete(second);
  assert.equal(applied(state, decideDrained(state, first, free)), false, 'one has not answered');
  free.add(second);
  assert.equal(applied(state, decideDrained(state, first, free)), true);
  assert.equal(applied(state, decideDrained(state, first, free)), false);
  const again = CoordinatorState.from(state.pairs());
  assert.deepEqual(again.servers.get(first)?.drain, { state: 'drained', startedAtMs: 7 });
  for (const crash of [
    () => applied(state, decideCrash(state, first, 0, 0)),
    () => applied(again, decideEnlist(again, enlistRequest(1, { nonce: 'again' }), 0)),
  ]) {
    crash();
  }
  for (const each of [state, again]) {
    assert.equal(each.servers.has(first), false);
    assert.equal(each.recoveries.size, 0);
    assert.equal(each.absent.size, 0);
  }
});

test('a server that crashes before it is drained is recovered', () => {
  const { state, servers } = scene();
  const [first = 0] = servers;
  drain(state, first);
  moveAll(state, first);
  applied(state, decideCrash(state, first, 0, 0));
  assert.equal(state.servers.get(first)?.status, 'crashed');
  assert.equal(state.recoveries.size, 1);
});

test('a drain waits for recoveries, since its disk may have what they need', () => {
  const { state, servers } = scene();
  const [first = 0, second = 0] = servers;
  drain(state, first);
  moveAll(state, first);
  applied(state, decideCrash(state, second, 0, 0));
  assert.deepEqual(next(state, first), {
    kind: 'wait',
    reason: `the recovery of server ${second}`,
  });
  assert.equal(applied(state, decideDrained(state, first, others(servers, first))), false);
});

test('a target that has failed is not the next one', () => {
  const { state, servers } = scene();
  const [first = 0] = servers;
  drain(state, first);
  const step = next(state, first);
  assert.equal(step.kind, 'move');
  if (step.kind !== 'move') return;
  const { targetServerId } = step.request;
  const migrationId = applied(state, decideMigrate(state, step.request, 0));
  applied(state, decideAbortMigration(state, migrationId, 'no memory'));
  assert.equal(next(state, first).kind, 'wait');
  applied(state, decideForgetMigration(state, migrationId));
  const tried = (count: number) => ({ count, targets: new Set([targetServerId]) });
  const second = nextDrainStep(state, first, new Map([[step.key, tried(1)]]));
  assert.ok(second.kind === 'move' && second.key !== step.key, 'another tablet comes first');
  const both = new Map([
    [step.key, tried(1)],
    [second.key, tried(2)],
  ]);
  const other = nextDrainStep(state, first, both);
  assert.ok(other.kind === 'move' && other.key === step.key);
  assert.notEqual(other.request.targetServerId, targetServerId);
});

test('it is refused where the others could not do without the server, and can be cancelled', () => {
  const { state, servers } = scene();
  const [first = 0, second = 0] = servers;
  drain(state, first);
  assert.throws(() => drain(state, second), /cannot be drained: a segment needs 2 backups/);
  assert.throws(() => drain(state, 77), /is not up/);
  drain(state, first, true);
  assert.equal(state.servers.get(first)?.drain, undefined);
  assert.equal(state.serverList().servers[0]?.draining, undefined);
  assert.ok(state.copysets?.sets.some((set) => set.includes(first)));
  drain(state, second);
  assert.equal(next(state, second).kind, 'move');
});

test('the coordinator asks masters until they need no replica there, a successor too', () =>
  withCluster(async (cluster) => {
    await cluster.add(4);
    const [first, second] = cluster.servers;
    assert.ok(first !== undefined && second !== undefined);
    second.replicas = 3;
    const { serverId } = first;
    await cluster.endpoint.call('DRAIN_SERVER', { serverId, cancel: false });
    const report = async () => (await cluster.status()).drains[0];
    await until('masters are asked', async () => (await report())?.replicas === 3);
    assert.match((await report())?.waitingFor ?? '', /3 replicas/);
    cluster.hangAt = 'drain-3';
    second.replicas = 0;
    await until('all is gone', () => cluster.faults.includes('drain-3'));
    await cluster.stop();
    cluster.hangAt = null;
    await cluster.start();
    await until('it is drained', async () => (await report())?.state === 'drained');
    cluster.kill(first);
    await until('it is gone', async () => (await cluster.status()).servers.length === 3);
    const { drains, recoveries } = await cluster.status();
    assert.deepEqual([drains, recoveries], [[], []]);
  }));

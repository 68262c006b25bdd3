/**
 * The pure decisions of the coordinator: membership, tables, ownership, crash verification.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { decideAssign, decidePlan } from '../../src/coordinator/recovery-record.js';
import {
  decideCrash,
  decideEnlist,
  decideRecoveryInfo,
  decideRelease,
} from '../../src/coordinator/server-list.js';
import {
  checkTableName,
  decideCreated,
  decideCreateTable,
  decideDropTable,
  decideForgetTable,
  decideOwnership,
  decideReassignCreating,
} from '../../src/coordinator/tables.js';
import { RekindleError } from '../../src/rpc/errors.js';
import { applied, enlistRequest } from './coordinator-decisions.js';

function code(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (error instanceof RekindleError) return error.code;
    throw error;
  }
  return 'OK';
}

function newState(replicas = 2): CoordinatorState {
  const state = new CoordinatorState();
  applied(state, decideStart(state, { replicas }, 'cluster-a'));
  return state;
}

function enlist(state: CoordinatorState, n: number, over: object = {}): number {
  return applied(state, decideEnlist(state, enlistRequest(n, over), 0)).serverId;
}

function cluster(servers: number): CoordinatorState {
  const state = newState();
  for (let n = 1; n <= servers; n++) enlist(state, n);
  return state;
}

function createTable(state: CoordinatorState, name: string, span = 1): number {
  const tableId = applied(state, decideCreateTable(state, { operationId: name, name, span }));
  const owners = state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
  assert.equal(applied(state, decideCreated(state, tableId, owners)), true);
  return tableId;
}

const finishedBy = (serverId: number, over: object = {}) => ({
  recoveryId: 1,
  partitionId: 1,
  generation: 1,
  serverId,
  ok: true,
  error: null,
  ctimeSegmentId: 7,
  objects: 1,
  bytes: 1,
  readMs: 1,
  replayMs: 1,
  durableMs: 1,
  ...over,
});

test('the cluster options are fixed at the first start; the term grows with each', () => {
  const state = newState(2);
  assert.equal(state.cluster.term, 1);
  applied(state, decideStart(state, { replicas: 2, durability: 'fsync' }, 'other'));
  assert.equal(state.cluster.term, 2);
  assert.equal(state.cluster.clusterId, 'cluster-a');
  assert.throws(() => decideStart(state, { replicas: 3 }, 'x'), /replicas = 2.*replicas = 3/);
  assert.throws(() => decideStart(state, { allowSameHost: true }, 'x'), /false.*true/);
});

test('enlisting is idempotent by nonce, ids are never reused, replaced servers crash first', () => {
  const state = newState();
  const first = enlist(state, 1);
  const version = state.cluster.serverListVersion;
  assert.equal(enlist(state, 1), first);
  assert.equal(state.cluster.serverListVersion, version);

  const second = enlist(state, 2, { replacesId: first });
  assert.notEqual(second, first);
  assert.equal(state.servers.get(first)?.status, 'crashed');
  assert.equal(state.recoveryOf(first)?.partitions, null);
  assert.equal(
    code(() => decideEnlist(state, enlistRequest(1), 0)),
    'CALLER_NOT_IN_CLUSTER',
  );

  const third = enlist(state, 3, { address: '127.0.0.1:7002' });
  assert.equal(state.servers.get(second)?.status, 'crashed', 'its address was taken over');
  assert.deepEqual(
    state.upServers().map(({ serverId }) => serverId),
    [third],
  );

  const recoveryId = state.recoveryOf(first)?.recoveryId ?? 0;
  assert.equal(applied(state, decideRelease(state, recoveryId)), true);
  assert.equal(state.servers.has(first), false);
  assert.ok(enlist(state, 4) > third);
});

test('a server with data of another cluster is refused with what to do, nothing is written', () => {
  const state = newState();
  const request = enlistRequest(1, { clusterId: 'cluster-b', replacesId: 1 });
  assert.equal(
    code(() => decideEnlist(state, request, 0)),
    'WRONG_CLUSTER',
  );
  assert.throws(() => decideEnlist(state, request, 0), /new, empty cluster.*--restore FILE/s);
  assert.equal(state.servers.size, 0);
});

test('the recovery info of a master never goes back and is refused once it is crashed', () => {
  const state = cluster(1);
  const set = (segmentId: number, epoch: number): void =>
    applied(state, decideRecoveryInfo(state, { serverId: 1, segmentId, epoch }));
  set(5, 2);
  set(5, 1);
  set(4, 9);
  assert.equal(state.servers.get(1)?.minOpenSegmentId, 5);
  assert.equal(state.servers.get(1)?.minOpenEpoch, 2);
  applied(state, decideCrash(state, 1, 0, 0));
  assert.equal(
    code(() => set(6, 0)),
    'CALLER_NOT_IN_CLUSTER',
  );
});

test('table names', () => {
  for (const good of ['a', 'Ünïcode ☃', 'a b', 'x'.repeat(255)]) checkTableName(good);
  for (const bad of ['', 'a/b', 'a\\b', 'a\nb', ' a', 'a ', 'x'.repeat(256), '\u0085', 7, null]) {
    assert.equal(
      code(() => checkTableName(bad)),
      'INVALID_ARGUMENT',
      String(bad),
    );
  }
});

test('a table needs R backups besides its master on distinct hosts', () => {
  const state = cluster(2);
  const request = { operationId: 'o', name: 't' };
  assert.equal(
    code(() => decideCreateTable(state, request)),
    'NOT_ENOUGH_BACKUPS',
  );
  enlist(state, 3, { host: 'host-1' });
  assert.equal(
    code(() => decideCreateTable(state, request)),
    'NOT_ENOUGH_BACKUPS',
  );
  enlist(state, 4);
  assert.equal(
    code(() => decideCreateTable(state, request)),
    'OK',
  );
});

test('tablets cover all slots once, on different masters; create is idempotent by name', () => {
  const state = cluster(4);
  for (const span of [1, 3, 7, 256]) {
    const tableId = createTable(state, `t${span}`, span);
    const tablets = state.tables.get(tableId)?.tablets ?? [];
    let next = 0;
    for (const { startSlot, endSlot } of tablets) {
      assert.equal(startSlot, next);
      next = endSlot + 1;
    }
    assert.equal(next, 2 ** 32);
    const owners = new Set(tablets.map(({ serverId }) => serverId));
    assert.equal(owners.size, Math.min(span, 4));
    const again = decideCreateTable(state, { operationId: 'again', name: `t${span}` });
    assert.deepEqual(again, { writes: [], result: tableId });
  }
  const wide = { operationId: 'o', name: 'wide', span: 257 };
  assert.equal(
    code(() => decideCreateTable(state, wide)),
    'INVALID_ARGUMENT',
  );
});

test('a master that dies during creation is replaced; the table waits for the new one', () => {
  const state = cluster(4);
  const request = { operationId: 'o', name: 't', span: 4 };
  const tableId = applied(state, decideCreateTable(state, request));
  const owners = state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
  const dead = owners[2] ?? 0;
  applied(state, decideCrash(state, dead, 0, 0));
  assert.equal(applied(state, decideCreated(state, tableId, owners)), false);
  const moved = applied(state, decideReassignCreating(state, tableId));
  const now = moved?.tablets.map(({ serverId }) => serverId) ?? [];
  assert.ok(!now.includes(dead));
  assert.deepEqual([now[0], now[1], now[3]], [owners[0], owners[1], owners[3]]);
  const ids = moved?.tablets.map(({ recoveryId }) => recoveryId) ?? [];
  assert.deepEqual([ids[0], ids[1], ids[3]], [0, 0, 0]);
  assert.ok((ids[2] ?? 0) > 0, 'newer than what the dead one may say in its log');
  assert.equal(applied(state, decideCreated(state, tableId, now)), true);
});

test('a drop is exactly once by operation id; the table goes when all owners have let go', () => {
  const state = cluster(3);
  const tableId = createTable(state, 't', 3);
  const drop = { operationId: 'drop-1', name: 't' };
  assert.deepEqual(applied(state, decideDropTable(state, drop)), { existed: true, tableId });
  assert.equal(applied(state, decideDropTable(state, drop)).existed, true);
  const other = { operationId: 'drop-2', name: 't' };
  assert.equal(applied(state, decideDropTable(state, other)).existed, false);

  const seen = state.tables.get(tableId);
  assert.ok(seen);
  const owners = seen.tablets.map(({ serverId }) => serverId);
  applied(state, decideCrash(state, owners[0] ?? 0, 0, 0));
  const acknowledged = [null, owners[1] ?? null, owners[2] ?? null];
  assert.equal(applied(state, decideForgetTable(state, seen, acknowledged)), false);
  applied(state, decideRelease(state, state.recoveryOf(owners[0] ?? 0)?.recoveryId ?? 0));
  assert.equal(applied(state, decideForgetTable(state, seen, acknowledged)), true);
  assert.equal(state.tables.size, 0);
});

function recovering(): { state: CoordinatorState; tableId: number; crashed: number } {
  const state = cluster(4);
  const tableId = createTable(state, 't', 1);
  const crashed = state.tables.get(tableId)?.tablets[0]?.serverId ?? 0;
  applied(state, decideCrash(state, crashed, 0, 0));
  const half = { tableId, ctimeSegmentId: 0 };
  const partitions = [
    { partitionId: 1, tablets: [{ ...half, startSlot: 0, endSlot: 2 ** 31 - 1 }], bytes: 1 },
    { partitionId: 2, tablets: [{ ...half, startSlot: 2 ** 31, endSlot: 2 ** 32 - 1 }], bytes: 1 },
  ];
  assert.equal(applied(state, decidePlan(state, 1, partitions)), true);
  const assignments = [
    { partitionId: 1, afterGeneration: 0, serverId: 2 },
    { partitionId: 2, afterGeneration: 0, serverId: 3 },
  ];
  assert.equal(applied(state, decideAssign(state, 1, assignments)), true);
  return { state, tableId, crashed };
}

test('ownership moves by compare-and-set, once, and repeats are answered from the map', () => {
  const { state, tableId, crashed } = recovering();
  assert.equal(crashed, 1);
  const stale = finishedBy(2, { generation: 2 });
  assert.equal(applied(state, decideOwnership(state, stale)), false);
  assert.equal(applied(state, decideOwnership(state, finishedBy(3))), false, 'not its partition');
  assert.equal(applied(state, decideOwnership(state, finishedBy(2))), true);
  assert.equal(applied(state, decideOwnership(state, finishedBy(2))), true, 'repeated');
  const otherTime = finishedBy(2, { ctimeSegmentId: 8 });
  assert.equal(applied(state, decideOwnership(state, otherTime)), false);
  assert.deepEqual(
    state.tables.get(tableId)?.tablets.map((t) => [t.startSlot, t.endSlot, t.serverId]),
    [
      [0, 2 ** 31 - 1, 2],
      [2 ** 31, 2 ** 32 - 1, 1],
    ],
  );
  assert.equal(applied(state, decideRelease(state, 1)), false, 'half of it is still missing');
  const second = finishedBy(3, { partitionId: 2 });
  assert.equal(applied(state, decideOwnership(state, second)), true);
  assert.equal(applied(state, decideRelease(state, 1)), true);
  assert.equal(applied(state, decideOwnership(state, second)), true, 'repeated after the end');
  const reloaded = CoordinatorState.from(structuredClone(state.pairs()));
  assert.equal(decideOwnership(reloaded, second).result, true, 'repeated after a restart');
});

test('a recovery master that was declared dead commits nothing', () => {
  const { state } = recovering();
  applied(state, decideCrash(state, 2, 0, 0));
  assert.equal(applied(state, decideOwnership(state, finishedBy(2))), false);
});

test('a table dropped during its recovery is skipped, or dropped at its new owner', () => {
  const { state, tableId } = recovering();
  applied(state, decideDropTable(state, { operationId: 'd', name: 't' }));
  assert.equal(applied(state, decideOwnership(state, finishedBy(2))), true);
  assert.equal(state.tables.get(tableId)?.tablets[0]?.serverId, 2, 'the drop will reach it');
  state.apply([{ key: `tables/${tableId}`, value: undefined }]);
  const second = finishedBy(3, { partitionId: 2 });
  assert.equal(applied(state, decideOwnership(state, second)), false, 'nothing left to own');
  assert.equal(applied(state, decideRelease(state, 1)), true);
});

test('copysets come and go with the servers, in the same commits', () => {
  const state = newState(3);
  for (let n = 1; n <= 7; n++) enlist(state, n);
  assert.deepEqual(state.serverList().copysets, [], 'off by default');
  const { serverListVersion } = state.cluster;
  assert.equal(
    code(() => decideStart(state, { scatterWidth: 1 }, 'x')),
    'INVALID_ARGUMENT',
  );
  applied(state, decideStart(state, { scatterWidth: 4 }, 'x'));
  const started = state.serverList();
  assert.ok(started.copysets.length >= 4);
  assert.ok(started.version > serverListVersion, 'a list that is news');
  assert.deepEqual(CoordinatorState.from(state.pairs()).serverList(), started);
  applied(state, decideStart(state, {}, 'x'));
  assert.deepEqual(state.serverList().copysets, started.copysets, 'stored');
  const joined = enlist(state, 8);
  const { copysets } = state.serverList();
  for (const set of started.copysets) assert.ok(copysets.some((each) => `${each}` === `${set}`));
  assert.ok(copysets.flat().includes(joined));
  enlist(state, 9, { backup: false });
  assert.deepEqual(state.serverList().copysets, copysets, 'a master alone holds no replicas');
  applied(state, decideCrash(state, 2, 0, 0));
  assert.ok(!state.serverList().copysets.flat().includes(2));
  // A restart on the old address takes the place of its former incarnation.
  const again = enlist(state, 3, { nonce: 'again' });
  const now = state.serverList().copysets.flat();
  assert.ok(now.includes(again) && !now.includes(3));
  applied(state, decideStart(state, { scatterWidth: 0 }, 'x'));
  assert.deepEqual(state.serverList().copysets, []);
});

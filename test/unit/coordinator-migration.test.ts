/** The pure decisions about tablets that move and tablets that become one. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { decideCrash, decideEnlist } from '../../src/coordinator/server-list.js';
import { decideCreated, decideCreateTable, decideDropTable } from '../../src/coordinator/tables.js';
import { decideMerge, mergeableRuns } from '../../src/coordinator/tablet-merge.js';
import {
  decideAbortMigration,
  decideForgetMigration,
  decideMigrate,
  decideMigrated,
} from '../../src/coordinator/tablet-migration.js';
import { applied, enlistRequest } from './coordinator-decisions.js';

/** Four servers, and a table with a tablet on each of the first three and one more on the first. */
function scene(): { state: CoordinatorState; servers: number[]; tableId: number } {
  const state = new CoordinatorState();
  applied(state, decideStart(state, { replicas: 2 }, 'cluster'));
  const servers = [1, 2, 3].map(
    (n) => applied(state, decideEnlist(state, enlistRequest(n), 0)).serverId,
  );
  const create = { operationId: 'create', name: 'table', span: 4 };
  const tableId = applied(state, decideCreateTable(state, create));
  const owners = state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
  applied(state, decideCreated(state, tableId, owners));
  return { state, servers, tableId };
}

const finished = (migrationId: number, serverId: number, over: object = {}) => ({
  migrationId,
  serverId,
  ok: true,
  error: null,
  ctimeSegmentId: 9,
  objects: 1,
  bytes: 1,
  ...over,
});

const owners = (state: CoordinatorState, tableId: number): number[] =>
  state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];

test('a tablet moves by one commit, and repeats get the same answers', () => {
  const { state, servers, tableId } = scene();
  const [first = 0, second = 0, third = 0] = servers;
  const request = { name: 'table', slot: 5, targetServerId: second };
  const id = applied(state, decideMigrate(state, request, 0));
  assert.ok(id > 0);
  assert.equal(applied(state, decideMigrate(state, request, 0)), id);
  assert.throws(() => decideMigrate(state, { ...request, targetServerId: third }, 0), /already/);
  assert.throws(() => decideMigrate(state, { ...request, slot: 2 ** 32 - 1 }, 0), /already/);
  assert.equal(applied(state, decideMigrated(state, finished(id, third))), false);
  assert.deepEqual(owners(state, tableId), [first, second, third, first]);
  assert.equal(applied(state, decideMigrated(state, finished(id, second))), true);
  assert.deepEqual(owners(state, tableId), [second, second, third, first]);
  applied(state, decideAbortMigration(state, id, 'too late'));
  assert.equal(state.migrations.get(id)?.state, 'committed');
  assert.equal(applied(state, decideMigrated(state, finished(id, second))), true);
  applied(state, decideForgetMigration(state, id));
  assert.equal(state.migrations.size, 0);
  assert.equal(applied(state, decideMigrated(state, finished(id, second))), true);
  const other = finished(id, second, { ctimeSegmentId: 8 });
  assert.equal(applied(state, decideMigrated(state, other)), false);
  assert.equal(applied(state, decideMigrate(state, request, 0)), 0);
  const again = CoordinatorState.from(state.pairs());
  assert.deepEqual(owners(again, tableId), owners(state, tableId));
});

test('a failure, a crash of either side or a drop leaves the tablet where it was', () => {
  const disturb: ((state: CoordinatorState, servers: number[]) => object)[] = [
    () => ({ ok: false, error: 'no memory' }),
    (state, [source = 0]) => {
      applied(state, decideCrash(state, source, 0, 0));
      return {};
    },
    (state, [, target = 0]) => {
      applied(state, decideCrash(state, target, 0, 0));
      return {};
    },
    (state) => {
      applied(state, decideDropTable(state, { operationId: 'drop', name: 'table' }));
      return {};
    },
  ];
  for (const act of disturb) {
    const { state, servers, tableId } = scene();
    const before = owners(state, tableId);
    const [, target = 0] = servers;
    const request = { name: 'table', slot: 5, targetServerId: target };
    const id = applied(state, decideMigrate(state, request, 0));
    applied(state, decideForgetMigration(state, id));
    const over = act(state, servers);
    assert.equal(applied(state, decideMigrated(state, finished(id, target, over))), false);
    assert.equal(state.migrations.get(id)?.state, 'aborting');
    assert.equal(applied(state, decideMigrated(state, finished(id, target))), false);
    assert.deepEqual(owners(state, tableId), before);
    applied(state, decideForgetMigration(state, id));
    assert.equal(state.migrations.size, 0);
  }
});

test('neighbours on one server become one tablet, unless something has changed', () => {
  const { state, servers, tableId } = scene();
  const [first = 0, second = 0, third = 0] = servers;
  const table = () => state.tables.get(tableId) ?? assert.fail('there is a table');
  assert.deepEqual(mergeableRuns(state, table()), []);
  const id = applied(
    state,
    decideMigrate(state, { name: 'table', slot: 5, targetServerId: second }, 0),
  );
  applied(state, decideMigrated(state, finished(id, second)));
  const [run] = mergeableRuns(state, table());
  assert.ok(run !== undefined);
  assert.deepEqual([run.startSlot, run.endSlot, run.serverId], [0, 2 ** 31 - 1, second]);
  assert.equal(applied(state, decideMerge(state, run, 0)), false, 'it still migrates');
  applied(state, decideForgetMigration(state, id));
  const changed = { ...run, tablets: run.tablets.map((t) => ({ ...t, ctimeSegmentId: 77 })) };
  assert.equal(applied(state, decideMerge(state, changed, 0)), false);
  assert.equal(applied(state, decideMerge(state, run, 3)), true);
  assert.deepEqual(owners(state, tableId), [second, third, first]);
  assert.equal(table().tablets[0]?.ctimeSegmentId, 3);
  assert.equal(applied(state, decideMerge(state, run, 3)), false, 'only once');
  assert.deepEqual(mergeableRuns(state, table()), []);
});

/** The pure decisions about a tablet that becomes two, and the order in which they are made. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import type { CoordinatorContext } from '../../src/coordinator/context.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { decideCrash, decideEnlist } from '../../src/coordinator/server-list.js';
import { TableTurns } from '../../src/coordinator/table-turns.js';
import { decideCreated, decideCreateTable, decideDropTable } from '../../src/coordinator/tables.js';
import { decideMerge, mergeableRuns } from '../../src/coordinator/tablet-merge.js';
import { decideMigrate } from '../../src/coordinator/tablet-migration.js';
import { decideSplit, planSplit, TABLETS_MAX } from '../../src/coordinator/tablet-split.js';
import { splitTablet } from '../../src/coordinator/tablet-split-operation.js';
import { systemClock } from '../../src/rpc/clock.js';
import { RekindleError } from '../../src/rpc/errors.js';
import { applied, enlistRequest } from './coordinator-decisions.js';

const middle = 2 ** 31;

function scene(): { state: CoordinatorState; servers: number[]; tableId: number } {
  const state = new CoordinatorState();
  applied(state, decideStart(state, { replicas: 2 }, 'cluster'));
  const servers = [1, 2, 3].map(
    (n) => applied(state, decideEnlist(state, enlistRequest(n), 0)).serverId,
  );
  const create = { operationId: 'create', name: 'table', span: 1 };
  const tableId = applied(state, decideCreateTable(state, create));
  const owners = state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
  applied(state, decideCreated(state, tableId, owners));
  return { state, servers, tableId };
}

const request = (operationId: string, slot?: number) => ({
  operationId,
  name: 'table',
  ...(slot === undefined ? {} : { slot }),
});

function split(state: CoordinatorState, operationId: string, slot?: number): boolean {
  const cut = planSplit(state, request(operationId, slot));
  return cut !== null && applied(state, decideSplit(state, cut, operationId));
}

const starts = (state: CoordinatorState, tableId: number): number[] =>
  state.tables.get(tableId)?.tablets.map(({ startSlot }) => startSlot) ?? [];

test('the widest tablet is cut in its middle, or one at the slot that is named', () => {
  const { state, tableId } = scene();
  assert.ok(split(state, 'a'));
  assert.deepEqual(starts(state, tableId), [0, middle]);
  assert.ok(split(state, 'b', 7));
  assert.deepEqual(starts(state, tableId), [0, 7, middle]);
  assert.ok(split(state, 'c'));
  assert.deepEqual(starts(state, tableId), [0, 7, middle, middle + middle / 2]);
  const tablets = state.tables.get(tableId)?.tablets ?? [];
  assert.equal(tablets.at(-1)?.endSlot, 2 ** 32 - 1);
  for (const [i, { endSlot }] of tablets.entries()) {
    assert.equal(endSlot + 1, tablets[i + 1]?.startSlot ?? 2 ** 32);
  }
  const owned = new Set(tablets.map(({ serverId, ctimeSegmentId }) => [serverId, ctimeSegmentId]));
  assert.equal(new Set([...owned].map(String)).size, 1, 'nothing else about them changes');
});

test('an operation cuts once, also when the next leader is asked again', () => {
  const { state, tableId } = scene();
  assert.ok(split(state, 'a'));
  const next = CoordinatorState.from(state.pairs());
  assert.equal(planSplit(next, request('a')), null);
  assert.equal(planSplit(next, request('b', middle)), null, 'a boundary is there');
  // Somebody has merged them meanwhile: the repeat does not cut again.
  const table = next.tables.get(tableId);
  assert.ok(table !== undefined);
  const [run] = mergeableRuns(next, table);
  assert.ok(run !== undefined && applied(next, decideMerge(next, run, 0)));
  assert.equal(planSplit(next, request('a')), null);
  assert.deepEqual(starts(next, tableId), [0]);
});

test('what has changed since the owner was asked commits nothing', () => {
  const changes: ((state: CoordinatorState, servers: number[]) => void)[] = [
    (state, [first = 0]) => void applied(state, decideCrash(state, first, 0, 0)),
    (state, [, second = 0]) => {
      const move = { name: 'table', slot: 0, targetServerId: second };
      applied(state, decideMigrate(state, move, 0));
    },
    (state) => void split(state, 'other', 9),
    (state) => {
      applied(state, decideDropTable(state, { operationId: 'drop', name: 'table' }));
    },
  ];
  for (const change of changes) {
    const { state, servers } = scene();
    const cut = planSplit(state, request('a'));
    assert.ok(cut !== null);
    change(state, servers);
    assert.deepEqual(decideSplit(state, cut, 'a'), { writes: [], result: false });
  }
});

test('a tablet that is recovered or moves is not cut, nor one of too many', () => {
  const { state, servers, tableId } = scene();
  const [first = 0, second = 0] = servers;
  assert.throws(() => planSplit(state, { ...request('a'), name: 'none' }), /no table/);
  applied(state, decideMigrate(state, { name: 'table', slot: 0, targetServerId: second }, 0));
  assert.throws(() => planSplit(state, request('a')), { code: 'RETRY' });
  const crashed = scene();
  applied(crashed.state, decideCrash(crashed.state, first, 0, 0));
  assert.throws(() => planSplit(crashed.state, request('a')), { code: 'RETRY' });
  const many = scene();
  for (let slot = 1; slot < TABLETS_MAX; slot += 1) assert.ok(split(many.state, `${slot}`, slot));
  assert.equal(starts(many.state, tableId).length, TABLETS_MAX);
  assert.throws(() => planSplit(many.state, request('more')), { code: 'INVALID_ARGUMENT' });
});

/** The operation against an owner that answers as told; what happened, in order. */
async function operate(
  state: CoordinatorState,
  answers: (RekindleError | null)[],
  between: () => void = () => undefined,
): Promise<string[]> {
  const trace: string[] = [];
  const context = {
    state,
    log: () => undefined,
    clock: systemClock,
    faultPoint: async (name: string) => void trace.push(name),
    after: (_ms: number, action: () => void) => {
      setImmediate(action);
      return () => undefined;
    },
    call: async (_server: number, name: string) => {
      trace.push(name);
      const answer = answers.shift();
      between();
      if (answer instanceof RekindleError) throw answer;
      return {};
    },
    commit: async (decide: Parameters<CoordinatorContext['commit']>[0]) => {
      const decision = decide(state);
      if (decision.writes.length > 0) trace.push('commit');
      return applied(state, decision);
    },
  } as unknown as CoordinatorContext;
  await splitTablet(context, request('a'), performance.now() + 60_000);
  return trace;
}

test('the owner has two before the commit, and is asked until it has', async () => {
  const { state, tableId } = scene();
  const busy = new RekindleError('RETRY', 'it counts');
  const own = 'SPLIT_TABLET_OWNERSHIP';
  const trace = await operate(state, [busy, busy, null]);
  assert.deepEqual(trace, ['split-1', own, own, own, 'split-2', 'commit', 'split-3']);
  assert.deepEqual(await operate(state, []), ['split-1', 'split-3'], 'a repeat is answered');
  assert.deepEqual(starts(state, tableId), [0, middle]);
  const lost = scene();
  const failing = operate(lost.state, [new RekindleError('CONNECTION_LOST', 'gone')]);
  await assert.rejects(failing, { code: 'RETRY' });
  assert.deepEqual(starts(lost.state, lost.tableId), [0]);
});

test('an owner is asked again if a migration has begun meanwhile', async () => {
  const { state, servers, tableId } = scene();
  const [, second = 0] = servers;
  let begun = false;
  const other = { operationId: 'create', name: 'other', span: 3 };
  const otherId = applied(state, decideCreateTable(state, other));
  const owners = state.tables.get(otherId)?.tablets.map(({ serverId }) => serverId) ?? [];
  applied(state, decideCreated(state, otherId, owners));
  const trace = await operate(state, [null, null], () => {
    const mover = state.tables.get(otherId)?.tablets.find(({ serverId }) => serverId !== second);
    if (begun || mover === undefined) return;
    begun = true;
    const slot = mover.startSlot;
    applied(state, decideMigrate(state, { name: 'other', slot, targetServerId: second }, 0));
  });
  assert.equal(trace.filter((each) => each === 'SPLIT_TABLET_OWNERSHIP').length, 2);
  assert.deepEqual(starts(state, tableId), [0, middle]);
});

test('changes of one table follow one another, whatever comes of them', async () => {
  const turns = new TableTurns();
  const order: string[] = [];
  const act =
    (name: string, fails = false) =>
    async (): Promise<string> => {
      order.push(`${name} begins`);
      await new Promise(setImmediate);
      order.push(`${name} ends`);
      if (fails) throw new Error(name);
      return name;
    };
  const results = await Promise.allSettled([
    turns.run('t', act('a', true)),
    turns.run('t', act('b')),
    turns.run('u', act('c')),
  ]);
  assert.deepEqual(
    results.map(({ status }) => status),
    ['rejected', 'fulfilled', 'fulfilled'],
  );
  assert.ok(order.indexOf('a ends') < order.indexOf('b begins'));
  assert.ok(order.indexOf('c begins') < order.indexOf('a ends'));
});

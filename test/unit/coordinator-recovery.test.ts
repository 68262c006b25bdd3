/**
 * The recovery of a master without a cluster: the machine under scripted failures and random ones.
 * A random run prints its seed; REKINDLE_SEED=n repeats it.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Recovery, type RecoveryEffect } from '../../src/coordinator/recovery.js';
import { decideCrash } from '../../src/coordinator/server-list.js';
import { decideDropTable } from '../../src/coordinator/tables.js';
import { report } from './log-reports.js';
import { MIB, NONE, Scene } from './recovery-scene.js';

test('from the crash to the release', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  assert.deepEqual(
    scene.pending.map((effect) => effect.kind),
    ['fence', 'fence', 'fence', 'fence'],
  );
  const recovers = scene.settle();
  assert.equal(recovers.length, 4, 'one tablet of 32 MiB on four masters');
  assert.equal(new Set(recovers.map(({ serverId }) => serverId)).size, 4);
  for (const { request } of recovers) {
    assert.deepEqual(
      request.segments.map(({ segmentId }) => segmentId),
      [1, 2],
    );
    assert.equal(request.generation, 1);
  }
  for (const effect of recovers) assert.equal(scene.finish(effect), true);
  scene.settle();
  assert.ok(scene.released);
  assert.equal(scene.state.servers.has(1), false);
  assert.deepEqual(scene.state.tabletsOf(1), []);
});

test('a server without tablets is released without asking anybody', () => {
  const scene = new Scene();
  const spare = scene.join();
  scene.apply(decideCrash(scene.state, spare, 0, 0));
  const record = scene.state.recoveryOf(spare);
  assert.ok(record);
  const view = {
    term: 1,
    record,
    upServers: scene.state.upServers(),
    tablets: [],
    minimumOpen: NONE,
    busy: new Map(),
    holders: () => [],
  };
  assert.deepEqual(new Recovery(record).step({ kind: 'look' }, view, 0), [{ kind: 'release' }]);
});

test('an incomplete log waits, says for what, and goes on when the backup comes back', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const lacking = report([[2, 100, 'open']], [2, [1, 2]]);
  assert.deepEqual(
    scene.settle(() => lacking),
    [],
  );
  assert.match(scene.machine.waitingFor ?? '', /missing segments: 1/);
  const back = scene.join();
  scene.step({ kind: 'look' });
  const recovers = scene.settle((id) => (id === back ? report([[1, 8 * MIB]]) : lacking));
  assert.ok(recovers.length > 0);
  assert.deepEqual(recovers[0]?.request.segments[0]?.backups, [back]);
  assert.equal(scene.machine.waitingFor, null);
});

test('a slow backup holds up a complete log for a while only, a dead one not at all', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const [slow, ...others] = scene.take('fence');
  for (const effect of others) scene.perform(effect);
  assert.match(scene.machine.waitingFor ?? '', /1 more backups/);
  assert.equal(scene.pending.length, 0);
  scene.nowMs = 2_000;
  scene.step({ kind: 'look' });
  assert.equal(scene.pending[0]?.kind, 'commit-plan');

  const other = new Scene();
  other.step({ kind: 'look' });
  const [dead, ...rest] = other.take('fence');
  for (const effect of rest) other.perform(effect);
  assert.ok(dead?.kind === 'fence' && slow?.kind === 'fence');
  other.kill(dead.serverId);
  assert.equal(other.pending[0]?.kind, 'commit-plan');
});

test('a dead recovery master costs its partition only; its late report is refused', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const [first, second, ...rest] = scene.settle();
  assert.ok(first && second);
  scene.kill(first.serverId);
  const again = scene.settle();
  assert.equal(again.length, 1);
  assert.equal(again[0]?.request.partition.partitionId, first.request.partition.partitionId);
  assert.equal(again[0]?.request.generation, 2);
  assert.notEqual(again[0]?.serverId, first.serverId);
  assert.equal(scene.finish(first), false);
  for (const effect of [second, ...rest, ...again]) assert.equal(scene.finish(effect), true);
  scene.settle();
  assert.ok(scene.released);
});

test('a failed partition is listed anew and goes to another master after a pause', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const recovers = scene.settle();
  const failed = recovers[0];
  assert.ok(failed);
  const { partitionId } = failed.request.partition;
  const event = { kind: 'partition-failed' as const, partitionId, generation: 1, error: 'disk' };
  scene.step(event);
  scene.step(event);
  assert.deepEqual(scene.settle(), []);
  assert.equal(scene.machine.partitionError(partitionId), 'disk');
  scene.nowMs += 100;
  scene.step({ kind: 'look' });
  const [again] = scene.settle();
  assert.equal(again?.request.generation, 2);
  assert.notEqual(again?.serverId, failed.serverId);
  assert.equal(scene.finish(failed), false);
});

test('a master without memory fails cleanly, and each other one gets its turn', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  scene.tellLoads((serverId) => (serverId === 5 ? 500 * MIB : 2 * MIB));
  const recovers = scene.settle();
  const masters = recovers.map(({ serverId }) => serverId);
  assert.deepEqual(masters, [5, 5, 5, 5], 'only one has the memory');
  const [first] = recovers;
  assert.ok(first);
  const tried = [5];
  let { generation } = first.request;
  const { partitionId } = first.request.partition;
  for (let attempt = 0; attempt < 4; attempt += 1) {
    const error = 'OUT_OF_MEMORY: full';
    scene.step({ kind: 'partition-failed', partitionId, generation, error, outOfMemory: true });
    scene.tellLoads(() => 500 * MIB);
    scene.nowMs += 6_000;
    scene.step({ kind: 'look' });
    const next = scene
      .settle()
      .find((effect) => effect.request.partition.partitionId === partitionId);
    assert.ok(next);
    tried.push(next.serverId);
    generation = next.request.generation;
  }
  assert.deepEqual(tried.slice(0, 4).sort(), [2, 3, 4, 5]);
  assert.equal(tried.length, 5, 'and then again from the beginning');
});

test('replicas that nobody can read are missing, until another one comes', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const [first] = scene.settle();
  assert.ok(first);
  const { partition, generation } = first.request;
  const failed = { partitionId: partition.partitionId, generation, error: 'CHECKSUM_MISMATCH' };
  const unreadable = { segmentId: 1, servers: [2, 3, 4, 5] };
  scene.step({ kind: 'partition-failed', ...failed, unreadable });
  scene.nowMs = 200;
  scene.step({ kind: 'look' });
  assert.deepEqual(scene.settle(), []);
  assert.deepEqual(scene.machine.gap?.missing, [1]);
  const back = scene.join();
  scene.step({ kind: 'look' });
  const [again] = scene.settle();
  assert.deepEqual(again?.request.segments[0]?.backups, [back]);
});

test('a dropped table is not waited for, and its recovery masters are told so', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const [first, ...others] = scene.settle();
  assert.ok(first);
  assert.equal(scene.finish(first), true);
  // From now on a segment is missing, and its last partitions could not start over.
  const lacking = report([[2, 100, 'open']], [2, [1, 2]]);
  const { partition, generation } = others[0]?.request ?? assert.fail('several partitions');
  const failed = { partitionId: partition.partitionId, generation, error: 'lost' };
  scene.step({ kind: 'partition-failed', ...failed });
  scene.settle(() => lacking);
  assert.match(scene.machine.waitingFor ?? '', /missing segments: 1/);
  scene.apply(decideDropTable(scene.state, { operationId: 'd', name: 't' }));
  scene.step({ kind: 'look' });
  scene.settle(() => lacking);
  assert.ok(scene.released);
  for (const late of others) assert.equal(scene.finish(late), false);
});

test('a lost RECOVER is repeated with the same generation', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const [first] = scene.settle();
  assert.ok(first);
  const { partitionId } = first.request.partition;
  scene.step({ kind: 'recover-lost', partitionId, generation: 1 });
  scene.nowMs += 500;
  scene.step({ kind: 'look' });
  const [repeat, ...others] = scene.settle();
  assert.deepEqual(others, []);
  assert.deepEqual(repeat?.request, first.request);
});

test('a restarted coordinator fences again and goes on with what is not done', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const [done, late, ...others] = scene.settle();
  assert.ok(done && late);
  assert.equal(scene.finish(done), true);
  scene.restart();
  const kinds = scene.pending.map((effect) => effect.kind);
  assert.ok(kinds.every((kind) => kind === 'fence'));
  assert.equal(scene.finish(late), true, 'finished before it was given to another');
  const again = scene.settle();
  assert.equal(again.length, others.length);
  assert.ok(again.every(({ request }) => request.generation === 2));
  for (const effect of others) assert.equal(scene.finish(effect), false);
  for (const effect of again) assert.equal(scene.finish(effect), true);
  scene.settle();
  assert.ok(scene.released);
});

function randomFrom(seed: number): () => number {
  let at = seed >>> 0;
  return () => {
    at = (at + 0x6d2b79f5) >>> 0;
    let t = Math.imul(at ^ (at >>> 15), at | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Each slot of table 1 has one owner, and its owner is one that a commit confirmed. */
function checkOwnership(scene: Scene, confirmed: Map<number, number>): void {
  const tablets = scene.state.tables.get(1)?.tablets ?? [];
  let next = 0;
  for (const tablet of tablets) {
    assert.equal(tablet.startSlot, next);
    next = tablet.endSlot + 1;
    if (tablet.recoveryId !== 1) continue;
    assert.equal(confirmed.get(tablet.partitionId), tablet.serverId);
  }
  assert.equal(next, 2 ** 32);
}

function randomRun(seed: number): void {
  const random = randomFrom(seed);
  const below = (n: number): number => Math.floor(random() * n);
  const scene = new Scene(4);
  const confirmed = new Map<number, number>();
  const atMasters: Extract<RecoveryEffect, { kind: 'recover' }>[] = [];
  let trouble = 12;
  scene.step({ kind: 'look' });
  for (let turn = 0; turn < 3_000 && !scene.released; turn++) {
    const dice = random();
    if (dice < 0.5 && scene.pending.length > 0) {
      const [effect] = scene.pending.splice(below(scene.pending.length), 1);
      assert.ok(effect);
      const target = 'serverId' in effect ? effect.serverId : null;
      if (target !== null && !scene.isUp(target)) continue;
      if (effect.kind === 'recover') atMasters.push(effect);
      if (effect.kind === 'fence' && trouble > 0 && random() < 0.2) {
        trouble--;
        scene.step({ kind: 'fence-failed', serverId: effect.serverId, error: 'x' });
      } else scene.perform(effect);
    } else if (dice < 0.75 && atMasters.length > 0) {
      const effect = atMasters[below(atMasters.length)];
      assert.ok(effect);
      const { partition, generation } = effect.request;
      const { partitionId } = partition;
      if (trouble > 0 && random() < 0.2) {
        trouble--;
        scene.step({ kind: 'partition-failed', partitionId, generation, error: 'x' });
      } else if (scene.isUp(effect.serverId) && scene.finish(effect)) {
        const owner = confirmed.get(partitionId) ?? effect.serverId;
        assert.equal(owner, effect.serverId, 'a partition is given away once');
        confirmed.set(partitionId, owner);
      }
    } else if (dice < 0.8 && trouble > 0) {
      trouble--;
      const up = scene.state.upServers();
      if (random() < 0.4) scene.restart();
      else if (up.length > 2 && random() < 0.5) scene.kill(up[below(up.length)]?.serverId ?? 0);
      else {
        scene.join();
        scene.step({ kind: 'look' });
      }
    } else {
      scene.nowMs += below(1_000);
      scene.step({ kind: 'look' });
    }
    checkOwnership(scene, confirmed);
  }
  assert.ok(scene.released, 'the recovery comes to an end');
  assert.deepEqual(scene.state.tabletsOf(1), []);
}

test('random failures of everybody, in any order', (t) => {
  const given = process.env.REKINDLE_SEED;
  const first = given === undefined ? Date.now() % 1_000_000 : Number(given);
  const runs = given === undefined ? 300 : 1;
  for (let seed = first; seed < first + runs; seed++) {
    try {
      randomRun(seed);
    } catch (error) {
      const file = 'build/test/unit/coordinator-recovery.test.js';
      t.diagnostic(`seed ${seed}: REKINDLE_SEED=${seed} node --test ${file}`);
      throw error;
    }
  }
});

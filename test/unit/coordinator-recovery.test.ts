/**
 * The recovery of a master without a cluster: finding the log, planning, and the machine under
 * scripted failures and random ones. A random run prints its seed; REKINDLE_SEED=n repeats it.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import { CoordinatorState, type Decision } from '../../src/coordinator/coordinator-state.js';
import { type BackupReport, discoverLog } from '../../src/coordinator/log-discovery.js';
import {
  Recovery,
  type RecoveryEffect,
  type RecoveryEvent,
} from '../../src/coordinator/recovery.js';
import { planPartitions } from '../../src/coordinator/recovery-plan.js';
import { decideAssign, decidePlan } from '../../src/coordinator/recovery-record.js';
import { decideCrash, decideEnlist, decideRelease } from '../../src/coordinator/server-list.js';
import { decideCreated, decideCreateTable, decideOwnership } from '../../src/coordinator/tables.js';

const MIB = 1024 * 1024;
const NONE = { segmentId: 0, epoch: 0 };

type ReplicaShape = [segmentId: number, length: number, open?: 'open', epoch?: number];

/** `digest` names the segment whose open replica lists the given ids. */
function report(replicas: ReplicaShape[], digest?: [number, number[], number?]): BackupReport {
  return {
    leaseRemainderMs: 0,
    replicas: replicas.map(([segmentId, length, open, epoch = 0]) => ({
      segmentId,
      length,
      epoch,
      closed: open === undefined,
      primary: false,
    })),
    digests:
      digest === undefined
        ? []
        : [{ segmentId: digest[0], segmentIds: digest[1], epoch: digest[2] ?? 0, tabletStats: [] }],
  };
}

function discover(reports: BackupReport[], minimumOpen = NONE) {
  return discoverLog(new Map(reports.map((r, i) => [i + 1, r])), minimumOpen);
}

test('the head is the lowest open digest; what is above it does not count', () => {
  const found = discover([
    report(
      [
        [1, 8],
        [2, 5, 'open'],
      ],
      [2, [1, 2]],
    ),
    report(
      [
        [1, 8],
        [3, 1, 'open'],
      ],
      [3, [1, 2, 3]],
    ),
  ]);
  assert.ok(found.complete);
  assert.equal(found.log.headSegmentId, 2);
  assert.deepEqual(
    found.log.segments.map(({ segmentId, backups }) => [segmentId, backups]),
    [
      [1, [1, 2]],
      [2, [1]],
    ],
  );
});

test('a segment that a backup has closed is not the head, whatever its open replicas say', () => {
  const found = discover([
    report(
      [
        [2, 5, 'open'],
        [3, 1, 'open'],
      ],
      [2, [1, 2]],
    ),
    report(
      [
        [1, 8],
        [2, 8],
        [3, 4, 'open'],
      ],
      [3, [1, 2, 3]],
    ),
  ]);
  assert.ok(found.complete);
  assert.equal(found.log.headSegmentId, 3);
  assert.deepEqual(found.log.segments[1]?.backups, [2], 'the closed replica only');
  const onlyOld = discover([report([[2, 5, 'open']], [2, [2]]), report([[2, 8]])]);
  assert.ok(!onlyOld.complete, 'the next head must turn up first');
});

test('an open replica below the minimum proves nothing, its digest neither', () => {
  const reports = [
    report(
      [
        [1, 8],
        [2, 5, 'open', 0],
      ],
      [2, [1, 2], 0],
    ),
  ];
  assert.ok(discover(reports).complete);
  assert.ok(discover(reports, { segmentId: 2, epoch: 0 }).complete);
  assert.ok(!discover(reports, { segmentId: 2, epoch: 1 }).complete);
  assert.ok(!discover(reports, { segmentId: 3, epoch: 0 }).complete);
});

test('of open replicas those with the highest (epoch, length) are used', () => {
  const found = discover([
    report([[1, 9, 'open', 0]], [1, [1]]),
    report([[1, 5, 'open', 1]], [1, [1], 1]),
    report([[1, 6, 'open', 1]], [1, [1], 1]),
    report([[1, 6, 'open', 1]], [1, [1], 1]),
  ]);
  assert.ok(found.complete);
  assert.deepEqual(found.log.segments, [{ segmentId: 1, length: 6, backups: [3, 4] }]);
});

test('missing segments are named, as is a missing head', () => {
  const found = discover([report([[4, 1, 'open']], [4, [1, 2, 3, 4]]), report([[2, 8]])]);
  assert.ok(!found.complete);
  assert.match(found.waitingFor, /2 missing segments: 1, 3/);
  const headless = discover([report([[1, 8]])]);
  assert.ok(!headless.complete);
  assert.match(headless.waitingFor, /head of the log/);
});

test('a plan holds every slot once and spreads large tablets over all masters', () => {
  const all = { startSlot: 0, endSlot: 2 ** 32 - 1, ctimeSegmentId: 3 };
  const large = { tableId: 1, ...all };
  const small = { tableId: 2, ...all };
  const partitions = planPartitions(
    [large, small],
    [{ tableId: 1, startSlot: 0, endSlot: 2 ** 32 - 1, bytes: 400 * MIB }],
    4,
  );
  assert.equal(partitions.length, 4);
  const pieces = partitions.flatMap(({ tablets }) => tablets);
  const ranges = pieces.filter((t) => t.tableId === 1).sort((a, b) => a.startSlot - b.startSlot);
  assert.equal(ranges.length, 4);
  let next = 0;
  for (const { startSlot, endSlot, ctimeSegmentId } of ranges) {
    assert.equal(startSlot, next);
    assert.equal(ctimeSegmentId, 3);
    next = endSlot + 1;
  }
  assert.equal(next, 2 ** 32);
  assert.deepEqual(
    pieces.filter((t) => t.tableId === 2),
    [small],
  );

  const tiny = planPartitions([large], [{ ...large, bytes: 7 * MIB }], 4);
  assert.deepEqual(tiny, [{ partitionId: 1, tablets: [large] }], 'not worth a cut');
  assert.equal(planPartitions([large, small], [], 4).length, 2, 'no statistics');
});

/**
 * A cluster of five servers, one of which has crashed, with backups and masters that answer when
 * the test says so. Effects wait in `pending`; commits go through the real decisions.
 */
class Scene {
  readonly state = new CoordinatorState();
  readonly pending: Exclude<RecoveryEffect, { kind: 'wake' }>[] = [];
  machine: Recovery;
  nowMs = 0;
  released = false;
  /** Asked for by the present machine. */
  private releases = 0;
  private servers = 0;

  constructor(readonly owners = 4) {
    this.apply(decideStart(this.state, { replicas: 2 }, 'c'));
    for (let n = 0; n < owners + 1; n++) this.join();
    const create = { operationId: 'o', name: 't', span: 2 };
    const tableId = this.apply(decideCreateTable(this.state, create));
    const taken = this.state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
    this.apply(decideCreated(this.state, tableId, taken));
    this.apply(decideCrash(this.state, 1, 0, 0));
    this.machine = this.newMachine();
  }

  apply<T>({ writes, result }: Decision<T>): T {
    this.state.apply(structuredClone(writes));
    return result;
  }

  join(): number {
    const n = ++this.servers;
    const request = {
      nonce: `n${n}`,
      replacesId: null,
      clusterId: null,
      address: `h:${n}`,
      host: `host-${n}`,
      rack: null,
      master: true,
      backup: true,
      memoryBytes: 0,
    };
    return this.apply(decideEnlist(this.state, request, this.nowMs)).serverId;
  }

  newMachine(): Recovery {
    const record = this.state.recoveryOf(1);
    assert.ok(record);
    return new Recovery(record);
  }

  /** As after a restart: nothing is left but the committed state. */
  restart(): void {
    this.pending.length = 0;
    this.releases = 0;
    this.machine = this.newMachine();
    this.step({ kind: 'look' });
  }

  step(event: RecoveryEvent): void {
    const record = this.state.recoveryOf(1);
    if (record === undefined) return;
    const tablets = this.state.tabletsOf(1);
    const view = {
      term: 1,
      record,
      upServers: this.state.upServers(),
      tablets,
      minimumOpen: NONE,
    };
    for (const effect of this.machine.step(event, view, this.nowMs)) {
      if (effect.kind === 'release') assert.equal(++this.releases, 1, 'released once');
      if (effect.kind !== 'wake') this.pending.push(effect);
    }
  }

  kill(serverId: number): void {
    this.apply(decideCrash(this.state, serverId, this.nowMs, this.nowMs));
    this.step({ kind: 'look' });
  }

  take(kind: RecoveryEffect['kind']): RecoveryEffect[] {
    const taken = this.pending.filter((effect) => effect.kind === kind);
    for (const effect of taken) this.pending.splice(this.pending.indexOf(effect as never), 1);
    return taken;
  }

  isUp(serverId: number): boolean {
    return this.state.isUp(serverId);
  }

  /** Performs one effect; every backup holds the whole log unless `reportOf` says otherwise. */
  perform(effect: RecoveryEffect, reportOf = (_: number) => WHOLE_LOG): void {
    if (effect.kind === 'fence') {
      const { serverId } = effect;
      this.step({ kind: 'fenced', serverId, report: reportOf(serverId) });
    } else if (effect.kind === 'start-partitions') {
      const { serverId, round } = effect;
      this.step({ kind: 'partitions-started', serverId, round });
    } else if (effect.kind === 'commit-plan') {
      this.apply(decidePlan(this.state, 1, effect.partitions));
      this.step({ kind: 'committed' });
    } else if (effect.kind === 'commit-assignments') {
      this.apply(decideAssign(this.state, 1, effect.assignments));
      this.step({ kind: 'committed' });
    } else if (effect.kind === 'recover') {
      const { partition, generation } = effect.request;
      const { partitionId } = partition;
      this.step({ kind: 'recover-sent', partitionId, generation });
    } else if (effect.kind === 'release') {
      this.released = this.apply(decideRelease(this.state, 1));
      assert.ok(this.released, 'a release is only asked for when it can be');
    }
  }

  /** Performs effects until only RECOVERs are left; returns those. */
  settle(reportOf = (_: number) => WHOLE_LOG): Extract<RecoveryEffect, { kind: 'recover' }>[] {
    const recovers: Extract<RecoveryEffect, { kind: 'recover' }>[] = [];
    for (let turn = 0; turn < 1_000; turn++) {
      const effect = this.pending.shift();
      if (effect === undefined) return recovers;
      if (effect.kind === 'recover') recovers.push(effect);
      this.perform(effect, reportOf);
    }
    assert.fail('the machine does not come to rest');
  }

  finish(effect: Extract<RecoveryEffect, { kind: 'recover' }>): boolean {
    const { partition, generation, recoveryId } = effect.request;
    const request = {
      recoveryId,
      partitionId: partition.partitionId,
      generation,
      serverId: effect.serverId,
      ok: true,
      error: null,
      ctimeSegmentId: 5,
      objects: 1,
      bytes: 1,
      readMs: 0,
      replayMs: 0,
      durableMs: 0,
    };
    const committed = this.apply(decideOwnership(this.state, request));
    this.step({ kind: 'look' });
    return committed;
  }
}

const WHOLE_LOG = report(
  [
    [1, 8 * MIB],
    [2, 100, 'open'],
  ],
  [2, [1, 2]],
);
WHOLE_LOG.digests[0]?.tabletStats.push({
  tableId: 1,
  startSlot: 0,
  endSlot: 2 ** 32 - 1,
  bytes: 64 * MIB,
  records: 1,
});

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

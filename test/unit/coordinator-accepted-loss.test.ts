/** Giving up a part of a log: only what is missing, once, kept for ever; and who may have it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decideAcceptLoss } from '../../src/coordinator/accepted-loss.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { holdersOf } from '../../src/coordinator/log-gap.js';
import { decideCrash, decideEnlist } from '../../src/coordinator/server-list.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { RequestOf } from '../../src/rpc/table.js';
import { report } from './log-reports.js';
import { Scene } from './recovery-scene.js';

const LACKING = report([[4, 100, 'doubtful']], [4, [1, 2, 4]]);

function waiting(): Scene {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  assert.deepEqual(
    scene.settle(() => LACKING),
    [],
  );
  return scene;
}

function request(
  segmentIds: number[],
  more: Partial<RequestOf<'ACCEPT_LOSS'>> = {},
): RequestOf<'ACCEPT_LOSS'> {
  return { serverId: 1, head: false, segmentIds, operator: 'ada', reason: 'fire', ...more };
}

function accept(scene: Scene, asked: RequestOf<'ACCEPT_LOSS'>, nowMs = 7) {
  const { gap, unanswered } = scene.machine;
  return scene.apply(decideAcceptLoss(scene.state, asked, { gap, unanswered }, nowMs));
}

const refused = (code: string, text: RegExp) => (error: unknown) => {
  assert.ok(error instanceof RekindleError);
  assert.match(error.message, text);
  return error.code === code;
};

test('a recovery goes on without what was given up, and the record says what that was', () => {
  const scene = waiting();
  const loss = accept(scene, request([4, 1, 2]));
  const MIB8 = 8 * 1024 * 1024;
  assert.deepEqual(loss, {
    lossId: 1,
    recoveryId: 1,
    serverId: 1,
    host: 'host-1',
    address: 'h:1',
    acceptedAtMs: 7,
    operator: 'ada',
    reason: 'fire',
    headLost: false,
    segments: [
      { segmentId: 1, fromByte: 0 },
      { segmentId: 2, fromByte: 0 },
      { segmentId: 4, fromByte: 100 },
    ],
    bytesMax: 3 * MIB8 - 100,
    tablets: [{ tableId: 1, startSlot: 0, endSlot: 2 ** 31 - 1, table: 't' }],
  });
  scene.step({ kind: 'look' });
  const recovers = scene.settle(() => LACKING);
  assert.ok(recovers.length > 0);
  assert.deepEqual(
    recovers[0]?.request.segments.map(({ segmentId }) => segmentId),
    [4],
  );
  for (const effect of recovers) assert.ok(scene.finish(effect));
  scene.settle(() => LACKING);
  assert.ok(scene.released);
  const reloaded = CoordinatorState.from(structuredClone(scene.state.pairs()));
  assert.deepEqual(reloaded.losses.get(1), loss, 'kept after the end');
});

test('a repeat changes nothing, a part may come first, a restart knows it', () => {
  const scene = waiting();
  const first = accept(scene, request([1]));
  const { gap, unanswered } = scene.machine;
  const again = decideAcceptLoss(scene.state, request([1]), { gap, unanswered }, 99);
  assert.deepEqual(again, { writes: [], result: first });
  scene.step({ kind: 'look' });
  assert.deepEqual(scene.machine.gap?.missing, [2]);
  scene.restart();
  scene.settle(() => LACKING);
  assert.deepEqual(scene.machine.gap?.missing, [2]);
  const second = accept(scene, request([1, 2]));
  assert.deepEqual(second.segments, [{ segmentId: 2, fromByte: 0 }]);
  assert.equal(second.lossId, 2);
  assert.deepEqual(scene.state.recoveryOf(1)?.lost, { head: false, segmentIds: [1, 2] });
});

test('nothing that a backup has, or may have, is given up', () => {
  const scene = waiting();
  const before = structuredClone(scene.state.pairs());
  const isHeld = refused(
    'INVALID_ARGUMENT',
    /does not wait for: the head, 3; nothing was given up/,
  );
  assert.throws(() => accept(scene, request([1, 3], { head: true })), isHeld);
  assert.throws(() => accept(scene, request([])), refused('INVALID_ARGUMENT', /name the segments/));
  const up = request([1], { serverId: 2 });
  assert.throws(() => accept(scene, up), refused('RECOVERY_UNKNOWN', /server 2 is up/));
  const gone = request([1], { serverId: 77 });
  assert.throws(() => accept(scene, gone), refused('RECOVERY_UNKNOWN', /not being recovered/));
  const late = scene.join();
  scene.step({ kind: 'look' });
  const unsaid = refused('RETRY', new RegExp(`servers ${late} have not said`));
  assert.throws(() => accept(scene, request([1])), unsaid);
  for (const effect of scene.take('fence')) scene.perform(effect, () => report([[1, 8]]));
  const isBack = refused('INVALID_ARGUMENT', /does not wait for: 1;/);
  assert.throws(() => accept(scene, request([1])), isBack);
  const { servers, cluster } = CoordinatorState.from(before);
  assert.equal(scene.state.losses.size, 0);
  assert.equal(scene.state.servers.size, servers.size + 1, 'the late one has joined, nothing else');
  assert.equal(scene.state.cluster.nextRecoveryId, cluster.nextRecoveryId);
});

test('a lost head gives up the list of segments: what backups have is recovered', () => {
  const scene = new Scene();
  scene.step({ kind: 'look' });
  const rest = report([[1, 50]]);
  scene.settle(() => rest);
  assert.equal(scene.machine.gap?.headMissing, true);
  const loss = accept(scene, request([], { head: true }));
  assert.equal(loss.headLost, true);
  assert.equal(loss.bytesMax, null);
  scene.step({ kind: 'look' });
  const [recover] = scene.settle(() => rest);
  assert.deepEqual(
    recover?.request.segments.map(({ segmentId }) => segmentId),
    [1],
  );
});

test('who may have a missing segment: the silent, the gone, those back without a disk', () => {
  const scene = waiting();
  scene.kill(2);
  scene.kill(3);
  scene.kill(4);
  const enlist = (n: number, replacesId: number | null): number => {
    const request = {
      nonce: `again-${n}`,
      replacesId,
      clusterId: null,
      address: `h:${n}`,
      host: `host-${n}`,
      rack: null,
      master: true,
      backup: true,
      memoryBytes: 0,
    };
    return scene.apply(decideEnlist(scene.state, request, 0)).serverId;
  };
  enlist(3, 3);
  const empty = enlist(4, null);
  const holders = holdersOf(scene.state, 1, new Set([5, empty]));
  assert.deepEqual(
    holders.map(({ serverId, state }) => [serverId, state]),
    [
      [2, 'gone'],
      [4, 'emptied'],
      [6, 'silent'],
    ],
    'the disk of 3 is back under id 6',
  );
  // A master that joined after they had gone never wrote to them.
  const young = scene.join();
  scene.apply(decideCrash(scene.state, young, 0, 0));
  const all = new Set(scene.state.upServers().map(({ serverId }) => serverId));
  assert.deepEqual(holdersOf(scene.state, young, all), []);
});

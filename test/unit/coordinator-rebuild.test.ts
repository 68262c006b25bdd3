/**
 * A state that is rebuilt from disks: which head counts, who owns what, what is a doubt, and that
 * the state is one that can be restored.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CoordinatorState, type TableRecord } from '../../src/coordinator/coordinator-state.js';
import { type DiskEvidence, planRebuild } from '../../src/coordinator/rebuild.js';
import { type FoundReplica, findLog } from '../../src/coordinator/rebuild-log.js';
import { type MasterClaim, rebuildTables } from '../../src/coordinator/rebuild-tables.js';
import { decideEnlist } from '../../src/coordinator/server-list.js';
import { restoreState } from '../../src/coordinator/state-copy.js';
import type { FolderReport } from '../../src/ops/inspector/data-folder.js';
import { clusterNote, type TabletClaim, tabletNote } from '../../src/ops/log-notes.js';
import { applied, enlistRequest } from './coordinator-decisions.js';

const last = 2 ** 32 - 1;
const half = 2 ** 31;

function replica(over: Partial<FoundReplica>): FoundReplica {
  const place = { serverId: 1, segmentId: 1, epoch: 1, length: 100, closed: false };
  return { ...place, digest: null, notes: null, ...over };
}

function claim(over: Partial<MasterClaim>): MasterClaim {
  const range = { tableId: 1, startSlot: 0, endSlot: last };
  const ownership = { ownershipId: 0, generation: 0, after: null };
  return { ...range, name: 'notes', ctimeSegmentId: 0, ...ownership, serverId: 1, ...over };
}

function notesOf(claims: readonly TabletClaim[], servers: number[] = [1, 2, 3], version = 5) {
  const settings = { replicas: 2, durability: 'fsync', allowSameHost: false } as const;
  const cluster = { clusterId: 'c', term: 7, serverListVersion: version, ...settings, servers };
  const notes = [clusterNote(cluster), ...claims.map(tabletNote)];
  return Object.fromEntries(notes.map(({ key, value }) => [key, value]));
}

interface Head {
  masterId: number;
  claims: TabletClaim[];
  servers?: number[];
  version?: number;
}

/** The disk of a server that has the open head 4 of these masters. */
function disk(serverId: number, heads: readonly Head[], clusterId = 'c'): DiskEvidence {
  const frames = heads.map(({ masterId, claims, servers, version }, frame) => ({
    frame,
    status: 'replica' as const,
    damage: [],
    replicas: [
      {
        ...{ sequence: 1, masterId, segmentId: 4, epoch: 1, length: 100, checksum: 0 },
        ...{ state: 'open' as const, primary: true, codec: 'raw' as const, stored: 100 },
        ...{ slot: 0, pieces: [], kind: 'log' as const, counts: {}, digest: ['4'] },
        notes: notesOf(claims, servers, version),
      },
    ],
  }));
  const superblock = { sequence: 1, serverId, clusterId, segmentBytes: 2 ** 23, fenced: [] };
  const report: FolderReport = { damaged: false, superblock, stateCopy: null, frames, damage: [] };
  return { source: `/srv/${serverId}`, report };
}

/** Three servers, two replicas of each head. */
function disks(claims: readonly [TabletClaim[], TabletClaim[], TabletClaim[]]): DiskEvidence[] {
  return [1, 2, 3].map((serverId) => {
    const masters = [1, 2, 3].filter((masterId) => masterId !== serverId);
    return disk(
      serverId,
      masters.map((masterId) => ({ masterId, claims: claims[masterId - 1] ?? [] })),
    );
  });
}

function owners(tables: readonly TableRecord[]): string[] {
  return tables.flatMap(({ tableId, state, tablets }) =>
    tablets.map((one) => `${tableId} ${state} ${one.startSlot}-${one.endSlot} ${one.serverId}`),
  );
}

test('the head is the lowest open segment that no younger head leaves out', () => {
  const notes = (servers: number[]) => notesOf([], servers);
  const stale = replica({ serverId: 9, segmentId: 2, digest: [1, 2], notes: notes([1]) });
  const head = (over: Partial<FoundReplica>): FoundReplica =>
    replica({ segmentId: 5, epoch: 2, digest: [3, 4, 5], notes: notes([1, 2]), ...over });
  const found = findLog(1, [
    stale,
    replica({ segmentId: 4, closed: true, digest: [1, 2, 3, 4], notes: notes([1]) }),
    head({ serverId: 1, length: 200, notes: notes([1, 2, 3]) }),
    head({ serverId: 2 }),
    head({ serverId: 3, epoch: 1, length: 900, notes: notes([4]) }),
    replica({ segmentId: 6, digest: [3, 4, 5, 6], notes: notes([5]) }),
  ]);
  assert.deepEqual(
    [found.headFound, found.headSegmentId, found.epoch, found.replicas],
    [true, 5, 2, 2],
  );
  assert.deepEqual(found.cluster?.servers, [1, 2, 3], 'the longest of the newest epoch speaks');
  const among = findLog(1, [
    replica({ serverId: 1, segmentId: 1, digest: [1], notes: notes([1]) }),
    replica({ serverId: 2, segmentId: 2, closed: true, digest: [1, 2], notes: notes([2]) }),
    replica({ serverId: 3, segmentId: 7, digest: [1, 2, 7], notes: notes([3]) }),
  ]);
  assert.equal(among.headSegmentId, 7, 'the first is closed where it is not seen: the second is');
  assert.deepEqual(among.cluster?.servers, [3]);
  const alone = findLog(1, [stale]);
  assert.equal(alone.headSegmentId, 2, 'nothing contradicts it here');
  const closed = findLog(1, [
    replica({ segmentId: 4, closed: true, digest: [4], notes: notes([3]) }),
    replica({ segmentId: 3, closed: true, digest: [3], notes: notes([2]) }),
  ]);
  assert.deepEqual([closed.headFound, closed.headSegmentId], [false, 4]);
  assert.deepEqual(closed.cluster?.servers, [3]);
});

test('of two claims the later one counts; one that is not certain, just before its source', () => {
  const cases: [Partial<MasterClaim>, Partial<MasterClaim>][] = [
    [{ ownershipId: 5 }, { ownershipId: 6 }],
    [
      { ownershipId: 5, generation: 1 },
      { ownershipId: 5, generation: 2 },
    ],
    [{ ownershipId: 9, after: { ownershipId: 5, generation: 0 } }, { ownershipId: 5 }],
    [{ ownershipId: 4 }, { ownershipId: 9, after: { ownershipId: 5, generation: 0 } }],
    [
      { ownershipId: 7, after: { ownershipId: 5, generation: 2 } },
      { ownershipId: 9, after: { ownershipId: 5, generation: 2 } },
    ],
  ];
  for (const [lower, higher] of cases) {
    const both = [claim({ ...lower, serverId: 1 }), claim({ ...higher, serverId: 2 })];
    for (const claims of [both, [...both].reverse()]) {
      assert.deepEqual(owners(rebuildTables(claims, 99).tables), [`1 normal 0-${last} 2`]);
    }
  }
});

test('parts, holes, and tables of one name', () => {
  const { tables, holes } = rebuildTables(
    [
      claim({ serverId: 1, ctimeSegmentId: 3 }),
      claim({ serverId: 2, startSlot: half, ownershipId: 4 }),
      claim({ tableId: 2, name: 'other', serverId: 3, endSlot: 9 }),
      claim({ tableId: 3, serverId: 3, ownershipId: 2, name: 'again' }),
      claim({ tableId: 5, serverId: 1, name: 'again' }),
    ],
    99,
  );
  assert.deepEqual(owners(tables), [
    `1 normal 0-${half - 1} 1`,
    `1 normal ${half}-${last} 2`,
    '2 normal 0-9 3',
    `2 normal 10-${last} 99`,
    `3 dropping 0-${last} 3`,
    `5 normal 0-${last} 1`,
  ]);
  assert.deepEqual(
    holes.map(({ tableId, startSlot }) => [tableId, startSlot]),
    [[2, 10]],
  );
  assert.equal(tables[0]?.tablets[0]?.ctimeSegmentId, 3);
});

test('every member is in it as crashed, and all ids go on behind those of the logs', async () => {
  const plan = planRebuild(
    disks([[claim({ ownershipId: 40 })], [claim({ tableId: 7, name: 'other' })], []]),
    1000,
  );
  assert.deepEqual(plan.doubts, []);
  assert.deepEqual(owners(plan.tables), [`1 normal 0-${last} 1`, `7 normal 0-${last} 2`]);
  let written: readonly { key: string; value: unknown }[] = [];
  const leadership = { term: 1, candidateId: 'x', address: 'y', version: 1 };
  const { lead, report } = await restoreState(
    {
      commit: async (_leadership, revision, writes) => {
        written = writes;
        return revision + 1;
      },
    },
    { leadership, revision: 0, state: CoordinatorState.from([]) },
    JSON.stringify(plan.copy),
  );
  assert.deepEqual([report.clusterId, report.servers, report.tables], ['c', 3, 2]);
  const { state } = lead;
  assert.ok(written.length > 0);
  assert.ok([...state.servers.values()].every(({ status }) => status === 'crashed'));
  const recovered = [...state.recoveries.values()].map((one) => one.crashedServerId);
  assert.deepEqual(recovered.sort(), [1, 2, 3]);
  assert.equal(state.servers.get(1)?.minOpenSegmentId, 4);
  const { term, nextTableId, nextRecoveryId, replicas } = state.cluster;
  assert.ok(term > 7 && nextTableId > 7 && nextRecoveryId > 40 && replicas === 2);
  assert.ok([...state.recoveries.keys()].every((id) => id > 40 && id < nextRecoveryId));
  assert.ok(state.absent.has(1));
  const request = enlistRequest(1, { clusterId: 'c', replacesId: 1 });
  const { serverId } = applied(state, decideEnlist(state, request, 0));
  assert.ok(serverId > 2 ** 32, 'ids are not given again');
  assert.ok(!state.absent.has(1), 'its disk is back');
});

test('masters that had left are not asked, those that came later are', () => {
  const claims = [claim({ tableId: 3, name: 'old' })];
  const [one, two, three] = disks([[claim({})], [], []]);
  assert.ok(one !== undefined && two !== undefined && three !== undefined);
  const away = disk(8, [
    { masterId: 2 + 2 ** 32, claims: [claim({ tableId: 4, name: 'late' })] },
    { masterId: 5, claims, servers: [1, 2, 3, 5], version: 4 },
  ]);
  const left = disk(9, [{ masterId: 6, claims: [], servers: [1, 2, 3, 6], version: 9 }]);
  const plan = planRebuild([one, two, three, away, left], 0);
  assert.deepEqual(plan.released, [5]);
  assert.deepEqual(
    plan.tables.map(({ name }) => name),
    ['notes', 'late'],
  );
});

test('what may be missing is a doubt', () => {
  const all = disks([[claim({ endSlot: half })], [], []]);
  const whole = planRebuild(all, 0);
  assert.deepEqual(whole.doubts, [`nobody has slots ${half + 1} to ${last} of table 1`]);
  const state = CoordinatorState.from(JSON.parse(whole.copy.state).pairs);
  const nobody = state.tables.get(1)?.tablets[1]?.serverId ?? 0;
  assert.equal(state.servers.get(nobody)?.status, 'crashed', 'its recovery waits for a log');
  const two = planRebuild(all.slice(0, 2), 0);
  assert.ok(two.doubts.some((doubt) => doubt.includes('server 1 is on 1 of these disks')));
  const one = planRebuild([disk(1, [{ masterId: 2, claims: [] }])], 0);
  assert.ok(one.doubts.some((doubt) => doubt.includes('server 3 was a member')));
});

test('disks that do not belong together are refused', () => {
  const head = [{ masterId: 1, claims: [] }];
  assert.throws(() => planRebuild([disk(1, head), disk(2, head, 'other')], 0), /other/);
  const again = { ...disk(1, head), source: '/srv/again' };
  assert.throws(() => planRebuild([disk(1, head), again], 0), /both the disk of server 1/);
  assert.throws(() => planRebuild([disk(1, [])], 0), /nothing to rebuild from/);
});

/** Finding a crashed master's log in reports, cutting its tablets, choosing who recovers them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomStream } from '../../bench/dataset.js';
import {
  type BackupReport,
  discoverLog,
  type LogEvidence,
} from '../../src/coordinator/log-discovery.js';
import { gapText } from '../../src/coordinator/log-gap.js';
import { chooseMaster } from '../../src/coordinator/recovery-assignment.js';
import { planPartitions } from '../../src/coordinator/recovery-plan.js';
import { type ReplicaShape, report } from './log-reports.js';

const MIB = 1024 * 1024;
const NONE = { segmentId: 0, epoch: 0 };

function discover(
  reports: BackupReport[],
  minimumOpen = NONE,
  more: Partial<Pick<LogEvidence, 'damaged' | 'lost'>> = {},
) {
  return discoverLog({
    reports: new Map(reports.map((r, i) => [i + 1, r])),
    minimumOpen,
    damaged: new Map(),
    lost: { head: false, segmentIds: [] },
    ...more,
  });
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
  assert.match(gapText(found.gap, 2, []), /2 missing segments: 1, 3; no backup is left/);
  const headless = discover([report([[1, 8]])]);
  assert.ok(!headless.complete);
  assert.match(gapText(headless.gap, 1, []), /head of the log/);
});

test('a doubtful head is named with what may be lost, until a sound replica is there', () => {
  const doubtful = report(
    [
      [1, 8],
      [2, 5, 'doubtful'],
    ],
    [2, [1, 2]],
  );
  const longer = report([[2, 6, 'doubtful']], [2, [1, 2]]);
  const found = discover([doubtful, longer]);
  assert.ok(!found.complete);
  assert.deepEqual(found.gap, {
    headMissing: false,
    missing: [],
    doubtful: [{ segmentId: 2, fromByte: 6, servers: [2] }],
  });
  const holder = { serverId: 7, host: 'h', address: 'h:1', state: 'gone' as const };
  assert.match(
    gapText(found.gap, 2, [holder]),
    /segment 2: from byte 6 on, servers 2 may .*server 7 \(host h, h:1: gone\)/,
  );

  // Shorter than a doubtful one: what is beyond was never acknowledged.
  const sound = discover([doubtful, longer, report([[2, 5, 'open']], [2, [1, 2]])]);
  assert.ok(sound.complete);
  assert.deepEqual(sound.log.segments[1], { segmentId: 2, length: 5, backups: [1, 3] });
  const closed = discover([longer, report([[2, 9]]), report([[3, 1, 'open']], [3, [2, 3]])]);
  assert.ok(closed.complete, 'a closed replica is never in doubt');

  const lost = { head: false, segmentIds: [2] };
  const accepted = discover([doubtful, longer], NONE, { lost });
  assert.ok(accepted.complete);
  assert.deepEqual(accepted.log.segments[1], { segmentId: 2, length: 6, backups: [2] });
});

test('what was given up is not waited for, and used if it comes back', () => {
  const reports = [report([[4, 1, 'open']], [4, [1, 2, 3, 4]]), report([[2, 8]])];
  const some = discover(reports, NONE, { lost: { head: false, segmentIds: [1] } });
  assert.ok(!some.complete);
  assert.deepEqual(some.gap.missing, [3]);
  const lost = { head: false, segmentIds: [1, 3] };
  const all = discover(reports, NONE, { lost });
  assert.ok(all.complete);
  assert.deepEqual(
    all.log.segments.map(({ segmentId }) => segmentId),
    [2, 4],
  );
  const back = discover([...reports, report([[3, 8]])], NONE, { lost });
  assert.ok(back.complete);
  assert.equal(back.log.segments.length, 3);

  const headless = [report([[1, 8]]), report([[3, 8]])];
  const rest = discover(headless, NONE, { lost: { head: true, segmentIds: [] } });
  assert.ok(rest.complete, 'all that there is');
  assert.deepEqual(rest.log.segments.length, 2);
  const nothing = discover([], NONE, { lost: { head: true, segmentIds: [] } });
  assert.ok(nothing.complete);
  assert.equal(nothing.log.segments.length, 0);
});

test('a segment whose replicas are all damaged is missing', () => {
  const reports = [
    report(
      [
        [1, 8],
        [2, 1, 'open'],
      ],
      [2, [1, 2]],
    ),
    report([[1, 8]]),
  ];
  const one = discover(reports, NONE, { damaged: new Map([[1, new Set([1])]]) });
  assert.ok(one.complete);
  assert.deepEqual(one.log.segments[0]?.backups, [2]);
  const both = discover(reports, NONE, { damaged: new Map([[1, new Set([1, 2])]]) });
  assert.ok(!both.complete);
  assert.deepEqual(both.gap.missing, [1]);
});

test('a plan holds every slot once and spreads large tablets over all masters', () => {
  const all = { startSlot: 0, endSlot: 2 ** 32 - 1, ctimeSegmentId: 3 };
  const large = { tableId: 1, ...all };
  const small = { tableId: 2, ...all };
  const partitions = planPartitions(
    [large, small],
    [{ tableId: 1, startSlot: 0, endSlot: 2 ** 32 - 1, bytes: 100 * MIB }],
    [null, null, null, null],
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

  const four = [null, null, null, null];
  const tiny = planPartitions([large], [{ ...large, bytes: 7 * MIB }], four);
  const whole = { partitionId: 1, tablets: [large], bytes: 7 * MIB };
  assert.deepEqual(tiny, [whole], 'not worth a cut');
  assert.equal(planPartitions([large, small], [], four).length, 2, 'no statistics');

  const many = planPartitions([large], [{ ...large, bytes: 1_024 * MIB }], four);
  assert.equal(many.length, 16, 'several a master, which takes them in turn');
  const huge = [{ ...large, bytes: 10_240 * MIB }];
  const parts = planPartitions([large], huge, four);
  assert.equal(parts.length, 20, 'none is larger than 512 MiB');
  assert.ok(parts.every(({ bytes }) => bytes === 512 * MIB));
  const free = [50 * MIB, 75 * MIB];
  assert.equal(planPartitions([large], [{ ...large, bytes: 100 * MIB }], free).length, 3);
});

test('a master that has the memory and the least to do gets the partition', () => {
  const none = { failures: new Map<number, number>(), outOfMemory: new Set<number>() };
  const master = (serverId: number, freeBytes: number | null, partitions = 0, bytes = 0) => ({
    ...{ serverId, freeBytes, partitions, bytes },
  });
  const choose = (
    masters: ReturnType<typeof master>[],
    history: Parameters<typeof chooseMaster>[2] = none,
    turn = 0,
  ) => chooseMaster(masters, 100, history, turn)?.serverId;
  assert.equal(choose([]), undefined);
  assert.equal(choose([master(1, 50), master(2, 500, 3)]), 2, 'room before load');
  assert.equal(choose([master(1, 500, 1), master(2, 300)]), 2, 'load before more room');
  assert.equal(choose([master(1, 500, 1, 400), master(2, 300, 2)]), 2, 'what it was given counts');
  assert.equal(choose([master(1, 50), master(2, 60)]), 2, 'nobody has room: the roomiest tries');
  assert.equal(choose([master(1, 50), master(2, null)]), 2, 'not known: may have it');
  const three = [master(1, null), master(2, null), master(3, null)];
  assert.deepEqual(
    [0, 1, 2].map((turn) => choose(three, none, turn)),
    [1, 2, 3],
  );
  const failures = new Map([[1, 1]]);
  assert.equal(choose(three, { ...none, failures }), 2);
  const outOfMemory = new Set([1, 2]);
  assert.equal(choose(three, { failures: new Map([[3, 9]]), outOfMemory }), 3);
});

/** A log as backups hold it after random losses, and what of it was acknowledged. */
function randomWorld(random: () => number) {
  const below = (limit: number): number => random() % limit;
  const [backups, replicas] = [4 + below(3), 2 + below(2)];
  const headId = 2 + below(4);
  const acknowledged = below(100);
  const epoch = below(2);
  const ids = Array.from({ length: headId }, (_, i) => i + 1);
  const shapes = Array.from({ length: backups }, (): ReplicaShape[] => []);
  const digests: ([number, number[], number] | undefined)[] = shapes.map(() => undefined);
  for (const id of ids) {
    const first = below(backups);
    for (let r = 0; r < replicas; r += 1) {
      const backup = (first + r) % backups;
      const [alive, remembers] = [below(3) > 0, below(3) > 0];
      if (id < headId) shapes[backup]?.push([id, 100]);
      else if (alive) {
        shapes[backup]?.push([id, acknowledged + below(5), 'open', epoch]);
        digests[backup] = [id, ids, epoch];
      } else if (remembers) {
        // Killed in mode `replicated`: perhaps a prefix, perhaps nothing at all.
        shapes[backup]?.push([id, below(acknowledged + 5), 'doubtful', epoch]);
        digests[backup] = [id, ids, epoch];
      }
    }
    if (id === headId && epoch === 1) {
      // Lost while open and replaced; its backup is back with what it had.
      const old = (first + replicas) % backups;
      shapes[old]?.push([id, below(acknowledged + 1), 'open', 0]);
      digests[old] = [id, ids.slice(1), 0];
    }
  }
  const minimumOpen = { segmentId: headId, epoch };
  const answers = shapes.map((shape, i) => (below(4) === 0 ? [] : [report(shape, digests[i])]));
  return { reports: answers.flat(), headId, acknowledged, minimumOpen };
}

test('a log that is called complete has every segment and every acknowledged byte', (t) => {
  const seed = Number(process.env.REKINDLE_SEED ?? Date.now() % 1_000_000);
  t.diagnostic(`REKINDLE_SEED=${seed}`);
  const random = randomStream(seed);
  let complete = 0;
  let doubtful = 0;
  for (let run = 0; run < 5_000; run += 1) {
    const { reports, headId, acknowledged, minimumOpen } = randomWorld(random);
    const found = discover(reports, minimumOpen);
    if (!found.complete) {
      doubtful += Number(found.gap.doubtful.length > 0);
      continue;
    }
    complete += 1;
    const context = `seed ${seed} run ${run}`;
    assert.equal(found.log.segments.length, headId, context);
    assert.ok((found.log.segments.at(-1)?.length ?? 0) >= acknowledged, context);
  }
  assert.ok(complete > 500 && doubtful > 100, `${complete} complete, ${doubtful} in doubt`);
});

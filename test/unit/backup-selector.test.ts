/**
 * Placement: the rules that always hold (hosts, racks, copysets where they can), load, and what a
 * client is told when there are too few backups; copysets that stay as they are while servers come
 * and go. Clusters and histories are drawn by fast-check.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import fc from 'fast-check';
import { updateCopysets } from '../../src/coordinator/copysets.js';
import { BackupSelector } from '../../src/master/backup-selector.js';
import { shortageText } from '../../src/master/placement-shortage.js';
import type { ServerEntry, ServerList } from '../../src/rpc/messages.js';

const none: ReadonlySet<number> = new Set();

type Labels = { host: number; rack: number | null };

function entry(serverId: number, { host, rack }: Labels): ServerEntry {
  return {
    serverId,
    address: `h${host}:1`,
    host: `h${host}`,
    rack: rack === null ? null : `r${rack}`,
    master: true,
    backup: true,
    status: 'up',
    memoryBytes: 1,
  };
}

function listOf(servers: ServerEntry[], over: Partial<ServerList> = {}): ServerList {
  return {
    version: 1,
    clusterId: 'c',
    term: 1,
    replicas: 3,
    durability: 'fsync',
    allowSameHost: false,
    copysets: [],
    servers,
    ...over,
  };
}

function selector(list: ServerList, random = Math.random): BackupSelector {
  const created = new BackupSelector(1, list.replicas, random);
  created.applyServerList(list);
  return created;
}

/** Server 1 is the master; racks belong to hosts. */
const clusters = fc
  .record({
    racks: fc.array(fc.option(fc.integer({ min: 0, max: 2 })), { minLength: 1, maxLength: 8 }),
    hosts: fc.array(fc.nat(7), { minLength: 1, maxLength: 14 }),
    replicas: fc.integer({ min: 1, max: 4 }),
    allowSameHost: fc.boolean(),
  })
  .map(({ racks, hosts, replicas, allowSameHost }) => {
    const labels = (host: number): Labels => ({ host, rack: racks[host % racks.length] ?? null });
    const servers = hosts.map((host, index) => entry(index + 1, labels(host)));
    return listOf(servers, { replicas, allowSameHost });
  });

const randoms = fc.array(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), {
  minLength: 40,
  maxLength: 40,
});

function drawn(values: number[]): () => number {
  let at = 0;
  return () => values[at++ % values.length] ?? 0;
}

/** Chooses until all are placed or none is left. */
function place(from: BackupSelector, replicas: number, nowMs = 0): number[] {
  const taken: number[] = [];
  while (taken.length < replicas) {
    const next = from.choose(taken, none, nowMs);
    if (next === null) break;
    taken.push(next);
  }
  return taken;
}

function checkRules(list: ServerList, taken: number[]): void {
  const [master] = list.servers;
  const chosen = taken.map((id) => list.servers.find(({ serverId }) => serverId === id));
  assert.ok(!taken.includes(1), "never the master's own server");
  assert.equal(new Set(taken).size, taken.length, 'never two replicas on one server');
  if (!list.allowSameHost) {
    const hosts = chosen.map((server) => server?.host);
    assert.equal(new Set(hosts).size, taken.length, 'never two replicas on a host');
    assert.ok(!hosts.includes(master?.host), "never the master's host");
  }
  const usable = list.servers.filter(
    ({ serverId, host }) => serverId !== 1 && (list.allowSameHost || host !== master?.host),
  );
  const racks = new Set(usable.flatMap(({ rack }) => rack ?? []));
  const taking = new Set(chosen.flatMap((server) => server?.rack ?? []));
  if (racks.size > 1 && list.replicas > 1) {
    assert.ok(taking.size > 1, 'never all in one rack when there are several');
  }
}

test('hosts and racks: a complete placement obeys the rules, or there is said to be none', () => {
  fc.assert(
    fc.property(clusters, randoms, fc.boolean(), (list, values, withCopysets) => {
      const { replicas, allowSameHost, servers } = list;
      const rules = { replicas, allowSameHost, scatterWidth: 4 };
      const copysets = withCopysets ? updateCopysets([], servers, rules) : [];
      const from = selector({ ...list, copysets }, drawn(values));
      const taken = place(from, replicas);
      if (taken.length === replicas) checkRules(list, taken);
      assert.equal(from.canPlace(0), taken.length === replicas, 'as canPlace has said');
    }),
    { numRuns: 3_000 },
  );
});

test('a replica that is replaced keeps to the rules with those that stay', () => {
  fc.assert(
    fc.property(clusters, randoms, fc.nat(3), (list, values, lost) => {
      const from = selector(list, drawn(values));
      const taken = place(from, list.replicas);
      if (taken.length < list.replicas) return;
      const stay = taken.filter((_, index) => index !== lost % taken.length);
      const next = from.choose(stay, none, 0);
      assert.notEqual(next, null, 'the same one will do again');
      checkRules(list, [...stay, next ?? 0]);
    }),
    { numRuns: 2_000 },
  );
});

function spread(count: number, rack = (_: number): number | null => null): ServerEntry[] {
  return Array.from({ length: count }, (_, index) =>
    entry(index + 1, { host: index, rack: rack(index) }),
  );
}

test('segments lie on copysets, and on others only if none can be had', () => {
  const servers = spread(13);
  const rules = { replicas: 3, scatterWidth: 4, allowSameHost: false };
  const copysets = updateCopysets([], servers, rules);
  const from = selector(listOf(servers, { copysets }));
  const keys = new Set(copysets.map((set) => set.join(' ')));
  for (let round = 0; round < 300; round += 1) {
    const taken = place(from, 3);
    assert.ok(keys.has(taken.sort((a, b) => a - b).join(' ')), `${taken} is a copyset`);
  }
  assert.equal(from.outsideCopysets, 0);
  for (let id = 2; id <= 13; id += 1) if (id % 3 !== 0) from.noteDiskFailed(id);
  const taken = place(from, 3);
  assert.equal(taken.length, 3, 'a copyset is a preference');
  assert.ok(from.outsideCopysets > 0, 'and what lies elsewhere is counted');
});

test('less loaded backups are chosen more often, full and failed ones not at all', () => {
  const from = selector(listOf(spread(5), { replicas: 1 }));
  const counts = (): number[] => {
    const counted = [0, 0, 0, 0, 0, 0];
    for (let round = 0; round < 2_000; round += 1) {
      for (const id of [2, 3, 4, 5]) {
        const queuedKib = id === 2 ? 64 * 1024 : 0;
        from.noteLoad(id, { freeFrames: id === 3 ? 10 : 1_000, queuedKib }, 0);
      }
      const id = from.choose([], none, 0) ?? 0;
      counted[id] = (counted[id] ?? 0) + 1;
    }
    return counted;
  };
  const [, , queued = 0, nearlyFull = 0, idle = 0, other = 0] = counts();
  assert.ok(queued < nearlyFull && nearlyFull < Math.min(idle, other), 'queue first, then frames');
  assert.ok(queued > 0, 'nobody is starved');
  from.noteFull(4, 0);
  from.noteFailed(5, 0);
  from.noteDiskFailed(3);
  for (let round = 0; round < 100; round += 1) assert.equal(from.choose([], none, 500), 2);
  const later = new Set(Array.from({ length: 200 }, () => from.choose([], none, 1_500)));
  assert.deepEqual([...later].sort(), [2, 4, 5], 'a failed disk stays out, the others come back');
});

test('replicas that were opened since a report count against its free frames', () => {
  const from = selector(listOf(spread(2), { replicas: 1 }));
  from.noteLoad(2, { freeFrames: 2, queuedKib: 0 }, 0);
  assert.equal(from.choose([], none, 0), 2);
  assert.equal(from.choose([], none, 0), 2);
  assert.equal(from.choose([], none, 0), null);
  assert.equal(from.choose([], none, 1_000), 2, 'an old report says nothing');
});

test('what is missing is said with the reasons', () => {
  const servers = [
    entry(1, { host: 0, rack: 0 }),
    entry(2, { host: 0, rack: 0 }),
    entry(3, { host: 1, rack: 0 }),
    entry(4, { host: 2, rack: 0 }),
    entry(5, { host: 3, rack: null }),
    entry(6, { host: 4, rack: 1 }),
    entry(7, { host: 5, rack: 1 }),
  ];
  const from = selector(listOf(servers));
  assert.equal(from.shortage([], none, 0), null);
  from.noteDiskFailed(6);
  from.noteFull(7, 0);
  const shortage = from.shortage([], none, 0);
  assert.deepEqual(shortage, {
    needed: 3,
    candidates: 2,
    others: 6,
    ruledOut: { ownHost: 1, diskFailed: 1, noFreeFrame: 1, noRackLabel: 1 },
  });
  assert.ok(shortage);
  assert.equal(
    shortageText(shortage),
    "a segment needs 3 more backups, 2 of the 6 up can be had: 1 on the master's host, " +
      '1 without a rack label, 1 without a free frame, 1 with a failed disk',
  );
});

interface History {
  sets: number[][];
  servers: ServerEntry[];
}

test('copysets obey the rules, and change only where servers come and go', () => {
  const steps = fc.array(fc.record({ leave: fc.boolean(), pick: fc.nat(99), host: fc.nat(19) }), {
    minLength: 1,
    maxLength: 60,
  });
  const rules = { replicas: 3, scatterWidth: 4, allowSameHost: false };
  fc.assert(
    fc.property(steps, fc.integer({ min: 1, max: 3 }), (history, racks) => {
      let now: History = { sets: [], servers: [] };
      history.forEach((step, index) => {
        const gone = step.leave
          ? now.servers[step.pick % Math.max(1, now.servers.length)]
          : undefined;
        const label = { host: step.host, rack: racks === 1 ? null : step.host % racks };
        const servers =
          gone === undefined
            ? [...now.servers, entry(index + 1, label)]
            : now.servers.filter((server) => server !== gone);
        const sets = updateCopysets(now.sets, servers, rules);
        checkSets(sets, servers);
        const keys = new Set(sets.map(String));
        for (const set of now.sets) {
          if (gone !== undefined && set.includes(gone.serverId)) continue;
          const racksBefore = new Set(now.servers.map(({ rack }) => rack)).size;
          const racksNow = new Set(servers.map(({ rack }) => rack)).size;
          assert.ok(keys.has(String(set)) || racksNow > racksBefore, `${set} stays`);
        }
        now = { sets, servers };
      });
    }),
    { numRuns: 300 },
  );
});

function checkSets(sets: number[][], servers: ServerEntry[]): void {
  const byId = new Map(servers.map((server) => [server.serverId, server]));
  const racks = new Set(servers.map(({ rack }) => rack));
  for (const set of sets) {
    const members = set.map((id) => byId.get(id));
    assert.ok(
      members.every((member) => member !== undefined),
      'members are up',
    );
    assert.equal(new Set(members.map((member) => member?.host)).size, 3, 'distinct hosts');
    if (racks.size > 1) assert.ok(new Set(members.map((member) => member?.rack)).size > 1);
  }
  assert.equal(new Set(sets.map(String)).size, sets.length, 'no group twice');
}

test('every server has its scatter width; few groups more than there must be', () => {
  for (const [count, scatterWidth] of [
    [9, 2],
    [50, 10],
    [100, 10],
    [200, 20],
  ] as const) {
    const servers = spread(count);
    const sets = updateCopysets([], servers, { replicas: 3, scatterWidth, allowSameHost: false });
    for (const { serverId } of servers) {
      const mates = new Set(sets.filter((set) => set.includes(serverId)).flat());
      assert.ok(mates.size - 1 >= scatterWidth, `server ${serverId} of ${count}`);
    }
    const least = (count * scatterWidth) / (3 * 2);
    assert.ok(sets.length <= least * 1.35, `${count}: ${sets.length} groups, at least ${least}`);
  }
});

test('a member that is gone is replaced in all its groups, whose others stay together', () => {
  const servers = spread(30);
  const rules = { replicas: 3, scatterWidth: 6, allowSameHost: false };
  const before = updateCopysets([], servers, rules);
  const after = updateCopysets(
    before,
    servers.filter(({ serverId }) => serverId !== 7),
    rules,
  );
  for (const set of before.filter((each) => each.includes(7))) {
    const others = set.filter((id) => id !== 7);
    assert.ok(
      after.some((each) => others.every((id) => each.includes(id))),
      `${others} stay`,
    );
  }
});

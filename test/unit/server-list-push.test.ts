/**
 * Server lists as updates, and who is told of them: the pure parts, each rule by itself. A thousand
 * servers are told in test/simulation/server-list.test.ts.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type PushEffect,
  type PushEvent,
  pushGroups,
  pushTimeoutMs,
  ServerListPush,
} from '../../src/coordinator/server-list-push.js';
import {
  ServerListHistory,
  updatedList,
  wholeUpdate,
} from '../../src/coordinator/server-list-update.js';
import type { ServerEntry, ServerList } from '../../src/rpc/messages.js';
import { randomFrom } from './replicated-log-disk.js';

function entry(serverId: number, status: ServerEntry['status'] = 'up'): ServerEntry {
  const [address, host] = [`h:${serverId}`, `h${serverId}`];
  return {
    serverId,
    address,
    host,
    rack: null,
    master: true,
    backup: true,
    status,
    memoryBytes: 1,
  };
}

function listOf(version: number, servers: ServerEntry[], copysets: number[][] = []): ServerList {
  const cluster = { clusterId: 'c', term: 1, replicas: 2, durability: 'fsync' } as const;
  return { ...cluster, version, allowSameHost: false, copysets, servers };
}

/** A random life of a list: servers join, crash, leave; groups change. */
function lists(seed: number, changes: number): ServerList[] {
  const random = randomFrom(seed);
  const servers = new Map<number, ServerEntry>([[1, entry(1)]]);
  let copysets: number[][] = [];
  const all = [listOf(1, [...servers.values()])];
  for (let version = 2; version < 2 + changes; version++) {
    const ids = [...servers.keys()];
    const serverId = ids[Math.floor(random() * ids.length)] ?? 0;
    const dice = random();
    if (dice < 0.5) servers.set(version, entry(version));
    else if (dice < 0.7) servers.delete(serverId);
    else if (servers.has(serverId)) servers.set(serverId, entry(serverId, 'crashed'));
    if (random() < 0.2) copysets = [[version, 1]];
    const sorted = [...servers.values()].sort((a, b) => a.serverId - b.serverId);
    all.push(listOf(version, sorted, copysets));
  }
  return all;
}

test('an update from a version makes the newest list of that one and of all later ones', () => {
  for (let seed = 1; seed <= 30; seed++) {
    const all = lists(seed, 30);
    const [first, ...rest] = all;
    assert.ok(first !== undefined);
    const history = new ServerListHistory(first);
    for (const list of rest) history.advance(list);
    const newest = all.at(-1);
    for (const [at, old] of all.entries()) {
      const update = history.updateFrom(old.version);
      assert.equal(update.fromVersion, old.version);
      for (const has of all.slice(at)) assert.deepEqual(updatedList(has, update), newest);
      for (const has of [null, ...all.slice(0, at)]) assert.equal(updatedList(has, update), null);
    }
    assert.deepEqual(updatedList(null, history.updateFrom(0)), newest);
    assert.deepEqual(updatedList(all[3] ?? null, wholeUpdate(first)), first);
  }
});

test('what has left is remembered for a while; before it lists are whole', () => {
  const history = new ServerListHistory(listOf(1, []));
  for (let version = 2; version < 3_000; version += 2) {
    history.advance(listOf(version, [entry(version)]));
    history.advance(listOf(version + 1, []));
  }
  assert.ok(history.base > 1 && history.base < history.version);
  assert.equal(history.updateFrom(history.base - 1).fromVersion, 0);
  assert.equal(history.updateFrom(history.base).fromVersion, history.base);
  assert.ok(history.updateFrom(history.base).removed.length <= 1_024);
});

test('groups have everybody once, and who tells waits longer than who is told', () => {
  const ids = Array.from({ length: 1_000 }, (_, n) => n);
  const groups = pushGroups(ids, 8);
  assert.equal(groups.length, 8);
  assert.deepEqual(
    groups.flat().sort((a, b) => a - b),
    ids,
  );
  for (const count of [1, 2, 8, 9, 124, 999]) {
    for (const [, ...rest] of pushGroups(ids.slice(0, count), 8)) {
      assert.ok(pushTimeoutMs(rest.length, 8) < pushTimeoutMs(count, 8));
    }
  }
});

class Play {
  readonly push = new ServerListPush(3);
  view = { version: 5, base: 5, up: [1, 2, 3] };
  nowMs = 0;

  step(event: PushEvent = { kind: 'look' }): PushEffect[] {
    return this.push.step(event, this.view, this.nowMs);
  }

  sends(event?: PushEvent): [serverId: number, fromVersion: number, forward: number[]][] {
    return this.step(event).flatMap((effect) =>
      effect.kind === 'send' ? [[effect.serverId, effect.fromVersion, effect.forward]] : [],
    );
  }

  answer(serverId: number, version = this.view.version, more: object = {}) {
    const reply = { version, behind: [], silent: [], untold: [], ...more };
    return this.sends({ kind: 'answered', serverId, reply });
  }
}

test('few servers are told one by one, each until it has the list', () => {
  const play = new Play();
  assert.deepEqual(play.sends(), [
    [1, 5, []],
    [2, 5, []],
    [3, 5, []],
  ]);
  assert.deepEqual(play.sends(), [], 'one call each');
  assert.deepEqual(play.answer(1), []);
  play.view = { version: 6, base: 5, up: [1, 2, 3] };
  assert.deepEqual(play.sends(), [[1, 5, []]]);
  assert.deepEqual(play.answer(2, 5), [[2, 5, []]]);
  assert.deepEqual(play.sends({ kind: 'failed', serverId: 3 }), []);
  play.nowMs = 200;
  assert.deepEqual(play.sends(), [[3, 5, []]]);
  // It has less than this leader knows of.
  assert.deepEqual(play.answer(3, 2), []);
  play.nowMs = 400;
  assert.deepEqual(play.sends(), [[3, 0, []]]);
  for (const serverId of [1, 2, 3]) assert.deepEqual(play.answer(serverId), []);
  assert.equal(play.push.confirmed(6), 3);
  assert.deepEqual(play.step(), [], 'nothing is left to do');
});

test('a branch whose head fails is told by others, and the head tells nobody', () => {
  const play = new Play();
  play.view = { version: 3, base: 3, up: [1, 2, 3, 4, 5, 6, 7] };
  const trees = play.sends();
  assert.deepEqual(trees, [
    [3, 3, [6, 2]],
    [4, 3, [7]],
    [5, 3, [1]],
  ]);
  assert.deepEqual(play.answer(4), []);
  assert.deepEqual(play.sends({ kind: 'failed', serverId: 3 }), [
    [6, 3, []],
    [2, 3, []],
  ]);
  assert.deepEqual(play.answer(5, 3, { silent: [1] }), []);
  assert.deepEqual(play.answer(2), []);
  assert.deepEqual(play.answer(6), []);
  play.nowMs = 200;
  play.view = { ...play.view, version: 4 };
  const next = play.sends();
  assert.deepEqual(
    next.map(([serverId]) => serverId).filter((serverId) => serverId === 1 || serverId === 3),
    [],
  );
  assert.deepEqual(
    next.flatMap(([serverId, , forward]) => [serverId, ...forward]).sort((a, b) => a - b),
    [1, 2, 3, 4, 5, 6, 7],
  );
});

test('a newer list does not wait for an older one that others pass on', () => {
  const play = new Play();
  play.view = { version: 3, base: 3, up: [1, 2, 3, 4, 5] };
  const heads = play.sends().map(([serverId]) => serverId);
  play.view = { ...play.view, version: 4 };
  const told = play.sends().flatMap(([serverId, , forward]) => [serverId, ...forward]);
  assert.deepEqual(
    [...heads, ...told].sort((a, b) => a - b),
    [1, 2, 3, 4, 5],
  );
  // What they say of the older one does not make them have the newer one.
  for (const serverId of heads) play.answer(serverId, 3);
  assert.equal(play.push.confirmed(4), 0);
});

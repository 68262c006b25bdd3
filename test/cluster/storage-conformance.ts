/**
 * What every `ExternalStorage` does, as tests: run against LMDB and against a real etcd. `open`
 * gives a storage without content; a second one of the same content where several can be open.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { test } from 'node:test';
import type {
  ExternalStorage,
  Leadership,
  StorageChange,
} from '../../src/coordinator/external-storage/external-storage.js';
import { RekindleError } from '../../src/rpc/errors.js';

export interface StorageUnderTest {
  storage: ExternalStorage;
  /** The same content through another connection, or after a restart: the end of `storage`. */
  again(): Promise<ExternalStorage>;
  close(): Promise<void>;
}

export const hasCode = (code: string) => (error: unknown) =>
  error instanceof RekindleError && error.code === code;

export async function take(
  storage: ExternalStorage,
  term = 1,
): Promise<{ leadership: Leadership; revision: number }> {
  const { leaderState } = await storage.list();
  const candidacy = { term, candidateId: randomUUID(), address: `127.0.0.1:${7_000 + term}` };
  const { leader, revision } = await storage.campaign(leaderState.leader, candidacy);
  assert.equal(leader.candidateId, candidacy.candidateId);
  return { leadership: leader, revision };
}

/** Collects what a watch tells. */
export function watched(storage: ExternalStorage, position: number) {
  const changes: StorageChange[] = [];
  const lost: RekindleError[] = [];
  const stop = storage.watch(position, {
    changed: (change) => changes.push(change),
    lost: (error) => lost.push(error),
  });
  return { changes, lost, stop };
}

export async function until(what: string, condition: () => boolean): Promise<void> {
  const limitMs = performance.now() + 10_000;
  while (!condition()) {
    assert.ok(performance.now() < limitMs, `not within 10 s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

type Body = (under: StorageUnderTest) => Promise<void>;

const cases: { what: string; body: Body }[] = [];

function conforms(what: string, body: Body): void {
  cases.push({ what, body });
}

/** Registers all of the tests below. */
export function conformance(
  name: string,
  skip: string | false,
  open: () => Promise<StorageUnderTest>,
): void {
  for (const { what, body } of cases) {
    test(`${name}: ${what}`, { skip, timeout: 30_000 }, async () => {
      const under = await open();
      try {
        await body(under);
      } finally {
        await under.close();
      }
    });
  }
}

conforms('a commit is all or nothing, and is there for whoever reads next', async (under) => {
  const { storage } = under;
  const empty = await storage.list();
  assert.deepEqual([empty.revision, empty.leaderState.leader, empty.pairs], [0, null, []]);
  const { leadership, revision } = await take(storage);
  const writes = [
    { key: 'tables/1', value: { b: [2], name: 'täble ✓' } },
    { key: 'servers/1', value: { a: 1 } },
  ];
  const first = await storage.commit(leadership, revision, writes);
  assert.ok(first > revision);
  const second = await storage.commit(leadership, first, [
    { key: 'servers/1', value: undefined },
    { key: 'servers/2', value: null },
  ]);
  assert.ok(second > first);
  const again = await under.again();
  const { pairs, revision: found } = await again.list();
  assert.equal(found, second);
  assert.deepEqual(pairs, [{ key: 'servers/2', value: null }, writes[0]]);
});

conforms('who is late or does not lead changes nothing', async ({ storage }) => {
  const first = await take(storage, 1);
  const write = [{ key: 'servers/1', value: 1 }];
  const revision = await storage.commit(first.leadership, first.revision, write);
  const other = [{ key: 'servers/1', value: 2 }];
  const late = storage.commit(first.leadership, first.revision, other);
  await assert.rejects(late, hasCode('FENCED'));
  await storage.confirm(first.leadership);
  const second = await take(storage, 2);
  assert.equal(second.revision, revision);
  await assert.rejects(storage.confirm(first.leadership), hasCode('FENCED'));
  const deposed = storage.commit(first.leadership, revision, other);
  await assert.rejects(deposed, hasCode('FENCED'));
  // Nor does it end the leadership of another.
  await storage.resign(first.leadership);
  await storage.confirm(second.leadership);
  const { pairs, leaderState } = await storage.list();
  assert.deepEqual(pairs, [{ key: 'servers/1', value: 1 }]);
  assert.deepEqual(leaderState.leader, second.leadership);
});

conforms('of many who campaign one wins, and all are told who', async ({ storage }) => {
  for (let round = 1; round <= 5; round++) {
    const { leader: found } = (await storage.list()).leaderState;
    const results = await Promise.all(
      Array.from({ length: 8 }, (_, index) =>
        storage.campaign(found, {
          term: round,
          candidateId: `${round}-${index}`,
          address: `127.0.0.1:${7_000 + index}`,
        }),
      ),
    );
    const winner = (await storage.list()).leaderState.leader;
    assert.equal(winner?.term, round);
    for (const { leader } of results) assert.deepEqual(leader, winner);
  }
});

conforms('a watch tells every transaction once, in order, from any position', async (under) => {
  const { storage } = under;
  const start = (await storage.list()).position;
  const early = watched(storage, start);
  const { leadership, revision } = await take(storage);
  let newest = revision;
  for (let i = 1; i <= 20; i++) {
    const last = i > 1 ? [{ key: `servers/${i - 1}`, value: undefined }] : [];
    newest = await storage.commit(leadership, newest, [
      ...last,
      { key: `servers/${i}`, value: { i } },
    ]);
  }
  await storage.resign(leadership);
  await until('the early watch has all', () => early.changes.length === 22);
  const late = watched(storage, start);
  await until('the late watch has all', () => late.changes.length === 22);
  assert.deepEqual(late.changes, early.changes);
  assert.deepEqual(early.changes[0], {
    commit: null,
    leaderState: { version: leadership.version, leader: leadership },
  });
  const revisions = early.changes.flatMap(({ commit }) => (commit ? [commit.revision] : []));
  assert.equal(revisions.at(-1), newest);
  assert.deepEqual(
    revisions,
    [...new Set(revisions)].sort((a, b) => a - b),
  );
  const content = new Map<string, unknown>();
  for (const { commit } of early.changes) {
    for (const { key, value } of commit?.writes ?? []) {
      if (value === undefined) content.delete(key);
      else content.set(key, value);
    }
  }
  assert.deepEqual([...content], [['servers/20', { i: 20 }]]);
  const end = early.changes.at(-1)?.leaderState;
  assert.equal(end?.leader, null);
  assert.ok(end.version > leadership.version);
  assert.deepEqual(early.lost, []);
  early.stop();
  late.stop();
});

conforms('large changes pass whole, too large ones not at all', async (under) => {
  const { storage } = under;
  const { leadership, revision } = await take(storage);
  const many = Array.from({ length: 1_000 }, (_, i) => ({
    key: `tables/${10_000 + i}`,
    value: { name: 'x'.repeat(500) },
  }));
  const newest = await storage.commit(leadership, revision, many);
  const huge = [
    { key: 'servers/1', value: 1 },
    { key: 'tables/1', value: 'ä'.repeat(1_000_000) },
  ];
  const refused = storage.commit(leadership, newest, huge);
  await assert.rejects(refused, hasCode('REQUEST_TOO_LARGE'));
  const nameless = storage.commit(leadership, newest, [{ key: '', value: 1 }]);
  await assert.rejects(nameless, hasCode('INVALID_ARGUMENT'));
  const { revision: after, pairs } = await (await under.again()).list();
  assert.equal(after, newest);
  assert.deepEqual(pairs, many);
});

conforms('a candidate is seen while it lives', async ({ storage }) => {
  assert.deepEqual(await storage.candidates(), []);
  await storage.announce('c-1', '127.0.0.1:7001');
  assert.deepEqual(await storage.candidates(), ['127.0.0.1:7001']);
});

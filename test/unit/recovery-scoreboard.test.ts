/** Whom a recovery master asks for a segment next, and when it gives the segment up. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RecoveryScoreboard } from '../../src/master/recovery-scoreboard.js';

const segmentId = 7;

/** Fetches from whoever is next, and lets the piece be bad. */
function bad(scoreboard: RecoveryScoreboard): number {
  const next = scoreboard.next(0);
  assert.ok(next.kind === 'fetch');
  assert.ok(scoreboard.claim(next));
  scoreboard.claimedBad(next);
  return next.serverId;
}

test('a piece that was bad on arrival is fetched again when the other backups were asked', () => {
  const scoreboard = new RecoveryScoreboard([{ segmentId, backups: [1, 2, 3] }]);
  assert.deepEqual([bad(scoreboard), bad(scoreboard), bad(scoreboard)], [1, 2, 3]);
  const next = scoreboard.next(0);
  assert.deepEqual(next, { kind: 'fetch', segmentId, serverId: 1 });
  assert.ok(scoreboard.claim({ segmentId, serverId: 1 }));
  scoreboard.succeeded(segmentId);
  assert.deepEqual(scoreboard.next(0), { kind: 'done' });
});

test('bad twice: the replica is damaged', () => {
  const scoreboard = new RecoveryScoreboard([{ segmentId, backups: [1, 2] }]);
  assert.deepEqual(
    Array.from({ length: 4 }, () => bad(scoreboard)),
    [1, 2, 1, 2],
  );
  assert.deepEqual(scoreboard.next(0), { kind: 'failed', segmentId, damagedOn: [1, 2] });
});

test('a replica that its backup calls damaged is not asked for again', () => {
  const scoreboard = new RecoveryScoreboard([{ segmentId, backups: [1, 2] }]);
  assert.equal(scoreboard.next(0).kind, 'fetch');
  scoreboard.replicaFailed({ segmentId, serverId: 1 }, true);
  assert.deepEqual([bad(scoreboard), bad(scoreboard)], [2, 2]);
  assert.deepEqual(scoreboard.next(0), { kind: 'failed', segmentId, damagedOn: [1, 2] });
});

test('a backup out of reach is asked once more, after the others', () => {
  const scoreboard = new RecoveryScoreboard([{ segmentId, backups: [1, 2] }]);
  assert.equal(scoreboard.next(0).kind, 'fetch');
  scoreboard.backupUnreachable({ segmentId, serverId: 1 }, 50);
  assert.deepEqual(scoreboard.next(0), { kind: 'fetch', segmentId, serverId: 2 });
  scoreboard.replicaFailed({ segmentId, serverId: 2 }, false);
  assert.deepEqual(scoreboard.next(0), { kind: 'fetch', segmentId, serverId: 1 });
  scoreboard.backupUnreachable({ segmentId, serverId: 1 }, 50);
  assert.deepEqual(scoreboard.next(0), { kind: 'failed', segmentId, damagedOn: [] });
});

/**
 * A backup that lives and lost a replica (an error, rot) with exactly R backups to choose from: it
 * gets the segment again once it has forgotten what it held, and nothing counts as durable before
 * the coordinator has stored the new epoch.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import {
  ReplicaManager,
  type ReplicaManagerEffect,
  type ReplicaManagerEvent,
} from '../../src/master/replica-manager.js';
import type { SegmentWrite } from '../../src/master/replicated-segment.js';
import type { ServerEntry } from '../../src/rpc/messages.js';
import type { StatusCode } from '../../src/rpc/status.js';

const openingBytes = 100;

class Log {
  nowMs = 0;
  readonly lengths = new Map<number, number>();
  writes: SegmentWrite[] = [];
  frees: string[] = [];
  stores: { segmentId: number; epoch: number }[] = [];
  readonly manager = new ReplicaManager({
    serverId: 1,
    replicas: 3,
    random: () => 0,
    source: (segmentId, from) => {
      const segmentBytes = this.lengths.get(segmentId) ?? openingBytes;
      return { end: from === 0 ? openingBytes : segmentBytes, checksum: 7, segmentBytes };
    },
  });

  constructor(backups: number) {
    const entry = (serverId: number): ServerEntry => ({
      serverId,
      address: `h${serverId}:1`,
      host: `h${serverId}`,
      rack: null,
      master: true,
      backup: true,
      status: 'up',
      memoryBytes: 1,
    });
    const list = {
      version: 1,
      clusterId: 'c',
      term: 1,
      replicas: 3,
      durability: 'fsync' as const,
      allowSameHost: false,
      copysets: [],
      servers: Array.from({ length: backups + 1 }, (_, index) => entry(index + 1)),
    };
    this.step({ kind: 'serverList', list });
    this.openHead(1, 0);
    this.ackAll();
  }

  openHead(segmentId: number, position: number): void {
    this.lengths.set(segmentId, openingBytes);
    this.step({ kind: 'headOpened', segmentId, position, openingBytes });
  }

  extend(segmentId: number, appendedBytes: number, closed = false): void {
    this.lengths.set(segmentId, appendedBytes);
    this.step({ kind: 'extended', segmentId, appendedBytes, closed });
  }

  step(event: ReplicaManagerEvent): void {
    this.#take(this.manager.step([event], this.nowMs));
  }

  wait(ms: number): void {
    this.nowMs += ms;
    this.step({ kind: 'tick' });
  }

  ackAll(): void {
    for (;;) {
      const write = this.writes.shift();
      if (write === undefined) return;
      this.step({ kind: 'acked', write });
    }
  }

  fail(serverId: number, code: StatusCode): void {
    const index = this.writes.findIndex((write) => write.serverId === serverId);
    const [write] = this.writes.splice(index, 1);
    assert.ok(write, `a write to ${serverId} is under way`);
    this.step({ kind: 'failed', write, code });
  }

  #take(effects: ReplicaManagerEffect[]): void {
    for (const effect of effects) {
      if (effect.kind === 'send') this.writes.push(effect.write);
      else if (effect.kind === 'free') this.frees.push(`${effect.serverId}: ${effect.segmentId}`);
      else if (effect.kind === 'storeRecoveryInfo') this.stores.push(effect);
    }
  }
}

test('the open replica: freed, written again in a new epoch, stored, then durable', () => {
  const log = new Log(3);
  assert.equal(log.manager.durablePosition, openingBytes);
  log.extend(1, 500);
  log.fail(2, 'DISK_ERROR');
  log.ackAll();
  assert.deepEqual(log.frees, ['2: 1']);
  log.wait(5_000);
  assert.equal(log.writes.length, 0, 'it may hold the old replica still');
  assert.equal(log.manager.canWrite(log.nowMs), false);
  assert.deepEqual(log.manager.shortage(log.nowMs)?.ruledOut, {
    notFreedYet: 1,
    holdsReplica: 2,
  });
  log.step({ kind: 'freed', segmentId: 1, serverId: 2 });
  log.wait(20);
  const [write] = log.writes;
  assert.deepEqual([write?.serverId, write?.open, write?.epoch], [2, true, 1]);
  assert.equal(write?.certified, false, 'invisible until it is complete');
  log.ackAll();
  assert.equal(log.manager.durablePosition, openingBytes, 'not before the epoch is stored');
  assert.deepEqual(
    log.stores.map(({ epoch }) => epoch),
    [1],
  );
  log.step({ kind: 'recoveryInfoStored', segmentId: 1, epoch: 1 });
  assert.equal(log.manager.durablePosition, 500);
  assert.equal(log.manager.canWrite(log.nowMs), true);
});

test('a backup that has just failed a write is left alone for a moment', () => {
  const log = new Log(3);
  log.extend(1, 500);
  log.fail(2, 'DISK_ERROR');
  log.step({ kind: 'freed', segmentId: 1, serverId: 2 });
  log.wait(20);
  assert.ok(!log.writes.some(({ serverId }) => serverId === 2));
  assert.deepEqual(log.manager.shortage(log.nowMs)?.ruledOut, { diskError: 1, holdsReplica: 2 });
  log.wait(1_000);
  assert.ok(log.writes.some(({ serverId }) => serverId === 2));
});

/** Closes segment 1 everywhere behind a new head. */
function closed(log: Log): void {
  log.extend(1, 500, true);
  log.openHead(2, 500);
  log.ackAll();
  assert.equal(log.manager.segment(1)?.synced, true);
}

test('a rotten replica is freed and written anew elsewhere, without a new epoch', () => {
  const log = new Log(4);
  closed(log);
  const [victim = 0] = log.manager.segment(1)?.serverIds ?? [];
  log.step({ kind: 'rotten', segmentId: 1, serverId: victim });
  assert.deepEqual(log.frees, [`${victim}: 1`]);
  const durable = log.manager.durablePosition;
  log.ackAll();
  const segment = log.manager.segment(1);
  assert.equal(segment?.synced, true);
  assert.ok(!segment?.serverIds.includes(victim));
  assert.equal(segment?.epoch, 0);
  assert.equal(log.manager.durablePosition, durable);
  log.step({ kind: 'rotten', segmentId: 1, serverId: victim });
  log.step({ kind: 'rotten', segmentId: 99, serverId: victim });
  assert.deepEqual(
    log.frees.slice(1),
    [`${victim}: 1`, `${victim}: 99`],
    'told again: freed again',
  );
  assert.equal(log.manager.segment(1)?.synced, true);
});

test('with exactly R backups a rotten replica comes back to its own', () => {
  const log = new Log(3);
  closed(log);
  log.step({ kind: 'rotten', segmentId: 1, serverId: 3 });
  log.wait(20);
  assert.equal(log.writes.length, 0);
  assert.equal(log.manager.canWrite(log.nowMs), true, 'heads are not concerned');
  log.step({ kind: 'freed', segmentId: 1, serverId: 3 });
  log.wait(20);
  log.ackAll();
  assert.equal(log.manager.segment(1)?.synced, true);
});

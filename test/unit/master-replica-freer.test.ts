/** BACKUP_FREE: one message a backup for many segments, repeated until there is an answer. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ReplicaFreer } from '../../src/master/replica-freer.js';
import type { Log } from '../../src/ops/log.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { RpcLink } from '../../src/rpc/transport.js';

const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  with: () => silent,
};

class Backups {
  messages: string[] = [];
  answer: () => Promise<void> = async () => undefined;
  readonly up = new Set([2, 3]);
  readonly freer = new ReplicaFreer({
    masterId: 1,
    servers: { linkTo: (serverId) => (this.up.has(serverId) ? this.#link(serverId) : null) },
    log: silent,
  });

  #link(serverId: number): RpcLink {
    const call = async (name: string, request: { masterId: number; segmentIds: number[] }) => {
      assert.equal(name, 'BACKUP_FREE');
      assert.equal(request.masterId, 1);
      this.messages.push(`${serverId}: ${request.segmentIds.join()}`);
      await this.answer();
      return {};
    };
    return { call } as unknown as RpcLink;
  }
}

const replicas = (serverId: number, segmentIds: number[]) =>
  segmentIds.map((segmentId) => ({ serverId, segmentId }));

test('many segments are one message a backup; what comes meanwhile is the next', async () => {
  const backups = new Backups();
  let answer = (): void => undefined;
  backups.answer = () =>
    new Promise((resolve) => {
      answer = resolve;
    });
  const first = backups.freer.free(replicas(2, [5, 6, 7]));
  await sleep(1);
  const second = backups.freer.free(replicas(2, [8]));
  const third = backups.freer.free(replicas(2, [9]));
  await sleep(1);
  assert.deepEqual(backups.messages, ['2: 5,6,7']);
  answer();
  await sleep(1);
  answer();
  await Promise.all([first, second, third]);
  assert.deepEqual(backups.messages, ['2: 5,6,7', '2: 8,9']);
  assert.equal(backups.freer.counters().freesWaiting, 0);
});

test('a backup that does not answer is asked again, for longer than any fixed count', async () => {
  const backups = new Backups();
  let failures = 3;
  backups.answer = async () => {
    if (failures-- > 0) throw new RekindleError('TIMEOUT', 'slow');
  };
  // The pauses between attempts do not keep a process alive.
  const alive = setInterval(() => undefined, 1_000);
  await backups.freer.free([...replicas(2, [5]), ...replicas(3, [6])]);
  clearInterval(alive);
  assert.equal(backups.messages.filter((message) => message === '2: 5').length, 3);
  assert.equal(backups.freer.counters().freesGivenUp, 0);
});

test('a backup that has left the list is given up', async () => {
  const backups = new Backups();
  backups.answer = async () => {
    backups.up.delete(2);
    throw new RekindleError('CONNECTION_LOST', 'crashed');
  };
  const alive = setInterval(() => undefined, 1_000);
  await backups.freer.free(replicas(2, [5, 6]));
  clearInterval(alive);
  assert.deepEqual(backups.messages, ['2: 5,6']);
  assert.equal(backups.freer.counters().freesGivenUp, 2);
  assert.equal(backups.freer.counters().freesWaiting, 0);
});

test('a disk error is an answer: the backup has forgotten the replicas', async () => {
  const backups = new Backups();
  backups.answer = async () => {
    throw new RekindleError('DISK_ERROR', 'bytes may be left');
  };
  assert.equal(await backups.freer.free(replicas(2, [5, 6])), true);
  assert.deepEqual(backups.messages, ['2: 5,6']);
  assert.equal(backups.freer.counters().freeDiskErrors, 1);
  backups.up.delete(3);
  assert.equal(await backups.freer.free(replicas(3, [5])), false, 'nobody has answered');
});

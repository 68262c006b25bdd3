/** The backup's RPCs over a fake core: who may write, when answers leave, what fencing orders. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BackupService } from '../../src/backup/backup-service.js';
import { ReplicaGarbageCollector } from '../../src/backup/replica-garbage-collector.js';
import { ReplicaGarbageCollectorRuntime } from '../../src/backup/replica-garbage-collector-runtime.js';
import { encodeBackupWriteHeader } from '../../src/master/replica-manager-runtime.js';
import type { BackupCore, BackupReplica } from '../../src/native/contract.js';
import type { Log } from '../../src/ops/log.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { ServerEntry, ServerList } from '../../src/rpc/messages.js';
import { STATUS } from '../../src/rpc/status.js';
import type { BinaryCall, RpcLink } from '../../src/rpc/transport.js';

const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  with: () => silent,
};

function list(version: number, servers: [number, 'up' | 'crashed'][], clusterId = 'c'): ServerList {
  const entry = ([serverId, status]: [number, 'up' | 'crashed']): ServerEntry => ({
    serverId,
    address: 'h:1',
    host: `h${serverId}`,
    rack: null,
    master: true,
    backup: true,
    status,
    memoryBytes: 1,
  });
  return {
    version,
    clusterId,
    term: 1,
    replicas: 3,
    durability: 'fsync',
    allowSameHost: false,
    copysets: [],
    servers: servers.map(entry),
  };
}

const masterId = 5 + 3 * 2 ** 32;

function replica(segmentId: number, over: Partial<BackupReplica> = {}): BackupReplica {
  return {
    masterId,
    segmentId,
    epoch: 0,
    length: 100,
    closed: true,
    primary: false,
    doubtful: false,
    fromRestart: false,
    rotten: false,
    ...over,
  };
}

class FakeCore {
  trace: string[] = [];
  status = 0;
  diskFailed = false;
  tokens: number[] = [];
  done: (done: Float64Array) => void = () => undefined;
  replicas = (): BackupReplica[] => {
    this.trace.push('replicas');
    return [
      replica(1),
      replica(2, { length: 0, closed: false }),
      replica(3, { masterId: 99 }),
      replica(4, { rotten: true }),
    ];
  };
  write = (_body: Uint8Array, token: number): number => {
    this.tokens.push(token);
    return this.status;
  };
  onDone = (callback: (done: Float64Array) => void): void => {
    this.done = callback;
  };
  load = (results: Float64Array): void => {
    results[0] = 17;
    results[1] = 2_048;
    results[2] = this.diskFailed ? 1 : 0;
  };
  fence = async (): Promise<void> => {
    await new Promise((resolve) => setImmediate(resolve));
    this.trace.push('fenced');
  };
  digests = async () => [];
  fenced = (): number[] => [];
}

/** Boot time; the process begins at 1,000 ms. */
let nowMs = 1_000;

let leftServerId = Number.NaN;

function service(core: FakeCore, highestTerm = 0): BackupService {
  return new BackupService({
    core: core as unknown as BackupCore,
    checkTerm: (term) => {
      if (term < highestTerm) throw new RekindleError('FENCED', 'old leader');
    },
    mayBeMember: (serverId) => serverId !== leftServerId,
    log: silent,
    clock: () => nowMs,
  });
}

function writeCall(out: string[], name: string): BinaryCall {
  const header = encodeBackupWriteHeader(
    masterId,
    {
      segmentId: 1,
      replicaIndex: 0,
      serverId: 7,
      token: 1,
      epoch: 0,
      offset: 0,
      end: 0,
      checksum: 0,
      open: true,
      close: false,
      certified: false,
    },
    true,
  );
  const reply = (body: Uint8Array): unknown =>
    out.push(`${name} ok ${Buffer.from(body).toString('hex')}`);
  return {
    peer: { role: 'server', serverId: masterId, remoteAddress: '' },
    body: header,
    receivedMs: 0,
    deadlineMs: 0,
    reply,
    replyInPlace: reply,
    fail: (error) => {
      const details = error.details === undefined ? '' : ` ${JSON.stringify(error.details)}`;
      out.push(`${name} ${error.code}${details}`);
    },
  };
}

test('a write is answered when the core says that it is durable, with its load', () => {
  const core = new FakeCore();
  const backup = service(core);
  backup.applyServerList(list(1, [[masterId, 'up']]));
  const out: string[] = [];
  backup.write(writeCall(out, 'a'));
  backup.write(writeCall(out, 'b'));
  assert.deepEqual(out, []);
  const [first = 0, second = 0] = core.tokens;
  core.done(new Float64Array([second, STATUS.DISK_ERROR.number, first, 0]));
  assert.deepEqual(out, ['b DISK_ERROR', 'a ok 11000000020000002c010000']);
});

test('a write that the core has done already is answered at once', () => {
  const core = new FakeCore();
  const backup = service(core);
  backup.applyServerList(list(1, [[masterId, 'up']]));
  core.status = -1;
  const out: string[] = [];
  backup.write(writeCall(out, 'a'));
  assert.deepEqual(out, ['a ok 11000000020000002c010000']);
  assert.equal(backup.counters().writesWaiting, 0);
});

test('masters that are not up in the list may not write, nor do refusals wait', () => {
  const core = new FakeCore();
  const backup = service(core);
  const out: string[] = [];
  backup.write(writeCall(out, 'unknown'));
  leftServerId = masterId;
  backup.applyServerList(list(1, [[masterId, 'crashed']]));
  backup.write(writeCall(out, 'crashed'));
  backup.applyServerList(list(2, [[masterId, 'up']]));
  core.status = STATUS.FENCED.number;
  backup.write(writeCall(out, 'fenced'));
  assert.deepEqual(out, ['unknown RETRY', 'crashed CALLER_NOT_IN_CLUSTER', 'fenced FENCED']);
  leftServerId = Number.NaN;
  assert.equal(backup.counters().writesWaiting, 0);
});

test('replicas are listed after the fence is durable, without empty or rotten ones', async () => {
  const core = new FakeCore();
  const request = { term: 2, recoveryId: 1, crashedServerId: masterId };
  const reply = await service(core).startReadingData(request);
  assert.deepEqual(core.trace, ['fenced', 'replicas']);
  assert.deepEqual(
    reply.replicas.map(({ segmentId }) => segmentId),
    [1],
  );
  await assert.rejects(service(core, 3).startReadingData(request), { code: 'FENCED' });
});

test('every answer grants a lease; a fence ends that and says what is left', async () => {
  nowMs = 1_000;
  const core = new FakeCore();
  const backup = service(core);
  const request = { term: 2, recoveryId: 1, crashedServerId: masterId };
  assert.deepEqual(await backup.renewLease({ masterId }), { leaseMs: 0 }, 'not in the list');
  backup.applyServerList(list(1, [[masterId, 'up']]));
  const out: string[] = [];
  backup.write(writeCall(out, 'a'));
  nowMs = 5_000;
  assert.deepEqual(await backup.renewLease({ masterId }), { leaseMs: 300 });
  nowMs = 5_120;
  const fenced = backup.startReadingData(request);
  // Taken before the fence, done after it began: an answer, but no grant.
  core.done(new Float64Array([core.tokens[0] ?? 0, 0]));
  assert.deepEqual(out, ['a ok 110000000200000000000000']);
  assert.deepEqual(await backup.renewLease({ masterId }), { leaseMs: 0 });
  assert.equal((await fenced).leaseRemainderMs, 180);
  nowMs = 9_000;
  assert.equal((await backup.startReadingData(request)).leaseRemainderMs, 0);
});

test('a backup that has just started answers for the grants of its former process', async () => {
  nowMs = 2_000;
  const backup = service(new FakeCore());
  nowMs = 2_050;
  const request = { term: 2, recoveryId: 1, crashedServerId: masterId };
  assert.equal((await backup.startReadingData(request)).leaseRemainderMs, 250);
});

test('garbage: only masters that two lists of our cluster do not have any more', () => {
  const collector = new ReplicaGarbageCollector('c');
  const replicas = [replica(1), replica(2)];
  const removed = () => collector.collect(replicas, []).removedMasters;
  assert.deepEqual(removed(), [], 'no list proves nothing');
  collector.applyServerList(list(9, [], 'another'));
  assert.deepEqual([...removed(), ...removed()], [], 'a foreign list proves nothing');
  collector.applyServerList(list(5, [[masterId, 'crashed']]));
  assert.deepEqual([...removed(), ...removed()], [], 'its recovery is not over');
  collector.applyServerList(list(6, []));
  collector.applyServerList(list(4, [[masterId, 'up']]));
  assert.deepEqual(removed(), []);
  assert.deepEqual(removed(), [{ masterId, segmentIds: [1, 2] }]);
});

test('garbage: a master that is up is asked about replicas from before the start only', () => {
  const collector = new ReplicaGarbageCollector('c');
  collector.applyServerList(list(1, [[masterId, 'up']]));
  const replicas = [replica(1, { fromRestart: true }), replica(2)];
  const { questions, removedMasters } = collector.collect(replicas, [masterId]);
  assert.deepEqual(questions, [{ masterId, segmentIds: [1] }]);
  assert.deepEqual(removedMasters, []);
});

test('garbage: the fence of a removed master goes even if it left no replica', () => {
  const collector = new ReplicaGarbageCollector('c');
  collector.applyServerList(list(1, []));
  collector.collect([], [masterId]);
  const { removedMasters } = collector.collect([], [masterId]);
  assert.deepEqual(removedMasters, [{ masterId, segmentIds: [] }]);
});

test('garbage: fences of earlier processes and of recoveries never heard of go too', async () => {
  const fenced = new Set([masterId, 98]);
  const garbage = new ReplicaGarbageCollectorRuntime({
    serverId: 1,
    clusterId: 'c',
    core: {
      replicas: () => [],
      fenced: () => [...fenced],
      unfence: async (serverId: number) => void fenced.delete(serverId),
    } as unknown as BackupCore,
    linkTo: () => null,
    log: silent,
    intervalMs: 5,
  });
  garbage.applyServerList(list(7, [[98, 'crashed']]));
  const limitMs = performance.now() + 5_000;
  while (fenced.has(masterId) && performance.now() < limitMs) await sleep(5);
  await garbage.close();
  assert.deepEqual([...fenced], [98], 'a crashed server is not released yet');
});

test('garbage: what its master has written anew while it was asked about stays', async () => {
  let replicas = [replica(1, { fromRestart: true }), replica(2, { fromRestart: true })];
  const freed: number[] = [];
  const garbage = new ReplicaGarbageCollectorRuntime({
    serverId: 1,
    clusterId: 'c',
    core: {
      replicas: () => replicas,
      fenced: () => [],
      free: async (_masterId: number, segmentIds: number[]) => {
        freed.push(...segmentIds);
        replicas = replicas.filter(({ segmentId }) => !segmentIds.includes(segmentId));
      },
    } as unknown as BackupCore,
    linkTo: () =>
      ({
        call: async () => {
          replicas = [replica(1), replica(2, { fromRestart: true })];
          return { needed: [] };
        },
      }) as unknown as RpcLink,
    log: silent,
    intervalMs: 5,
  });
  garbage.applyServerList(list(7, [[masterId, 'up']]));
  const limitMs = performance.now() + 5_000;
  while (freed.length === 0 && performance.now() < limitMs) await sleep(5);
  await garbage.close();
  assert.deepEqual(freed, [2]);
});

test('a backup without a frame says whether its disk has failed', () => {
  const core = new FakeCore();
  const backup = service(core);
  backup.applyServerList(list(1, [[masterId, 'up']]));
  core.status = STATUS.NO_FREE_FRAME.number;
  const out: string[] = [];
  backup.write(writeCall(out, 'full'));
  core.diskFailed = true;
  backup.write(writeCall(out, 'failed'));
  assert.deepEqual(out, [
    'full NO_FREE_FRAME {"diskFailed":false}',
    'failed NO_FREE_FRAME {"diskFailed":true}',
  ]);
});

test('rot: a master that is up is told until it frees, whatever another one answers', async () => {
  const another = 7;
  const told: number[] = [];
  let replicas = [
    replica(1, { masterId: another, rotten: true }),
    replica(2, { rotten: true }),
    replica(3, { masterId: 99, rotten: true }),
  ];
  const garbage = new ReplicaGarbageCollectorRuntime({
    serverId: 1,
    clusterId: 'c',
    core: { replicas: () => replicas, fenced: () => [] } as unknown as BackupCore,
    linkTo: (serverId) =>
      ({
        call: async (name: string, request: { segmentIds: number[] }) => {
          assert.equal(name, 'REPORT_ROT');
          if (serverId === another) throw new RekindleError('TIMEOUT', 'slow');
          told.push(serverId, ...request.segmentIds);
          return {};
        },
      }) as unknown as RpcLink,
    log: silent,
    intervalMs: 5,
  });
  garbage.applyServerList(
    list(7, [
      [another, 'up'],
      [masterId, 'up'],
      [99, 'crashed'],
    ]),
  );
  const limitMs = performance.now() + 5_000;
  while (told.length < 4 && performance.now() < limitMs) await sleep(5);
  replicas = [];
  await garbage.close();
  assert.deepEqual(told.slice(0, 4), [masterId, 2, masterId, 2], 'the crashed one is not asked');
});

test('garbage: a disk that does not free keeps no fence and no other master', async () => {
  const fenced = new Set([masterId, 98]);
  let replicas = [replica(1), replica(2, { masterId: 98 })];
  const garbage = new ReplicaGarbageCollectorRuntime({
    serverId: 1,
    clusterId: 'c',
    core: {
      replicas: () => replicas,
      fenced: () => [...fenced],
      free: async (freedId: number) => {
        replicas = replicas.filter((each) => each.masterId !== freedId);
        throw Object.assign(new Error('bytes are left'), {
          code: String(STATUS.DISK_ERROR.number),
        });
      },
      unfence: async (serverId: number) => void fenced.delete(serverId),
    } as unknown as BackupCore,
    linkTo: () => null,
    log: silent,
    intervalMs: 5,
  });
  garbage.applyServerList(list(7, []));
  const limitMs = performance.now() + 5_000;
  while (fenced.size > 0 && performance.now() < limitMs) await sleep(5);
  await garbage.close();
  assert.deepEqual([...fenced], []);
});

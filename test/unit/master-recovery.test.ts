/** Failure paths of a recovery master, with backups, core and coordinator as small fakes. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { OwnershipNotes } from '../../src/master/ownership-notes.js';
import { RecoveryMaster } from '../../src/master/recovery-master.js';
import type { SideReplication } from '../../src/master/replica-manager-runtime.js';
import type { ServerDirectory } from '../../src/master/server-directory.js';
import type { RecoveryCore } from '../../src/native/contract.js';
import type { Log } from '../../src/ops/log.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { RequestOf } from '../../src/rpc/table.js';
import type { RpcLink } from '../../src/rpc/transport.js';

const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  with: () => silent,
};

type Finished = RequestOf<'RECOVERY_MASTER_FINISHED'>;

class Fakes {
  trace: string[] = [];
  reports: Finished[] = [];
  fetches: string[] = [];
  /** What a backup answers, by `serverId/segmentId`; a piece by default. */
  answers = new Map<
    string,
    (attempt: number) => Uint8Array | RekindleError | Promise<Uint8Array>
  >();
  replayFails: (segment: number) => RekindleError | null = () => null;
  verdict: (attempt: number) => boolean | RekindleError = () => true;
  lostOpenReplica = false;
  memory: Record<string, number> = { segmentsFree: 100, segmentsReserved: 4, memoryFull: 0 };
  #attempts = new Map<string, number>();

  readonly recovery: RecoveryCore = {
    ctimeSegmentId: 42,
    replay: async (bytes) => {
      const failure = this.replayFails(bytes[0] ?? 0);
      if (failure !== null) throw failure;
      this.trace.push(`replay ${bytes[0]}`);
      return { objects: 10, bytes: 1_000 };
    },
    sideSegments: () => [100],
    finishReplay: async () => void this.trace.push('finishReplay'),
    commit: () => {
      this.trace.push('commit');
      this.appendedPosition = 5_000;
      return this.appendedPosition;
    },
    withdraw: () => void this.trace.push('withdraw'),
    activate: () => void this.trace.push('activate'),
    abort: async () => {
      this.trace.push('abort');
      return [100];
    },
  };

  appendedPosition = 0;

  readonly replication: SideReplication = {
    trackSides: () => undefined,
    scheduleFlush: () => undefined,
    waitReplicated: async () => void this.trace.push('sides replicated'),
    waitDurable: async (position) => void this.trace.push(`durable ${position}`),
    lostOpenReplica: () => this.lostOpenReplica,
    raiseMinOpenSegment: async () => void this.trace.push('min open raised'),
    drain: async () => {
      this.trace.push('drained');
      return [{ segmentId: 100, serverId: 7 }];
    },
    free: async (replicas) => void this.trace.push(`free ${replicas.length}`),
  };

  readonly servers: ServerDirectory = {
    linkTo: (serverId) =>
      ({
        callBinary: async (
          _name: string,
          parts: readonly Uint8Array[],
          { signal }: { signal: AbortSignal },
        ) => {
          const request = JSON.parse(Buffer.concat(parts).toString()) as { segmentId: number };
          const aborted = new Promise<never>((_, reject) => {
            signal.addEventListener('abort', () => reject(new RekindleError('ABORTED', 'abort')));
          });
          return Promise.race([this.#fetch(serverId, request.segmentId), aborted]);
        },
      }) as unknown as RpcLink,
  };

  master = new RecoveryMaster({
    serverId: 1,
    notes: new OwnershipNotes({
      note: (_key, value) => void this.trace.push(value === '' ? 'forgotten' : 'claimed'),
    }),
    core: {
      openLog: () => undefined,
      startRecovery: () => this.recovery,
      rollHead: () => {
        this.trace.push('rollHead');
        this.appendedPosition = 9_000;
        return 43;
      },
      appendedPosition: () => this.appendedPosition,
      stats: () => this.memory,
    },
    replication: this.replication,
    servers: this.servers,
    coordinator: {
      call: (async (_name: string, request: Finished) => {
        this.reports.push(request);
        const verdict = this.verdict(this.reports.length);
        if (verdict instanceof RekindleError) throw verdict;
        return { committed: verdict };
      }) as unknown as RpcLink['call'],
    },
    log: silent,
  });

  async #fetch(serverId: number, segmentId: number): Promise<Uint8Array> {
    const key = `${serverId}/${segmentId}`;
    const attempt = (this.#attempts.get(key) ?? 0) + 1;
    this.#attempts.set(key, attempt);
    this.fetches.push(key);
    const answer = this.answers.get(key)?.(attempt) ?? piece(segmentId);
    if (answer instanceof RekindleError) throw answer;
    return answer;
  }

  async run(generation = 1): Promise<void> {
    this.master.start(request(generation));
    const limitMs = performance.now() + 5_000;
    while (this.master.running > 0) {
      assert.ok(performance.now() < limitMs, 'the recovery ends');
      await sleep(2);
    }
  }
}

function piece(segmentId: number): Uint8Array {
  const bytes = Buffer.alloc(9);
  bytes.writeUInt32LE(1, 0);
  bytes[8] = segmentId;
  return bytes;
}

function request(generation: number): RequestOf<'RECOVER'> {
  return {
    term: 1,
    recoveryId: 5,
    generation,
    crashedServerId: 9,
    partition: {
      partitionId: 0,
      tablets: [{ tableId: 1, startSlot: 0, endSlot: 100, ctimeSegmentId: 0 }],
    },
    tables: [{ tableId: 1, name: 'notes' }],
    segments: [1, 2, 3].map((segmentId) => ({ segmentId, length: 9, backups: [7, 8] })),
  };
}

test('the order: sides replicated, commit, durable, report, activate', async () => {
  const fakes = new Fakes();
  await fakes.run();
  const tail = fakes.trace.slice(fakes.trace.indexOf('finishReplay'));
  assert.deepEqual(tail, [
    'finishReplay',
    'sides replicated',
    'commit',
    'claimed',
    'durable 5000',
    'activate',
  ]);
  const [report] = fakes.reports;
  assert.equal(fakes.reports.length, 1);
  assert.equal(report?.ok, true);
  assert.equal(report?.ctimeSegmentId, 42);
  assert.equal(report?.objects, 30);
});

test('a failed replica costs a switch to the next one', async () => {
  const fakes = new Fakes();
  fakes.answers.set('7/2', () => new RekindleError('CHECKSUM_MISMATCH', 'rot'));
  await fakes.run();
  assert.deepEqual(
    fakes.fetches.filter((fetch) => fetch.endsWith('/2')),
    ['7/2', '8/2'],
  );
  assert.ok(fakes.trace.includes('activate'));
});

test('a piece that does not check is fetched elsewhere, nothing of it counts', async () => {
  const fakes = new Fakes();
  let bad = true;
  fakes.replayFails = (segment) => {
    if (segment !== 3 || !bad) return null;
    bad = false;
    return new RekindleError('CHECKSUM_MISMATCH', 'bad piece');
  };
  await fakes.run();
  assert.deepEqual(
    fakes.fetches.filter((fetch) => fetch.endsWith('/3')),
    ['7/3', '8/3'],
  );
  assert.equal(fakes.reports[0]?.objects, 30);
});

test('a segment that is not ready is asked for again, a silent backup once more', async () => {
  const fakes = new Fakes();
  fakes.answers.set('7/1', (attempt) =>
    attempt < 3 ? new RekindleError('SEGMENT_NOT_READY', 'later') : piece(1),
  );
  fakes.answers.set('7/2', () => new RekindleError('TIMEOUT', 'silent'));
  fakes.answers.set('8/2', (attempt) =>
    attempt < 2 ? new RekindleError('CONNECTION_LOST', 'gone') : piece(2),
  );
  await fakes.run();
  assert.equal(fakes.fetches.filter((fetch) => fetch === '7/1').length, 3);
  assert.equal(fakes.fetches.filter((fetch) => fetch === '7/2').length, 2);
  assert.ok(fakes.trace.includes('activate'));
});

test('all replicas bad: reported as failed, everything taken back', async () => {
  const fakes = new Fakes();
  for (const key of ['7/2', '8/2']) {
    fakes.answers.set(key, () => new RekindleError('CHECKSUM_MISMATCH', 'rot'));
  }
  fakes.verdict = () => false;
  await fakes.run();
  assert.equal(fakes.reports[0]?.ok, false);
  assert.match(fakes.reports[0]?.error ?? '', /segment 2/);
  assert.deepEqual(fakes.reports[0]?.unreadable, { segmentId: 2, servers: [7, 8] });
  assert.deepEqual(fakes.trace.slice(-3), ['drained', 'abort', 'free 1']);
  assert.ok(!fakes.trace.includes('commit'));
});

test('out of memory fails the partition at once', async () => {
  const fakes = new Fakes();
  fakes.replayFails = () => new RekindleError('OUT_OF_MEMORY', 'full');
  fakes.verdict = () => false;
  await fakes.run();
  assert.match(fakes.reports[0]?.error ?? '', /OUT_OF_MEMORY/);
  assert.ok(fakes.trace.includes('abort'));
});

test('the report is repeated until there is a definite answer', async () => {
  const fakes = new Fakes();
  fakes.verdict = (attempt) =>
    attempt < 3 ? new RekindleError('COORDINATOR_UNAVAILABLE', 'restarting') : true;
  await fakes.run();
  assert.equal(fakes.reports.length, 3);
  assert.equal(fakes.trace.at(-1), 'activate');
});

test('a no after the commit: replicated until a newer digest is durable, then freed', async () => {
  const fakes = new Fakes();
  fakes.verdict = () => false;
  let failures = 1;
  const { waitDurable } = fakes.replication;
  fakes.replication.waitDurable = async (position, timeoutMs) => {
    if (position === 9_000 && failures-- > 0) throw new RekindleError('TIMEOUT', 'no backups');
    await waitDurable(position, timeoutMs);
  };
  await fakes.run();
  const tail = fakes.trace.slice(fakes.trace.indexOf('durable 5000') + 1);
  assert.deepEqual(tail, [
    ...['withdraw', 'forgotten', 'rollHead', 'rollHead', 'durable 9000'],
    ...['drained', 'abort', 'free 1'],
  ]);
});

test('stopping without an answer takes nothing back: the coordinator may count on it', async () => {
  const fakes = new Fakes();
  fakes.verdict = () => new RekindleError('COORDINATOR_UNAVAILABLE', 'down');
  fakes.master.start(request(1));
  const limitMs = performance.now() + 5_000;
  while (fakes.reports.length === 0 && performance.now() < limitMs) await sleep(2);
  await fakes.master.stop();
  assert.ok(!fakes.trace.includes('abort'));
  assert.ok(!fakes.trace.includes('activate'));
});

test('a lost open side replica is forbidden before the ownership is claimed', async () => {
  const fakes = new Fakes();
  fakes.lostOpenReplica = true;
  await fakes.run();
  assert.deepEqual(fakes.trace.slice(-3), ['durable 5000', 'min open raised', 'activate']);
});

test('a repeated RECOVER starts nothing; a newer generation replaces the older', async () => {
  const fakes = new Fakes();
  fakes.master.start(request(1));
  fakes.master.start(request(1));
  assert.equal(fakes.master.running, 1);
  await fakes.run(2);
  const activated = fakes.trace.filter((line) => line === 'activate').length;
  assert.equal(activated, 1, 'one generation is served');
  assert.ok(fakes.trace.indexOf('abort') < fakes.trace.indexOf('activate'));
});

test('a silent backup is hedged: another one delivers, and nothing is replayed twice', async () => {
  const fakes = new Fakes();
  const silence = new Promise<Uint8Array>(() => undefined);
  for (const segmentId of [1, 2, 3]) fakes.answers.set(`7/${segmentId}`, () => silence);
  const startedMs = performance.now();
  await fakes.run();
  assert.ok(performance.now() - startedMs < 4_000, 'not the time-out of the call');
  assert.deepEqual(fakes.fetches.sort(), ['7/1', '7/2', '7/3', '8/1', '8/2', '8/3']);
  assert.deepEqual(fakes.trace.filter((line) => line.startsWith('replay')).sort(), [
    'replay 1',
    'replay 2',
    'replay 3',
  ]);
  assert.equal(fakes.trace.at(-1), 'activate');
});

test('a piece waits until the cleaner has made room', async () => {
  const fakes = new Fakes();
  fakes.memory.segmentsFree = 4;
  fakes.master.start(request(1));
  await sleep(60);
  assert.deepEqual(fakes.trace, []);
  fakes.memory.segmentsFree = 6;
  await fakes.run();
  assert.equal(fakes.trace.at(-1), 'activate');
});

test('tablets come back only when an older recovery has let go of them', async () => {
  const fakes = new Fakes();
  fakes.memory.segmentsFree = 4;
  fakes.master.start(request(1));
  await sleep(20);
  const overlapping = { ...request(1), recoveryId: 6 };
  fakes.master.start(overlapping);
  fakes.master.start(request(2));
  fakes.memory.segmentsFree = 100;
  const limitMs = performance.now() + 5_000;
  while (fakes.master.running > 0) {
    assert.ok(performance.now() < limitMs, 'the recoveries end');
    await sleep(2);
  }
  const ends = fakes.trace.filter((line) => line === 'abort' || line === 'activate');
  assert.deepEqual(ends, ['abort', 'activate']);
  const reports = fakes.reports.map(({ recoveryId, ok }) => [recoveryId, ok]);
  assert.deepEqual(reports, [[6, true]], 'the older one is void, its late repeat too');
});

test('segments are fetched newest first', async () => {
  const fakes = new Fakes();
  await fakes.run();
  assert.deepEqual(fakes.fetches, ['7/3', '7/2', '7/1']);
});

test('a cleaner that makes no room is waited for once, not for each piece', async () => {
  const fakes = new Fakes();
  fakes.memory.segmentsFree = 4;
  fakes.master.start(request(1));
  const startedMs = performance.now();
  while (fakes.master.running > 0 && performance.now() < startedMs + 9_000) await sleep(20);
  assert.ok(performance.now() - startedMs < 9_000, 'three pieces, one wait of five seconds');
  assert.equal(fakes.trace.at(-1), 'activate');
});

test('partitions of one recovery take turns, those of two do not wait for each other', async () => {
  const fakes = new Fakes();
  let deliver = (_: Uint8Array): void => undefined;
  const late = new Promise<Uint8Array>((resolve) => {
    deliver = resolve;
  });
  fakes.answers.set('7/1', (attempt) => (attempt === 1 ? late : piece(1)));
  const partition = (recoveryId: number, partitionId: number): RequestOf<'RECOVER'> => ({
    ...request(1),
    recoveryId,
    partition: {
      partitionId,
      tablets: [{ tableId: partitionId, startSlot: 0, endSlot: 100, ctimeSegmentId: 0 }],
    },
    segments: [{ segmentId: 1, length: 9, backups: [7] }],
  });
  fakes.master.start(partition(5, 1));
  fakes.master.start(partition(5, 2));
  fakes.master.start(partition(6, 3));
  const otherLimitMs = performance.now() + 5_000;
  while (fakes.reports.length === 0) {
    assert.ok(performance.now() < otherLimitMs, 'recovery 6 waits for nobody');
    await sleep(2);
  }
  assert.equal(fakes.fetches.length, 2, 'the second partition of recovery 5 waits');
  assert.deepEqual(
    fakes.reports.map(({ recoveryId, ok }) => [recoveryId, ok]),
    [[6, true]],
  );
  deliver(piece(1));
  const limitMs = performance.now() + 5_000;
  while (fakes.master.running > 0) {
    assert.ok(performance.now() < limitMs, 'the second partition gets its turn');
    await sleep(2);
  }
  const order = fakes.reports.map(({ partitionId }) => partitionId);
  assert.deepEqual(order, [3, 1, 2]);
});

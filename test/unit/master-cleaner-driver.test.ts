/** The steps of a cleaning pass, over a fake core and fake replication: order, waits, ends. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { CleanerDriver } from '../../src/master/cleaner-driver.js';
import type { SideReplication } from '../../src/master/replica-manager-runtime.js';
import type { CleaningPass } from '../../src/native/contract.js';
import type { Log } from '../../src/ops/log.js';
import { RekindleError } from '../../src/rpc/errors.js';

const errors: unknown[] = [];
const silent: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: (fields) => void errors.push(fields),
  with: () => silent,
};

class Fakes {
  trace: string[] = [];
  /** What `commitCleaning` returns without force; 0: the head is not open yet. */
  position: (passId: number) => number = (passId) => passId * 1_000;
  memoryShort = 0;
  lostOpenReplica = false;
  replicated: (survivors: readonly number[]) => Promise<void> = async () => undefined;
  durable: (position: number) => Promise<void> = async () => undefined;
  drained: () => Promise<void> = async () => undefined;
  emit: (pass: CleaningPass) => void = () => undefined;

  readonly replication: SideReplication = {
    trackSides: (ids) => void this.trace.push(`track ${ids.join()}`),
    scheduleFlush: () => undefined,
    waitReplicated: async (ids) => {
      await this.replicated(ids);
      this.trace.push(`replicated ${ids.join()}`);
    },
    waitDurable: async (position) => {
      await this.durable(position);
      this.trace.push(`durable ${position}`);
    },
    lostOpenReplica: () => this.lostOpenReplica,
    raiseMinOpenSegment: async () => void this.trace.push('min open raised'),
    drain: async (ids) => {
      await this.drained();
      this.trace.push(`drained ${ids.join()}`);
      return ids.map((segmentId) => ({ segmentId, serverId: 7 }));
    },
    free: async (replicas) => {
      this.trace.push(`free ${replicas.map(({ segmentId }) => segmentId).join()}`);
    },
  };

  readonly driver = new CleanerDriver({
    core: {
      onCleaningPass: (callback) => {
        this.emit = callback;
      },
      commitCleaning: (passId, force) => {
        const position = force ? passId * 1_000 + 1 : this.position(passId);
        if (position > 0) this.trace.push(`commit ${passId}${force ? ' forced' : ''}`);
        return position;
      },
      endCleaning: (passId) => void this.trace.push(`end ${passId}`),
      stats: () => ({ memoryShort: this.memoryShort }),
    },
    replication: this.replication,
    log: silent,
    faultPoint: (name) => void this.trace.push(name),
  });

  pass(passId: number): void {
    this.emit({ passId, survivors: [passId * 10], cleaned: [passId, passId + 100] });
  }

  async until(line: string): Promise<void> {
    const limitMs = performance.now() + 5_000;
    while (!this.trace.includes(line)) {
      assert.ok(performance.now() < limitMs, `${line} in time, after ${this.trace.join(', ')}`);
      await sleep(2);
    }
  }

  steps(): string[] {
    return this.trace.filter((line) => !line.startsWith('clean-'));
  }
}

test('the order of a pass, with its fault points', async () => {
  const fakes = new Fakes();
  fakes.pass(1);
  await fakes.until('clean-7');
  assert.deepEqual(fakes.trace, [
    ...['track 10', 'clean-1', 'replicated 10', 'clean-2', 'commit 1', 'clean-3'],
    ...['durable 1000', 'clean-4', 'drained 1,101', 'clean-5', 'end 1', 'clean-6'],
    ...['free 1,101', 'clean-7'],
  ]);
  assert.equal(fakes.driver.counters().cleanerPassesReplicated, 1);
});

test('an idle log gets a new head after a while; short of memory, at once', async () => {
  const fakes = new Fakes();
  fakes.position = () => 0;
  const startMs = performance.now();
  fakes.pass(1);
  await fakes.until('commit 1 forced');
  assert.ok(performance.now() - startMs >= 90, 'load was given time to open it');
  fakes.position = () => {
    throw new RekindleError('OUT_OF_MEMORY', 'no room for a head');
  };
  fakes.pass(2);
  await sleep(30);
  fakes.position = () => 0;
  fakes.memoryShort = 1;
  await fakes.until('end 2');
});

test('a pass waits for missing backups as long as it takes', async () => {
  const fakes = new Fakes();
  const failures: RekindleError[] = [
    new RekindleError('NOT_ENOUGH_BACKUPS', 'two are down'),
    new RekindleError('TIMEOUT', 'slow'),
  ];
  const fail = async (): Promise<void> => {
    const failure = failures.pop();
    if (failure !== undefined) throw failure;
  };
  fakes.replicated = fail;
  fakes.durable = fail;
  fakes.pass(1);
  await fakes.until('end 1');
  assert.deepEqual(failures, []);
});

test('a lost open copy of a survivor is forbidden before anything is freed', async () => {
  const fakes = new Fakes();
  fakes.lostOpenReplica = true;
  fakes.pass(1);
  await fakes.until('free 1,101');
  const steps = fakes.steps();
  assert.deepEqual(steps.slice(steps.indexOf('durable 1000'), -2), [
    ...['durable 1000', 'min open raised', 'drained 1,101'],
  ]);
});

test('several passes replicate at once, but commit and end in order', async () => {
  const fakes = new Fakes();
  let finishFirst = (): void => undefined;
  fakes.replicated = ([id]) =>
    id === 10
      ? new Promise((resolve) => {
          finishFirst = resolve;
        })
      : Promise.resolve();
  for (let passId = 1; passId <= 6; passId += 1) fakes.pass(passId);
  await fakes.until('replicated 40');
  assert.ok(!fakes.trace.includes('track 50'), 'four at once');
  assert.equal(fakes.driver.counters().cleanerPassesWaiting, 2);
  finishFirst();
  await fakes.until('end 6');
  const inOrder = (word: string): string[] => fakes.trace.filter((line) => line.startsWith(word));
  assert.deepEqual(
    inOrder('commit'),
    [1, 2, 3, 4, 5, 6].map((n) => `commit ${n}`),
  );
  assert.deepEqual(
    inOrder('end'),
    [1, 2, 3, 4, 5, 6].map((n) => `end ${n}`),
  );
});

test('passes that are ready enter the log with the same head', async () => {
  const fakes = new Fakes();
  const asked: number[] = [];
  let open = false;
  fakes.position = (passId) => {
    asked.push(passId);
    return open ? 9_000 : 0;
  };
  fakes.pass(1);
  fakes.pass(2);
  await sleep(20);
  assert.ok(asked.includes(2), 'the second is committed before the first has its head');
  open = true;
  await fakes.until('end 2');
  assert.ok(!fakes.trace.some((line) => line.includes('forced')));
});

test('a stop ends a pass wherever it is: nothing is reused or freed after it', async () => {
  for (const at of ['replicated', 'durable', 'drained'] as const) {
    const fakes = new Fakes();
    const waiting: ((error: RekindleError) => void)[] = [];
    fakes[at] = () => new Promise((_resolve, reject) => waiting.push(reject));
    fakes.pass(1);
    fakes.pass(2);
    await sleep(20);
    const stopped = fakes.driver.stop();
    // As the replication does when it is stopped.
    fakes[at] = () => Promise.reject(new RekindleError('SHUTTING_DOWN', 'stopping'));
    for (const reject of waiting) reject(new RekindleError('SHUTTING_DOWN', 'stopping'));
    await stopped;
    fakes.pass(3);
    assert.ok(!fakes.trace.some((line) => /^(end|free|track 30)/.test(line)), fakes.trace.join());
  }
  assert.deepEqual(errors, []);
});

test('a pass that fails does not hold up the next', async () => {
  const fakes = new Fakes();
  fakes.position = (passId) => {
    if (passId === 1) throw new RekindleError('INTERNAL', 'a bug');
    return 2_000;
  };
  fakes.pass(1);
  fakes.pass(2);
  await fakes.until('end 2');
  assert.ok(!fakes.trace.includes('end 1'));
  assert.equal(errors.splice(0).length, 1);
});

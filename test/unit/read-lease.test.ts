/**
 * Read leases: the rules of the machine, and the promise of the whole. In random histories with
 * skewed and drifting clocks, slow and lost messages and processes that stop for seconds, no master
 * holds a lease at a moment at which a recovery may have given its tablets away.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { randomStream } from '../../bench/dataset.js';
import { LeaseGrants } from '../../src/backup/lease-grants.js';
import { LeaseEnd, ReadLeases } from '../../src/coordinator/read-leases.js';
import { ReadLease, type ReadLeaseEffect } from '../../src/master/read-lease.js';
import { readLeaseMarginMs, readLeaseMs } from '../../src/rpc/read-lease-terms.js';

const worthMs = readLeaseMs - readLeaseMarginMs;

function granted(lease: ReadLease, serverId: number, sentAtMs: number, nowMs = sentAtMs) {
  return lease.step({ kind: 'granted', serverId, sentAtMs, leaseMs: readLeaseMs }, nowMs);
}

function kinds(effects: ReadLeaseEffect[]): string[] {
  return effects.map((e) => (e.kind === 'renew' ? `renew ${e.serverId}` : e.kind));
}

test('a master without a log needs no lease; with one it needs that of every holder', () => {
  const lease = new ReadLease();
  assert.ok(lease.holds(1e12));
  const effects = lease.step({ kind: 'holders', serverIds: [7, 8] }, 1_000);
  assert.deepEqual(kinds(effects), ['renew 7', 'renew 8', 'askCoordinator']);
  assert.ok(!lease.holds(1_000));
  assert.deepEqual(granted(lease, 7, 1_000, 1_005), []);
  assert.ok(!lease.holds(1_005));
  assert.deepEqual(kinds(granted(lease, 8, 1_002, 1_008)), ['regained']);
  assert.ok(lease.holds(1_000 + worthMs - 1));
  assert.ok(!lease.holds(1_000 + worthMs), 'it counts from the request, and the first to end ends');
});

test('a grant that took long is worth what is left of it; an older one shortens nothing', () => {
  const lease = new ReadLease();
  lease.step({ kind: 'holders', serverIds: [7] }, 0);
  assert.deepEqual(granted(lease, 7, 0, worthMs), [], 'over before it came');
  granted(lease, 7, 500, 510);
  granted(lease, 7, 400, 520);
  assert.ok(lease.holds(500 + worthMs - 1));
  lease.step({ kind: 'granted', serverId: 7, sentAtMs: 900, leaseMs: 0 }, 910);
  assert.ok(!lease.holds(910), 'a refusal is no grant');
});

test('grants that come with writes are not asked for; others are, each 100 ms', () => {
  const lease = new ReadLease();
  granted(lease, 7, 0);
  granted(lease, 8, 0);
  assert.deepEqual(lease.step({ kind: 'holders', serverIds: [7, 8] }, 10), []);
  granted(lease, 7, 90);
  assert.deepEqual(kinds(lease.step({ kind: 'tick' }, 110)), ['renew 8']);
  assert.deepEqual(kinds(lease.step({ kind: 'tick' }, 135)), [], 'asked already');
  assert.deepEqual(kinds(lease.step({ kind: 'tick' }, 215)), [
    'renew 7',
    'renew 8',
    'askCoordinator',
  ]);
});

test('a new head: its backups join before the old ones leave, without a gap', () => {
  const lease = new ReadLease();
  for (const id of [1, 2, 3]) granted(lease, id, 0);
  lease.step({ kind: 'holders', serverIds: [1, 2, 3] }, 0);
  for (const id of [4, 5, 6]) granted(lease, id, 50);
  lease.step({ kind: 'holders', serverIds: [1, 2, 3, 4, 5, 6] }, 60);
  assert.ok(lease.holds(worthMs - 1) && !lease.holds(worthMs));
  lease.step({ kind: 'holders', serverIds: [4, 5, 6] }, 70);
  assert.ok(lease.holds(50 + worthMs - 1));
});

test('when backups cannot vouch the coordinator does', () => {
  const lease = new ReadLease();
  granted(lease, 7, 0);
  lease.step({ kind: 'holders', serverIds: [7] }, 0);
  const effects = lease.step({ kind: 'holders', serverIds: null }, 20);
  assert.deepEqual(kinds(effects), ['askCoordinator']);
  assert.ok(!lease.holds(20), 'a lost open replica ends the lease of the others');
  const event = { kind: 'coordinatorGranted' as const, sentAtMs: 20, leaseMs: readLeaseMs };
  assert.deepEqual(kinds(lease.step(event, 22)), ['regained']);
  assert.ok(lease.holds(20 + worthMs - 1) && lease.byCoordinator(100));
  lease.step({ kind: 'holders', serverIds: [7] }, 30);
  assert.ok(!lease.byCoordinator(40));
});

test('the end of all grants: the last answer, an old coordinator, the silent for T', () => {
  const end = new LeaseEnd(400);
  end.asked(1, 100);
  end.asked(2, 110);
  assert.equal(end.atMs, 110 + readLeaseMs);
  end.answered(2, 20, 115);
  end.asked(1, 600);
  assert.equal(end.atMs, 100 + readLeaseMs, 'the first question counts');
  end.answered(1, 0, 700);
  assert.equal(end.atMs, 700);
  const leases = new ReadLeases(5_000);
  assert.equal(leases.begin(1).atMs, 5_000 + readLeaseMs, 'what an earlier process granted');
  leases.grant(2, 9_000);
  assert.equal(leases.begin(2).atMs, 9_000 + readLeaseMs);
  assert.equal(leases.begin(2).atMs, 5_000 + readLeaseMs);
});

/** A process with a clock of its own; what arrives while it is stopped happens when it goes on. */
class Process {
  readonly #offsetMs: number;
  readonly #rate: number;
  readonly #pauses: { from: number; to: number }[];

  constructor(random: () => number, pauses: number, endMs: number) {
    this.#offsetMs = random() % 1_000_000;
    this.#rate = 1 + ((random() % 2_001) - 1_000) / 100_000;
    this.#pauses = Array.from({ length: pauses }, () => {
      const from = random() % endMs;
      return { from, to: from + (random() % 2_000) };
    });
  }

  /** When a thing happens that would happen at this moment. */
  runs(atMs: number): number {
    const pause = this.#pauses.find(({ from, to }) => from <= atMs && atMs < to);
    return pause === undefined ? atMs : this.runs(pause.to);
  }

  clock(atMs: number): number {
    return this.#offsetMs + atMs * this.#rate;
  }
}

const endMs = 6_000;

class World {
  readonly random: () => number;
  readonly #queue: { atMs: number; run: (atMs: number) => void }[] = [];
  readonly master: Process;
  readonly coordinator: Process;
  readonly backups: { process: Process; grants: LeaseGrants; fenced: boolean }[];
  readonly lease = new ReadLease();
  readonly leases: ReadLeases;
  /** Nothing but clocks and stops: what is too short by a millisecond shows. */
  readonly #instant: boolean;
  /** An open replica is lost: the backups cannot vouch for the log. */
  readonly #degraded: boolean;
  /** True time from which somebody else may own the tablets. */
  servedElsewhereAtMs = Number.POSITIVE_INFINITY;
  crashed = false;
  heldMs: number[] = [];

  constructor(seed: number) {
    this.random = randomStream(seed);
    this.#instant = this.random() % 2 === 0;
    this.#degraded = this.random() % 3 === 0;
    this.master = new Process(this.random, this.random() % 4, endMs);
    this.coordinator = new Process(this.random, this.random() % 2, endMs);
    this.backups = Array.from({ length: 3 }, () => {
      const process = new Process(this.random, this.random() % 2, endMs);
      const grants = new LeaseGrants([], process.clock(0));
      grants.applyServerList(new Set([1]), new Set([1]));
      return { process, grants, fenced: false };
    });
    this.leases = new ReadLeases(this.coordinator.clock(0));
  }

  at(process: Process, atMs: number, run: (atMs: number) => void): void {
    const event = { atMs: process.runs(atMs), run };
    // Behind all that are not later.
    let [low, high] = [0, this.#queue.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#queue[middle]?.atMs ?? 0) <= event.atMs) low = middle + 1;
      else high = middle;
    }
    this.#queue.splice(low, 0, event);
  }

  delay(maxMs: number): number {
    return this.#instant ? 0 : this.random() % maxMs;
  }

  /** A message: mostly quick, sometimes late, seldom lost. */
  send(to: Process, atMs: number, run: (atMs: number) => void): void {
    const dice = this.random() % 100;
    if (dice < 5) return;
    this.at(to, atMs + this.delay(dice < 20 ? 500 : 8), run);
  }

  perform(effects: ReadLeaseEffect[], nowMs: number): void {
    const sentAtMs = this.master.clock(nowMs);
    for (const effect of effects) {
      // The machine may be stopped between taking the time and sending.
      const leavesAtMs = this.master.runs(nowMs + this.delay(3));
      if (effect.kind === 'renew') this.renew(effect.serverId, sentAtMs, leavesAtMs);
      if (effect.kind === 'askCoordinator') this.askCoordinator(sentAtMs, leavesAtMs);
    }
  }

  renew(serverId: number, sentAtMs: number, leavesAtMs: number): void {
    const backup = this.backups[serverId];
    assert.ok(backup);
    this.send(backup.process, leavesAtMs, (atMs) => {
      const leaseMs = backup.grants.grant(1, backup.process.clock(atMs));
      this.send(this.master, backup.process.runs(atMs + this.delay(3)), (backMs) => {
        const event = { kind: 'granted' as const, serverId, sentAtMs, leaseMs };
        this.perform(this.lease.step(event, this.master.clock(backMs)), backMs);
      });
    });
  }

  askCoordinator(sentAtMs: number, leavesAtMs: number): void {
    this.send(this.coordinator, leavesAtMs, (atMs) => {
      const leaseMs = this.crashed ? 0 : this.leases.grant(1, this.coordinator.clock(atMs));
      this.send(this.master, atMs, (backMs) => {
        const event = { kind: 'coordinatorGranted' as const, sentAtMs, leaseMs };
        this.perform(this.lease.step(event, this.master.clock(backMs)), backMs);
      });
    });
  }

  /** The verdict; then a fence of some backups, at least one of which is a holder. */
  recover(atMs: number): void {
    this.crashed = true;
    const end = this.leases.begin(1);
    const asked = this.backups.filter((_, n) => n === 0 || this.random() % 2 === 0);
    let unanswered = asked.length;
    const lookAgain = (nowMs: number): void => {
      const leftMs = end.atMs - this.coordinator.clock(nowMs);
      if (leftMs <= 0) this.servedElsewhereAtMs = nowMs;
      else this.at(this.coordinator, nowMs + leftMs / 2 + 1, lookAgain);
    };
    for (const [n, backup] of asked.entries()) {
      end.asked(n, this.coordinator.clock(atMs));
      const reach = (triedMs: number): void => {
        this.at(backup.process, triedMs + this.delay(300), (fencedMs) => {
          backup.grants.fence(1);
          const answeredMs = backup.process.runs(fencedMs + this.delay(20));
          const leftMs = backup.grants.remainderMs(1, backup.process.clock(answeredMs));
          this.at(this.coordinator, answeredMs + this.delay(100), (heardMs) => {
            end.answered(n, leftMs, this.coordinator.clock(heardMs));
            unanswered -= 1;
            if (unanswered === 0) lookAgain(heardMs);
          });
        });
      };
      reach(atMs);
    }
  }

  /** Read, then look at the lease, perhaps much later. */
  read(atMs: number): void {
    const checkedMs = this.master.runs(atMs + this.delay(5));
    if (!this.lease.holds(this.master.clock(checkedMs))) return;
    this.heldMs.push(checkedMs);
  }

  run(): void {
    const serverIds = this.#degraded ? null : [0, 1, 2];
    this.perform(this.lease.step({ kind: 'holders', serverIds }, this.master.clock(0)), 0);
    for (let ms = 0; ms < endMs; ms += 25) {
      this.at(this.master, ms, (atMs) => {
        this.perform(this.lease.step({ kind: 'tick' }, this.master.clock(atMs)), atMs);
      });
    }
    for (let ms = 0; ms < endMs; ms += 3) this.at(this.master, ms, (atMs) => this.read(atMs));
    this.at(this.coordinator, 1_000 + (this.random() % 2_000), (atMs) => this.recover(atMs));
    for (;;) {
      const event = this.#queue.shift();
      if (event === undefined) return;
      event.run(event.atMs);
    }
  }
}

test('no lease holds once the tablets may be served elsewhere, whatever clocks do', () => {
  let [held, recovered] = [0, 0];
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 2 ** 31 - 1 }), (seed) => {
      const world = new World(seed);
      world.run();
      const servedMs = world.servedElsewhereAtMs;
      const late = world.heldMs.filter((atMs) => atMs >= servedMs);
      assert.deepEqual(late, [], `a lease held after ${servedMs}`);
      held += world.heldMs.length;
      recovered += Number.isFinite(servedMs) ? 1 : 0;
    }),
    { numRuns: 300 },
  );
  assert.ok(held > 1_000, 'leases were held');
  assert.equal(recovered, 300, 'every recovery ended');
});

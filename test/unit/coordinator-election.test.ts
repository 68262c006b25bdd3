/**
 * The election as a pure machine: each rule by itself, then random schedules with candidates that
 * die, stand still and are deaf, and a storage whose answers are late, repeated, lost or in the
 * wrong order. `SEED` and `RUNS` repeat or prolong them.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  ELECTION_DEFAULTS,
  Election,
  type ElectionEffect,
  type ElectionEvent,
} from '../../src/coordinator/election.js';
import type {
  LeaderState,
  Leadership,
} from '../../src/coordinator/external-storage/external-storage.js';
import type { ProbeOutcome } from '../../src/rpc/messages.js';

const { silenceMs, refusalsApartMs, restMs } = ELECTION_DEFAULTS;

const leaderOf = (candidateId: string, version: number, term = version): Leadership => ({
  candidateId,
  version,
  term,
  address: `${candidateId}:1`,
});
const says = (leader: Leadership | null, version = leader?.version ?? 0): ElectionEvent => ({
  kind: 'leader',
  leaderState: { version, leader },
});
const tick = { kind: 'tick', patienceMs: 0 } as const;
const kinds = (effects: ElectionEffect[]): string[] => effects.map(({ kind }) => kind);

test('without a leader it campaigns at once, above every term that it has heard of', () => {
  const election = new Election('a', 'a:1');
  assert.deepEqual(election.step(tick, 0), []);
  election.raiseTerm(6);
  const effects = election.step(says(null), 0);
  const candidacy = { term: 7, candidateId: 'a', address: 'a:1' };
  assert.deepEqual(effects, [{ kind: 'campaign', found: null, candidacy }]);
  const leader = leaderOf('a', 3, 7);
  assert.deepEqual(kinds(election.step({ kind: 'campaigned', leader }, 1)), ['lead']);
  // The watch tells it too, and something older.
  assert.deepEqual(election.step(says(leader), 2), []);
  assert.deepEqual(election.step(says(null, 2), 3), []);
  assert.equal(election.leading, leader);
});

test('two refusals prove the death of a process; one, or an answer in between, does not', () => {
  const election = new Election('a', 'a:1');
  assert.deepEqual(kinds(election.step(says(leaderOf('b', 5)), 0)), ['probe']);
  const probed = (outcome: ProbeOutcome): ElectionEvent => ({
    kind: 'probed',
    version: 5,
    outcome,
  });
  assert.deepEqual(election.step(probed('refused'), 1), []);
  assert.deepEqual(kinds(election.step(tick, 1 + refusalsApartMs)), ['probe']);
  assert.deepEqual(election.step(probed('alive'), 30), []);
  assert.deepEqual(kinds(election.step({ kind: 'connection-lost', version: 5 }, 40)), ['probe']);
  assert.deepEqual(election.step(probed('refused'), 41), []);
  assert.deepEqual(kinds(election.step(tick, 41 + refusalsApartMs)), ['probe']);
  const [campaign] = election.step(probed('refused'), 42 + refusalsApartMs);
  assert.equal(campaign?.kind, 'campaign');
  assert.ok(campaign.kind === 'campaign' && campaign.candidacy.term === 6);
  assert.deepEqual(campaign.found, leaderOf('b', 5));
});

test('silence counts from the end of the first silent probe, and grows with patience', () => {
  const election = new Election('a', 'a:1');
  election.step(says(leaderOf('b', 5)), 0);
  const silent: ElectionEvent = { kind: 'probed', version: 5, outcome: 'silent' };
  for (let now = 250; now + 100 < 250 + silenceMs; now += 350) {
    assert.deepEqual(kinds(election.step(silent, now)), []);
    assert.deepEqual(kinds(election.step(tick, now + 100)), ['probe']);
  }
  const late = 250 + silenceMs;
  assert.deepEqual(kinds(election.step({ kind: 'tick', patienceMs: 10 }, late)), []);
  assert.deepEqual(kinds(election.step(tick, late)), ['campaign']);
});

test('who has our address is gone; who was deposed rests, but not while nobody leads', () => {
  const election = new Election('a', 'a:1');
  const former = { ...leaderOf('old', 5), address: 'a:1' };
  assert.deepEqual(kinds(election.step(says(former), 0)), ['campaign']);
  election.step({ kind: 'campaigned', leader: leaderOf('a', 6) }, 1);
  assert.deepEqual(kinds(election.step(says(leaderOf('b', 7)), 2)), ['deposed', 'probe']);
  const refused: ElectionEvent = { kind: 'probed', version: 7, outcome: 'refused' };
  election.step(refused, 10);
  election.step(tick, 40);
  assert.deepEqual(kinds(election.step(refused, 41)), []);
  assert.deepEqual(kinds(election.step(tick, 2 + restMs)), ['campaign']);
  election.step({ kind: 'campaign-failed' }, 3 + restMs);
  assert.deepEqual(kinds(election.step(says(null, 8), 60 + restMs)), ['campaign']);
});

/** Of small numbers, repeatable. */
function randomOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

interface Member {
  id: string;
  election: Election;
  alive: boolean;
  deafUntilMs: number;
  /** What is on its way to it. */
  inbox: { atMs: number; event: ElectionEvent }[];
  /** What it has asked of the storage and is on its way there. */
  outbox: { atMs: number; effect: Extract<ElectionEffect, { kind: 'campaign' }> }[];
  starts: number;
}

class World {
  nowMs = 0;
  calm = false;
  record: LeaderState = { version: 0, leader: null };
  reigns = 0;
  readonly members: Member[];
  readonly led = new Set<string>();

  constructor(
    readonly random: () => number,
    count: number,
  ) {
    this.members = Array.from({ length: count }, (_, index) => this.member(`m${index}`, 0));
    for (const member of this.members) this.start(member);
  }

  step(): void {
    this.nowMs += 10;
    for (const member of this.members) {
      if (!this.calm) this.hurt(member);
      this.arrive(member);
      if (!member.alive || this.nowMs < member.deafUntilMs) continue;
      this.deliver(member);
      this.give(member, { kind: 'tick', patienceMs: 0 });
    }
  }

  /** Everybody who believes to lead and whom the storage would let commit. */
  rulers(): Member[] {
    return this.members.filter(
      ({ alive, election }) => alive && election.leading?.version === this.record.version,
    );
  }

  private member(name: string, starts: number): Member {
    const id = `${name}-${starts}`;
    // A process that is started again has its address, and another id.
    const election = new Election(id, `${name}:1`);
    return { id, election, alive: true, deafUntilMs: 0, inbox: [], outbox: [], starts };
  }

  private start(member: Member): void {
    this.give(member, { kind: 'leader', leaderState: this.record });
  }

  private hurt(member: Member): void {
    const chance = this.random();
    const name = member.id.split('-')[0] ?? '';
    if (chance < 0.002) {
      member.alive = false;
      member.inbox.length = 0;
    } else if (chance < 0.01 && !member.alive) {
      const index = this.members.indexOf(member);
      const anew = this.member(name, member.starts + 1);
      // What the dead one has sent still arrives.
      anew.outbox = member.outbox;
      this.members[index] = anew;
      this.start(anew);
    } else if (chance > 0.998) member.deafUntilMs = this.nowMs + 3_000 * this.random();
    else if (chance > 0.997 && member.election.leading?.version === this.record.version) {
      this.write(null);
    }
  }

  private give(member: Member, event: ElectionEvent): void {
    for (const effect of member.election.step(event, this.nowMs)) this.perform(member, effect);
  }

  private perform(member: Member, effect: ElectionEffect): void {
    const atMs = this.nowMs + this.delayMs();
    switch (effect.kind) {
      case 'campaign':
        member.outbox.push({ atMs, effect });
        break;
      case 'probe':
        member.inbox.push({ atMs, event: this.probe(member, effect.leader) });
        break;
      case 'lead': {
        const key = `${effect.leadership.version}`;
        assert.ok(!this.led.has(key), `version ${key} begins once`);
        this.led.add(key);
        assert.equal(effect.leadership.candidateId, member.id);
        break;
      }
      case 'deposed':
        break;
    }
  }

  private probe(member: Member, { version, candidateId }: Leadership): ElectionEvent {
    const leader = this.members.find(({ id }) => id === candidateId);
    const hears = leader?.alive && this.nowMs >= leader.deafUntilMs;
    const wrong = !this.calm && this.random() < 0.1;
    const outcome: ProbeOutcome =
      wrong && this.random() < 0.5
        ? 'refused'
        : wrong
          ? 'unknown'
          : leader === undefined || !leader.alive
            ? 'refused'
            : hears
              ? 'alive'
              : 'silent';
    assert.notEqual(member.id, candidateId);
    return { kind: 'probed', version, outcome };
  }

  /** Requests of campaigns reach the storage: late, twice, or not at all. */
  private arrive(member: Member): void {
    for (const sent of member.outbox.splice(0)) {
      if (this.nowMs < sent.atMs) member.outbox.push(sent);
      else this.campaign(member, sent);
    }
  }

  private campaign(member: Member, { effect }: Member['outbox'][number]): void {
    const lost = !this.calm && this.random() < 0.2;
    const { candidacy, found } = effect;
    if (!lost && found?.version === this.record.leader?.version) this.write(candidacy);
    const { leader } = this.record;
    if (!this.calm && this.random() < 0.1) member.outbox.push({ atMs: this.nowMs + 500, effect });
    if (candidacy.candidateId !== member.id) return;
    const unheard = lost || leader === null || (!this.calm && this.random() < 0.2);
    const event: ElectionEvent = unheard
      ? { kind: 'campaign-failed' }
      : { kind: 'campaigned', leader };
    member.inbox.push({ atMs: this.nowMs + this.delayMs(), event });
  }

  private write(candidacy: Omit<Leadership, 'version'> | null): void {
    const version = this.record.version + 1;
    if (candidacy !== null) {
      this.reigns += 1;
      const { term, candidateId } = candidacy;
      const before = this.record.leader?.term ?? 0;
      assert.ok(term > before, `term ${term} of ${candidateId} after ${before}`);
    }
    this.record = { version, leader: candidacy === null ? null : { ...candidacy, version } };
    for (const member of this.members) {
      const event: ElectionEvent = { kind: 'leader', leaderState: this.record };
      // In any order; a watch that is lost is made up for by reading.
      member.inbox.push({ atMs: this.nowMs + this.delayMs(), event });
    }
  }

  private deliver(member: Member): void {
    for (const sent of member.inbox.splice(0)) {
      if (this.nowMs < sent.atMs) member.inbox.push(sent);
      else this.give(member, sent.event);
    }
  }

  private delayMs(): number {
    return this.calm ? 5 : this.random() < 0.1 ? 800 * this.random() : 20 * this.random();
  }
}

test('random schedules: one may commit at a time, terms grow, and there is a leader again', () => {
  const runs = Number(process.env.RUNS ?? 300);
  const first = Number(process.env.SEED ?? 1);
  let reigns = 0;
  for (let seed = first; seed < first + runs; seed++) {
    try {
      const random = randomOf(seed);
      const world = new World(random, 2 + Math.floor(3 * random()));
      for (let i = 0; i < 1_500; i++) {
        world.step();
        assert.ok(world.rulers().length <= 1, 'at most one may commit');
      }
      world.calm = true;
      const somebody = world.members.some(({ alive }) => alive);
      for (let i = 0; i < 1_500; i++) world.step();
      assert.equal(world.rulers().length, somebody ? 1 : 0, 'there is a leader in the end');
      reigns += world.reigns;
    } catch (error) {
      throw new Error(`SEED=${seed} RUNS=1: ${error}`, { cause: error });
    }
  }
  assert.ok(reigns > 3 * runs, `${reigns} reigns in ${runs} runs are too few to prove anything`);
});

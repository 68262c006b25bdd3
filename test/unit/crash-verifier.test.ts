/** Who may be declared crashed on whose word, and what holds a verdict up. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CrashVerifier, type CrashVerifierEffect } from '../../src/coordinator/crash-verifier.js';
import type { ProbeOutcome } from '../../src/rpc/messages.js';

const suspect = 1;

/** Suspects a server and plays its rounds; `answers[0]` is the coordinator's own probe. */
class Rounds {
  readonly verifier = new CrashVerifier();
  round = 1;
  nowMs = 0;

  constructor(
    readonly up: number,
    readonly serverId = suspect,
    verifier?: CrashVerifier,
  ) {
    this.verifier = verifier ?? this.verifier;
    const event = { kind: 'suspected' as const, serverId };
    const first = this.verifier.step(event, up, this.nowMs);
    for (const effect of first) if (effect.kind === 'ask') this.round = effect.round;
    assert.deepEqual(first, [{ kind: 'ask', serverId, round: this.round, afterMs: 0 }]);
    assert.deepEqual(this.verifier.step(event, up, this.nowMs), [], 'one suspicion at a time');
  }

  play(...answers: ProbeOutcome[]): CrashVerifierEffect[] {
    const { round, serverId, up } = this;
    const witnesses = answers.length - 1;
    this.verifier.step({ kind: 'asked', serverId, round, witnesses }, up, this.nowMs);
    const effects = answers.flatMap((outcome, n) => {
      const witness = n === 0 ? null : n + 1;
      const event = { kind: 'probed' as const, serverId, round, witness, outcome };
      return this.verifier.step(event, up, this.nowMs);
    });
    for (const effect of effects) if (effect.kind === 'ask') this.round = effect.round;
    return effects;
  }

  kinds(...answers: ProbeOutcome[]): string[] {
    return this.play(...answers).map((effect) =>
      effect.kind === 'held-up' ? effect.obstacle : effect.kind,
    );
  }
}

test('two that are refused are enough, before a third has answered', () => {
  const rounds = new Rounds(5);
  const verdict = {
    kind: 'crashed',
    serverId: suspect,
    suspectedAtMs: 0,
    reason: 'its address refuses the connection',
  };
  assert.deepEqual(rounds.play('refused', 'refused', 'silent'), [verdict]);
  const others = new Rounds(5);
  assert.deepEqual(others.play('silent', 'refused', 'refused'), [verdict], 'two servers');
});

test('the coordinator and one server, or two servers, that hear nothing are enough', () => {
  assert.deepEqual(new Rounds(5).kinds('silent', 'silent', 'unknown'), ['crashed']);
  assert.deepEqual(new Rounds(5).kinds('refused', 'silent', 'unknown'), ['crashed']);
  assert.deepEqual(new Rounds(2).kinds('silent', 'silent'), ['crashed'], 'a cluster of two');
});

test('an answer to the coordinator clears; one to a witness is a dispute', () => {
  assert.deepEqual(new Rounds(5).kinds('alive', 'silent', 'silent'), ['cleared']);
  const rounds = new Rounds(5);
  assert.deepEqual(rounds.kinds('silent', 'silent', 'alive'), ['disputed', 'ask']);
  assert.deepEqual(rounds.kinds('refused', 'alive', 'refused'), ['ask'], 'said once');
  assert.equal(rounds.verifier.heldUp()[0]?.obstacle, 'disputed');
  assert.deepEqual(rounds.kinds('alive'), ['cleared']);
  assert.deepEqual(rounds.verifier.heldUp(), []);
});

test('what witnesses say late of a suspicion that was cleared does not count in the next', () => {
  const before = new Rounds(5);
  const { verifier, round } = before;
  verifier.step({ kind: 'asked', serverId: suspect, round, witnesses: 2 }, 5, 0);
  const report = (of: number, witness: number | null, outcome: ProbeOutcome): string[] =>
    verifier
      .step({ kind: 'probed', serverId: suspect, round: of, witness, outcome }, 5, 0)
      .map(({ kind }) => kind);
  assert.deepEqual(report(round, null, 'alive'), ['cleared']);
  const again = new Rounds(5, suspect, verifier);
  verifier.step({ kind: 'asked', serverId: suspect, round: again.round, witnesses: 2 }, 5, 0);
  for (const witness of [2, 3]) assert.deepEqual(report(round, witness, 'silent'), []);
  assert.deepEqual(report(again.round, 4, 'silent'), [], 'two more are awaited');
  assert.deepEqual(report(again.round, null, 'alive'), ['cleared']);
});

test('without a witness there is no verdict, however often', () => {
  const rounds = new Rounds(5);
  const seen = Array.from({ length: 10 }, () => rounds.kinds('silent', 'unknown', 'unknown'));
  assert.ok(!seen.flat().includes('crashed'));
  assert.equal(seen.flat().filter((kind) => kind === 'no-witness').length, 1);
  const refused = new Rounds(3);
  for (let i = 0; i < 10; i += 1)
    assert.ok(!refused.kinds('refused', 'unknown').includes('crashed'));
});

test('the only server of a cluster: refused twice it is dead, silent it is not', () => {
  const refused = new Rounds(1);
  assert.deepEqual(refused.play('refused'), [
    { kind: 'ask', serverId: suspect, round: 2, afterMs: 20 },
  ]);
  assert.deepEqual(refused.kinds('refused'), ['crashed']);
  const silent = new Rounds(1);
  for (let i = 0; i < 10; i += 1) assert.ok(!silent.kinds('silent').includes('crashed'));
});

test('a coordinator that hears less than half of the servers declares none by silence', () => {
  const verifier = new CrashVerifier();
  const suspects = [1, 2, 3].map((serverId) => new Rounds(5, serverId, verifier));
  for (const rounds of suspects) {
    assert.deepEqual(rounds.kinds('silent', 'silent', 'silent'), ['coordinator-cut-off', 'ask']);
  }
  // A process that is gone is gone, however many are.
  assert.deepEqual(suspects[0]?.kinds('refused', 'refused'), ['crashed']);
});

test('silence never takes more than half of the servers within five seconds', () => {
  const verifier = new CrashVerifier();
  let up = 5;
  const silence = (serverId: number, nowMs: number): string[] => {
    const rounds = new Rounds(up, serverId, verifier);
    rounds.nowMs = nowMs;
    const kinds = rounds.kinds('silent', 'silent', 'silent');
    if (kinds.includes('crashed')) up -= 1;
    else verifier.step({ kind: 'left', serverId }, up, nowMs);
    return kinds;
  };
  assert.deepEqual(silence(1, 1_000), ['crashed']);
  assert.deepEqual(silence(2, 1_000), ['crashed']);
  assert.deepEqual(silence(3, 1_000), ['too-many-at-once', 'ask']);
  assert.deepEqual(silence(3, 5_900), ['too-many-at-once', 'ask']);
  assert.deepEqual(silence(3, 6_100), ['crashed'], 'the window is over');
});

test('reports of an earlier round mean nothing, nor do those for a server that left', () => {
  const rounds = new Rounds(5);
  rounds.play('silent', 'unknown');
  const late = { kind: 'probed' as const, serverId: suspect, round: 1, witness: 3 };
  assert.deepEqual(rounds.verifier.step({ ...late, outcome: 'refused' }, 5, 0), []);
  rounds.verifier.step({ kind: 'left', serverId: suspect }, 5, 0);
  assert.deepEqual(rounds.play('refused', 'refused'), []);
});

test('no verdict without two that could not reach it, none against one that could', () => {
  const outcome = fc.constantFrom<ProbeOutcome>('alive', 'refused', 'silent', 'unknown');
  const round = fc.array(outcome, { minLength: 1, maxLength: 3 });
  fc.assert(
    fc.property(fc.integer({ min: 2, max: 9 }), fc.array(round, { maxLength: 12 }), (up, plays) => {
      const rounds = new Rounds(up);
      for (const answers of plays) {
        const kinds = rounds.kinds(...answers);
        if (kinds.includes('cleared')) return;
        if (!kinds.includes('crashed')) continue;
        const against = answers.filter((each) => each === 'refused' || each === 'silent');
        assert.ok(against.length >= 2);
        // Two refusals decide before a later answer; else nobody has reached it.
        const refusals = answers.filter((each) => each === 'refused').length;
        assert.ok(!answers.includes('alive') || refusals >= 2);
        return;
      }
    }),
  );
});

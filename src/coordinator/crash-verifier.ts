/**
 * Decides whether suspected servers are dead. A verdict needs **two witnesses** that cannot reach
 * the suspect: the coordinator and a server, or two servers; and nobody among those asked who can.
 * Each round of questions goes to the coordinator's own probe and to up to two other servers.
 *
 *  - Refusal by two: the process is gone. No limit: it is a proof.
 *  - Silence: the coordinator may be the one that is cut off. So it must reach at least half of the
 *    servers, and within `silenceWindowMs` silence takes no more than half of them (from two on).
 *  - It answers a witness but not the coordinator: no verdict, whoever is right.
 *  - No witness answers: no verdict. Only the refusal of a cluster's one server counts by itself.
 *
 * A suspect without a verdict stays one and is asked about again. Pure: events in, effects out;
 * probes and their time-outs belong to `failure-monitor.ts`.
 */
import type { ProbeOutcome } from '../rpc/messages.js';

export interface CrashVerifierConfig {
  /** Refusals in a row that end the only server of a cluster. */
  refusalsAlone: number;
  refusalPauseMs: number;
  silenceWindowMs: number;
  /** Pause before the next round when no witness has answered; the longer one after some such. */
  undecidedPauseMs: number;
  /** The same when something has saved the suspect. */
  limitedPauseMs: number;
}

export const CRASH_VERIFIER_DEFAULTS: CrashVerifierConfig = {
  refusalsAlone: 2,
  refusalPauseMs: 20,
  silenceWindowMs: 5_000,
  undecidedPauseMs: 100,
  limitedPauseMs: 1_000,
};

/** Why a suspect is not declared crashed. */
export type Obstacle = 'disputed' | 'no-witness' | 'coordinator-cut-off' | 'too-many-at-once';

export type CrashVerifierEvent =
  | { kind: 'suspected'; serverId: number }
  /** The questions of a round are on their way; `witnesses`: other servers that were asked. */
  | { kind: 'asked'; serverId: number; round: number; witnesses: number }
  /** `witness`: null for the coordinator's own probe. Each one asked reports exactly once. */
  | {
      kind: 'probed';
      serverId: number;
      round: number;
      witness: number | null;
      outcome: ProbeOutcome;
    }
  | { kind: 'left'; serverId: number };

export type CrashVerifierEffect =
  /** Begin this round `afterMs` from now: an `asked` event, then one `probed` event from each. */
  | { kind: 'ask'; serverId: number; round: number; afterMs: number }
  | { kind: 'crashed'; serverId: number; suspectedAtMs: number; reason: string }
  | { kind: 'cleared'; serverId: number }
  /** Told once per obstacle and suspicion. */
  | { kind: 'held-up'; serverId: number; obstacle: Obstacle };

interface Suspect {
  suspectedAtMs: number;
  /** Of the questions that are under way. */
  round: number;
  /** Of this suspicion so far, the present one included. */
  rounds: number;
  /** Reports that the round still waits for; null before `asked`. */
  waitingFor: number | null;
  refused: number;
  silent: number;
  alive: number;
  refusalsAloneInRow: number;
  obstacle: Obstacle | null;
}

const UNDECIDED_ROUNDS_QUICK = 5;

export class CrashVerifier {
  private readonly suspects = new Map<number, Suspect>();
  /** Times of the deaths declared by silence, oldest first. */
  private silentDeathsMs: number[] = [];
  /**
   * No number is used twice, whatever the suspect: a witness may report long after the coordinator
   * has cleared it, when it is suspected anew, and its silence of then would count as one of now.
   */
  private lastRound = 0;

  constructor(private readonly config: CrashVerifierConfig = CRASH_VERIFIER_DEFAULTS) {}

  isSuspected(serverId: number): boolean {
    return this.suspects.has(serverId);
  }

  /** Suspects that cannot be judged at present, and since when they are suspected. */
  heldUp(): { serverId: number; suspectedAtMs: number; obstacle: Obstacle }[] {
    return [...this.suspects].flatMap(([serverId, { suspectedAtMs, obstacle }]) =>
      obstacle === null ? [] : [{ serverId, suspectedAtMs, obstacle }],
    );
  }

  /** `upServers`: how many servers the list has as up at this moment, the suspect among them. */
  step(event: CrashVerifierEvent, upServers: number, nowMs: number): CrashVerifierEffect[] {
    const { serverId } = event;
    if (event.kind === 'left') {
      this.suspects.delete(serverId);
      return [];
    }
    if (event.kind === 'suspected') {
      if (this.suspects.has(serverId)) return [];
      const round = ++this.lastRound;
      this.suspects.set(serverId, newSuspect(nowMs, round));
      return [{ kind: 'ask', serverId, round, afterMs: 0 }];
    }
    const suspect = this.suspects.get(serverId);
    if (suspect === undefined || suspect.round !== event.round) return [];
    if (event.kind === 'asked') {
      suspect.waitingFor = event.witnesses + 1;
      return [];
    }
    return this.probed(event, suspect, upServers, nowMs);
  }

  private probed(
    event: Extract<CrashVerifierEvent, { kind: 'probed' }>,
    suspect: Suspect,
    upServers: number,
    nowMs: number,
  ): CrashVerifierEffect[] {
    const { serverId, witness, outcome } = event;
    if (suspect.waitingFor === null) return [];
    suspect.waitingFor--;
    if (witness === null && outcome === 'alive') {
      this.suspects.delete(serverId);
      return [{ kind: 'cleared', serverId }];
    }
    if (outcome === 'alive') suspect.alive++;
    if (outcome === 'refused') suspect.refused++;
    if (outcome === 'silent') suspect.silent++;
    if (suspect.alive === 0 && suspect.refused >= 2) {
      return this.declare(serverId, suspect, 'its address refuses the connection');
    }
    return suspect.waitingFor > 0 ? [] : this.endRound(serverId, suspect, upServers, nowMs);
  }

  private endRound(
    serverId: number,
    suspect: Suspect,
    upServers: number,
    nowMs: number,
  ): CrashVerifierEffect[] {
    if (suspect.alive > 0) {
      return this.holdUp(serverId, suspect, 'disputed', this.config.limitedPauseMs);
    }
    if (suspect.refused + suspect.silent >= 2) {
      const limit = this.limitOnSilence(upServers, nowMs);
      if (limit !== null) return this.holdUp(serverId, suspect, limit, this.config.limitedPauseMs);
      this.silentDeathsMs.push(nowMs);
      return this.declare(serverId, suspect, 'it does not answer');
    }
    return this.undecided(serverId, suspect, upServers);
  }

  /** At most one of those asked has said anything. */
  private undecided(serverId: number, suspect: Suspect, upServers: number): CrashVerifierEffect[] {
    const { refusalPauseMs, refusalsAlone, undecidedPauseMs, limitedPauseMs } = this.config;
    if (upServers <= 1 && suspect.refused > 0) {
      suspect.refusalsAloneInRow++;
      return suspect.refusalsAloneInRow >= refusalsAlone
        ? this.declare(serverId, suspect, 'its address refuses the connection')
        : [this.nextRound(serverId, suspect, refusalPauseMs)];
    }
    suspect.refusalsAloneInRow = 0;
    const quick = suspect.rounds < UNDECIDED_ROUNDS_QUICK;
    const pauseMs = quick ? undecidedPauseMs : limitedPauseMs;
    // A witness that was busy once is an accident, which needs no warning.
    return quick
      ? [this.nextRound(serverId, suspect, pauseMs)]
      : this.holdUp(serverId, suspect, 'no-witness', pauseMs);
  }

  private limitOnSilence(up: number, nowMs: number): Obstacle | null {
    if (up - this.suspects.size < up / 2) return 'coordinator-cut-off';
    const since = nowMs - this.config.silenceWindowMs;
    this.silentDeathsMs = this.silentDeathsMs.filter((atMs) => atMs > since);
    const deaths = this.silentDeathsMs.length + 1;
    const serversAtFirst = up + this.silentDeathsMs.length;
    return deaths >= 2 && deaths > serversAtFirst / 2 ? 'too-many-at-once' : null;
  }

  private holdUp(
    serverId: number,
    suspect: Suspect,
    obstacle: Obstacle,
    pauseMs: number,
  ): CrashVerifierEffect[] {
    const news = suspect.obstacle !== obstacle;
    suspect.obstacle = obstacle;
    const next = this.nextRound(serverId, suspect, pauseMs);
    return news ? [{ kind: 'held-up', serverId, obstacle }, next] : [next];
  }

  private nextRound(serverId: number, suspect: Suspect, afterMs: number): CrashVerifierEffect {
    const round = ++this.lastRound;
    const { suspectedAtMs, refusalsAloneInRow, obstacle } = suspect;
    const rounds = suspect.rounds + 1;
    const fresh = newSuspect(suspectedAtMs, round);
    this.suspects.set(serverId, { ...fresh, rounds, refusalsAloneInRow, obstacle });
    return { kind: 'ask', serverId, round, afterMs };
  }

  private declare(serverId: number, suspect: Suspect, reason: string): CrashVerifierEffect[] {
    this.suspects.delete(serverId);
    const { suspectedAtMs } = suspect;
    return [{ kind: 'crashed', serverId, suspectedAtMs, reason }];
  }
}

function newSuspect(suspectedAtMs: number, round: number): Suspect {
  return {
    suspectedAtMs,
    round,
    rounds: 1,
    waitingFor: null,
    refused: 0,
    silent: 0,
    alive: 0,
    refusalsAloneInRow: 0,
    obstacle: null,
  };
}

/**
 * Decides whether suspected servers are dead. Two kinds of evidence: *refusal* — the machine at the
 * address answers that this process is not there — twice in a row; and *silence* — three unanswered
 * pings in a row. Refusal proves the death of a process. Silence does not: the coordinator may be
 * the one that is cut off, so silence may never take more than half of the servers (from two on)
 * within `silenceWindowMs`; further suspects stay suspects and are probed again.
 *
 * Pure: events in, effects out. Probes and their time-outs belong to `failure-monitor.ts`.
 */

export interface CrashVerifierConfig {
  refusalsNeeded: number;
  refusalPauseMs: number;
  silencesNeeded: number;
  silenceWindowMs: number;
  /** Pause before a suspect is probed again that only the limit on silence has saved. */
  limitedPauseMs: number;
}

export const CRASH_VERIFIER_DEFAULTS: CrashVerifierConfig = {
  refusalsNeeded: 2,
  refusalPauseMs: 20,
  silencesNeeded: 3,
  silenceWindowMs: 5_000,
  limitedPauseMs: 1_000,
};

export type ProbeOutcome = 'alive' | 'refused' | 'silent';

export type CrashVerifierEvent =
  | { kind: 'suspected'; serverId: number }
  | { kind: 'probed'; serverId: number; outcome: ProbeOutcome }
  | { kind: 'left'; serverId: number };

export type CrashVerifierEffect =
  /** Ping the server `afterMs` from now and report a `probed` event. */
  | { kind: 'probe'; serverId: number; afterMs: number }
  | { kind: 'crashed'; serverId: number; suspectedAtMs: number; reason: string }
  | { kind: 'cleared'; serverId: number }
  | { kind: 'limited'; serverId: number };

interface Suspect {
  suspectedAtMs: number;
  refusals: number;
  silences: number;
}

export class CrashVerifier {
  private readonly suspects = new Map<number, Suspect>();
  /** Times of the deaths declared by silence, oldest first. */
  private silentDeathsMs: number[] = [];

  constructor(private readonly config: CrashVerifierConfig = CRASH_VERIFIER_DEFAULTS) {}

  isSuspected(serverId: number): boolean {
    return this.suspects.has(serverId);
  }

  /** `upServers`: how many servers the list has as up at this moment. */
  step(event: CrashVerifierEvent, upServers: number, nowMs: number): CrashVerifierEffect[] {
    const { serverId } = event;
    if (event.kind === 'left') {
      this.suspects.delete(serverId);
      return [];
    }
    if (event.kind === 'suspected') {
      if (this.suspects.has(serverId)) return [];
      this.suspects.set(serverId, { suspectedAtMs: nowMs, refusals: 0, silences: 0 });
      return [{ kind: 'probe', serverId, afterMs: 0 }];
    }
    const suspect = this.suspects.get(serverId);
    if (suspect === undefined) return [];
    if (event.outcome === 'alive') {
      this.suspects.delete(serverId);
      return [{ kind: 'cleared', serverId }];
    }
    return event.outcome === 'refused'
      ? this.refused(serverId, suspect)
      : this.silent(serverId, suspect, upServers, nowMs);
  }

  private refused(serverId: number, suspect: Suspect): CrashVerifierEffect[] {
    suspect.refusals++;
    suspect.silences = 0;
    if (suspect.refusals < this.config.refusalsNeeded) {
      return [{ kind: 'probe', serverId, afterMs: this.config.refusalPauseMs }];
    }
    return this.declare(serverId, suspect, 'its address refuses the connection');
  }

  private silent(
    serverId: number,
    suspect: Suspect,
    upServers: number,
    nowMs: number,
  ): CrashVerifierEffect[] {
    suspect.refusals = 0;
    suspect.silences++;
    if (suspect.silences < this.config.silencesNeeded) {
      return [{ kind: 'probe', serverId, afterMs: 0 }];
    }
    const since = nowMs - this.config.silenceWindowMs;
    this.silentDeathsMs = this.silentDeathsMs.filter((atMs) => atMs > since);
    const deaths = this.silentDeathsMs.length + 1;
    const serversAtFirst = upServers + this.silentDeathsMs.length;
    if (deaths >= 2 && deaths > serversAtFirst / 2) {
      suspect.silences = 0;
      return [
        { kind: 'limited', serverId },
        { kind: 'probe', serverId, afterMs: this.config.limitedPauseMs },
      ];
    }
    this.silentDeathsMs.push(nowMs);
    return this.declare(serverId, suspect, 'it does not answer');
  }

  private declare(serverId: number, suspect: Suspect, reason: string): CrashVerifierEffect[] {
    this.suspects.delete(serverId);
    const { suspectedAtMs } = suspect;
    return [{ kind: 'crashed', serverId, suspectedAtMs, reason }];
  }
}

/**
 * Who leads, as one candidate sees it: a pure machine, without clock, chance or I/O of its own. It
 * decides when to look after the leader, when to campaign, when this candidate leads and when it
 * is deposed. `candidate.ts` carries its effects out.
 *
 * It cannot do harm: the storage takes a campaign only against the very record that it names, and a
 * commit only of who leads. Times and probes decide how soon there is a leader again, never whether
 * there is one too many. Each campaign raises the term.
 */
import type { ProbeOutcome } from '../rpc/messages.js';
import type { Candidacy, LeaderState, Leadership } from './external-storage/external-storage.js';

export interface ElectionConfig {
  /** Silence of the leader after which somebody else takes its place. */
  silenceMs: number;
  /** Between two refusals of the leader's address that prove the death of its process. */
  refusalsApartMs: number;
  /** Between two looks at a leader that answers. */
  probeIntervalMs: number;
  /** After a campaign that came to nothing. */
  retryMs: number;
  /**
   * Who was deposed waits so long before it takes anybody's place: if two cannot reach one another
   * but both reach the storage, they would depose one another for ever.
   */
  restMs: number;
}

export const ELECTION_DEFAULTS: ElectionConfig = {
  silenceMs: 800,
  refusalsApartMs: 20,
  probeIntervalMs: 100,
  retryMs: 50,
  restMs: 10_000,
};

export type ElectionEvent =
  /** What the storage says, in any order. */
  | { kind: 'leader'; leaderState: LeaderState }
  | { kind: 'campaigned'; leader: Leadership }
  /** Unknown, or nobody has won. */
  | { kind: 'campaign-failed' }
  | { kind: 'probed'; version: number; outcome: ProbeOutcome }
  /** The connection to the leader is lost: look now. */
  | { kind: 'connection-lost'; version: number }
  /** Time has passed; `patienceMs`: how much more silence this slow machine must bear. */
  | { kind: 'tick'; patienceMs: number };

export type ElectionEffect =
  /** Answered by `probed`. */
  | { kind: 'probe'; leader: Leadership }
  /** Answered by `campaigned` or `campaign-failed`. */
  | { kind: 'campaign'; found: Leadership | null; candidacy: Candidacy }
  | { kind: 'lead'; leadership: Leadership }
  | { kind: 'deposed'; by: Leadership | null };

export class Election {
  /** As heard of last. */
  #leader: Leadership | null | undefined;
  #leading: Leadership | null = null;
  /** What is not newer than this is no news. */
  #versionHighest = 0;
  #termHighest = 0;
  #campaigning = false;
  #campaignNotBeforeMs = Number.NEGATIVE_INFINITY;
  #restsUntilMs = Number.NEGATIVE_INFINITY;
  #probing = false;
  #probeDueMs = Number.NEGATIVE_INFINITY;
  #silentSinceMs: number | null = null;
  #refusedAtMs: number | null = null;
  #lookNow = false;

  constructor(
    private readonly candidateId: string,
    private readonly address: string,
    private readonly config: ElectionConfig = ELECTION_DEFAULTS,
  ) {}

  /** As heard of last; null: nobody, or not known. */
  get leader(): Leadership | null {
    return this.#leader ?? null;
  }

  get leading(): Leadership | null {
    return this.#leading;
  }

  /** Terms of campaigns are above this. */
  raiseTerm(term: number): void {
    this.#termHighest = Math.max(this.#termHighest, term);
  }

  step(event: ElectionEvent, nowMs: number): ElectionEffect[] {
    const effects: ElectionEffect[] = [];
    let patienceMs = 0;
    switch (event.kind) {
      case 'leader':
        effects.push(...this.#heard(event.leaderState, nowMs));
        break;
      case 'campaigned': {
        const { leader } = event;
        this.#campaigning = false;
        effects.push(...this.#heard({ version: leader.version, leader }, nowMs));
        break;
      }
      case 'campaign-failed':
        this.#campaigning = false;
        this.#campaignNotBeforeMs = nowMs + this.config.retryMs;
        break;
      case 'probed':
        this.#probed(event.version, event.outcome, nowMs);
        break;
      case 'connection-lost':
        if (event.version === this.#leader?.version) this.#lookNow = true;
        break;
      case 'tick':
        patienceMs = event.patienceMs;
        break;
    }
    effects.push(...this.#next(patienceMs, nowMs));
    return effects;
  }

  #heard({ version, leader }: LeaderState, nowMs: number): ElectionEffect[] {
    // Answers of campaigns, lists and watches overtake one another.
    const first = this.#leader === undefined;
    if (!first && version <= this.#versionHighest) return [];
    const unchanged = !first && leader === null && this.#leader === null;
    this.#versionHighest = version;
    this.#leader = leader;
    if (leader !== null) this.raiseTerm(leader.term);
    if (unchanged) return [];
    this.#silentSinceMs = null;
    this.#refusedAtMs = null;
    this.#probeDueMs = nowMs;
    const effects: ElectionEffect[] = [];
    if (this.#leading !== null && this.#leading.version !== version) {
      this.#leading = null;
      this.#restsUntilMs = nowMs + this.config.restMs;
      effects.push({ kind: 'deposed', by: leader });
    }
    if (leader?.candidateId === this.candidateId) {
      this.#leading = leader;
      effects.push({ kind: 'lead', leadership: leader });
    }
    return effects;
  }

  #probed(version: number, outcome: ProbeOutcome, nowMs: number): void {
    this.#probing = false;
    if (version !== this.#leader?.version) return;
    this.#probeDueMs = nowMs + this.config.probeIntervalMs;
    if (outcome === 'unknown') return;
    if (outcome === 'alive') {
      this.#silentSinceMs = null;
      this.#refusedAtMs = null;
    } else this.#silentSinceMs ??= nowMs;
    if (outcome === 'silent') this.#refusedAtMs = null;
    if (outcome !== 'refused') return;
    const first = this.#refusedAtMs ?? nowMs;
    this.#refusedAtMs = first;
    this.#probeDueMs = nowMs + this.config.refusalsApartMs;
    if (nowMs - first >= this.config.refusalsApartMs) {
      this.#silentSinceMs = Number.NEGATIVE_INFINITY;
    }
  }

  #next(patienceMs: number, nowMs: number): ElectionEffect[] {
    const leader = this.#leader;
    if (leader === undefined || this.#leading !== null || this.#campaigning) return [];
    if (this.#gone(leader, patienceMs, nowMs) && nowMs >= this.#campaignNotBeforeMs) {
      this.#campaigning = true;
      this.#termHighest += 1;
      const { candidateId, address } = this;
      const candidacy = { term: this.#termHighest, candidateId, address };
      return [{ kind: 'campaign', found: leader, candidacy }];
    }
    if (leader === null || this.#probing) return [];
    if (!this.#lookNow && nowMs < this.#probeDueMs) return [];
    this.#probing = true;
    this.#lookNow = false;
    return [{ kind: 'probe', leader }];
  }

  #gone(leader: Leadership | null, patienceMs: number, nowMs: number): boolean {
    // Who has our address is gone: it is we who answer there.
    if (leader === null || leader.address === this.address) return true;
    if (this.#silentSinceMs === null || nowMs < this.#restsUntilMs) return false;
    // A probe counts from its end: what was silent then was silent before it.
    return nowMs - this.#silentSinceMs >= this.config.silenceMs + patienceMs;
  }
}

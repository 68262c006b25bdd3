/**
 * One candidate as it runs: follows the storage in real time, so that winning means to take up what
 * is pending and not to load, looks after the leader, and campaigns when `election.ts` says so.
 * What a leader does is left to `coordinator.ts`.
 *
 * The rule: a state is handed over only if the storage has no newer commit than it at the moment of
 * the victory; otherwise all is read again first.
 */
import { randomUUID } from 'node:crypto';
import type { Sluggishness } from '../ops/sluggishness.js';
import { backoffMs } from '../rpc/backoff.js';
import { type Clock, systemClock } from '../rpc/clock.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import { patience, probe } from '../rpc/probe.js';
import type { LinkPool, RpcLink } from '../rpc/transport.js';
import type { Log } from './context.js';
import { CoordinatorState } from './coordinator-state.js';
import { Election, type ElectionEffect, type ElectionEvent } from './election.js';
import type {
  CampaignResult,
  ExternalStorage,
  Leadership,
  StorageChange,
} from './external-storage/external-storage.js';

/** What a coordinator begins with. */
export interface Lead {
  leadership: Leadership;
  revision: number;
  state: CoordinatorState;
}

export interface CandidateOptions {
  storage: ExternalStorage;
  links: LinkPool;
  /** Under which others reach it. */
  address: string;
  log: Log;
  lag: Pick<Sluggishness, 'ms'>;
  /** Default: that of the system. */
  clock?: Clock;
  /** Called at each victory, with a state that is nobody else's. */
  onLead: (lead: Lead) => void;
  /** This candidate does not lead any more; it goes on as a standby. */
  onDeposed: (by: Leadership | null) => void;
}

const TICK_MS = 20;
const PROBE_TIMEOUT_MS = 250;
/** A leader whose watch has died without a word hears by this that it is deposed. */
const CONFIRM_MS = 1_000;
const AGAIN_MS_MIN = 20;
const AGAIN_MS_MAX = 1_000;

export class Candidate {
  readonly #options: CandidateOptions;
  readonly #election: Election;
  readonly #clock: Clock;
  readonly #watched = new WeakSet<RpcLink>();
  /** null: not read, or handed over to the coordinator. */
  #followed: { state: CoordinatorState; revision: number } | null = null;
  #clusterId: string | null = null;
  #won: CampaignResult | null = null;
  #stopWatch: (() => void) | null = null;
  #cancelTick: () => void = () => undefined;
  #cancelConfirm: () => void = () => undefined;
  #stopped = false;
  /** Of the newest read: what an older watch still tells is of no interest. */
  #generation = 0;
  /** Reads in a row that failed. */
  #failures = 0;

  constructor(options: CandidateOptions) {
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#election = new Election(randomUUID(), options.address);
  }

  get leader(): Leadership | null {
    return this.#election.leader;
  }

  get leads(): boolean {
    return this.#election.leading !== null;
  }

  get clusterId(): string | null {
    return this.#clusterId;
  }

  /** Resolves when the state has been read and is followed; then the election begins. */
  async start(check: (state: CoordinatorState) => void): Promise<void> {
    const { storage, address } = this.#options;
    const content = await storage.list();
    check(CoordinatorState.from(content.pairs));
    await storage.announce(randomUUID(), address);
    await this.#follow();
    this.#tickLater();
    this.#confirmLater();
  }

  /** Follows and campaigns no more; a leadership is given back. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#cancelTick();
    this.#cancelConfirm();
    this.#stopWatch?.();
    const { leading } = this.#election;
    if (leading === null) return;
    try {
      await this.#options.storage.resign(leading);
    } catch (error) {
      const fields = { error: asRekindleError(error).message };
      this.#options.log('warn', 'the leadership was not given back; it runs out', fields);
    }
  }

  /** The coordinator could not go on under its leadership: whoever can may have it. */
  async surrender(): Promise<void> {
    const { leading } = this.#election;
    if (leading !== null) await this.#options.storage.resign(leading);
  }

  #tickLater(): void {
    if (this.#stopped) return;
    this.#cancelTick = this.#clock.after(TICK_MS, () => {
      this.#step({ kind: 'tick', patienceMs: patience(0, this.#options.lag.ms()) });
      this.#tickLater();
    });
  }

  #confirmLater(): void {
    if (this.#stopped) return;
    this.#cancelConfirm = this.#clock.after(CONFIRM_MS, () => {
      this.#confirm()
        .catch((error: unknown) => {
          if (this.#stopped) return;
          const cause = asRekindleError(error);
          this.#options.log('warn', 'the leadership is not confirmed', { error: cause.message });
          if (cause.code !== 'FENCED') return;
          this.#stopWatch?.();
          this.#followAgain(cause);
        })
        .finally(() => this.#confirmLater());
    });
  }

  async #confirm(): Promise<void> {
    const { leading } = this.#election;
    if (leading !== null) await this.#options.storage.confirm(leading);
  }

  async #follow(): Promise<void> {
    const { storage } = this.#options;
    this.#generation += 1;
    const generation = this.#generation;
    this.#stopWatch?.();
    const content = await storage.list();
    const current = (): boolean => !this.#stopped && generation === this.#generation;
    if (!current()) return;
    if (this.#election.leading === null) {
      this.#take(CoordinatorState.from(content.pairs), content.revision);
    }
    this.#stopWatch = storage.watch(content.position, {
      changed: (change) => {
        if (current()) this.#changed(change);
      },
      lost: (error) => {
        if (current()) this.#followAgain(error);
      },
    });
    this.#failures = 0;
    this.#step({ kind: 'leader', leaderState: content.leaderState });
  }

  #take(state: CoordinatorState, revision: number): void {
    this.#followed = { state, revision };
    this.#learn();
  }

  #learn(): void {
    const state = this.#followed?.state;
    if (state === undefined || !state.exists) return;
    this.#clusterId = state.cluster.clusterId;
    this.#election.raiseTerm(state.cluster.term);
  }

  #followAgain(error: RekindleError): void {
    if (this.#stopped) return;
    this.#stopWatch = null;
    this.#options.log('info', 'the storage is read again', { reason: error.message });
    const delayMs = backoffMs(this.#failures, AGAIN_MS_MIN, AGAIN_MS_MAX, this.#clock.random());
    this.#failures += 1;
    this.#clock.after(delayMs, () => {
      this.#follow().catch((thrown: unknown) => this.#followAgain(asRekindleError(thrown)));
    });
  }

  #changed({ commit, leaderState }: StorageChange): void {
    if (commit !== null && this.#followed !== null) {
      this.#followed.state.apply(commit.writes);
      this.#followed.revision = commit.revision;
      this.#learn();
    }
    if (leaderState !== undefined) this.#step({ kind: 'leader', leaderState });
  }

  #step(event: ElectionEvent): void {
    if (this.#stopped) return;
    for (const effect of this.#election.step(event, this.#clock.monotonicMs()))
      this.#perform(effect);
  }

  #perform(effect: ElectionEffect): void {
    const { log, onDeposed } = this.#options;
    switch (effect.kind) {
      case 'probe':
        this.#probe(effect.leader).catch((error: unknown) => {
          log('error', 'a probe failed', { error: asRekindleError(error).message });
          this.#step({ kind: 'probed', version: effect.leader.version, outcome: 'unknown' });
        });
        break;
      case 'campaign':
        this.#campaign(effect).catch((error: unknown) => {
          log('info', 'a campaign came to nothing', { reason: asRekindleError(error).message });
          this.#step({ kind: 'campaign-failed' });
        });
        break;
      case 'lead':
        this.#lead(effect.leadership);
        break;
      case 'deposed':
        log('warn', 'another coordinator leads', { term: effect.by?.term, by: effect.by?.address });
        onDeposed(effect.by);
        // What was handed over is the coordinator's: the state is read anew.
        this.#stopWatch?.();
        this.#followAgain(new RekindleError('FENCED', 'another coordinator leads'));
        break;
    }
  }

  async #probe(leader: Leadership): Promise<void> {
    const { links, lag } = this.#options;
    const target = {
      link: () => this.#link(leader),
      freshLink: () => {
        links.drop(leader.address);
        return this.#link(leader);
      },
    };
    const timeoutMs = patience(PROBE_TIMEOUT_MS, lag.ms());
    const outcome = await probe(target, timeoutMs, undefined, this.#clock);
    this.#step({ kind: 'probed', version: leader.version, outcome });
  }

  #link(leader: Leadership): RpcLink {
    const link = this.#options.links.link(leader.address);
    if (!this.#watched.has(link)) {
      this.#watched.add(link);
      link.onLost(() => {
        const version = this.leader?.version ?? 0;
        if (this.leader?.address === link.address) this.#step({ kind: 'connection-lost', version });
      });
    }
    return link;
  }

  async #campaign({
    found,
    candidacy,
  }: Extract<ElectionEffect, { kind: 'campaign' }>): Promise<void> {
    this.#options.log('info', 'this coordinator wants to lead', {
      term: candidacy.term,
      instead: found?.address,
    });
    this.#won = await this.#options.storage.campaign(found, candidacy);
    this.#step({ kind: 'campaigned', leader: this.#won.leader });
  }

  #lead(leadership: Leadership): void {
    const followed = this.#followed;
    this.#followed = null;
    const newest = this.#won?.leader.version === leadership.version ? this.#won.revision : null;
    if (followed !== null && followed.revision === newest) {
      this.#options.onLead({ leadership, ...followed });
    } else this.#leadFromStorage(leadership);
  }

  /** What was followed is not all: the rest is on its way, but reading is sure. */
  #leadFromStorage(leadership: Leadership): void {
    const attempt = async (): Promise<void> => {
      const { revision, pairs } = await this.#options.storage.list();
      if (this.#stopped || this.#election.leading?.version !== leadership.version) return;
      this.#options.onLead({ leadership, revision, state: CoordinatorState.from(pairs) });
    };
    attempt().catch((error: unknown) => {
      const fields = { reason: asRekindleError(error).message };
      this.#options.log('warn', 'the new leader cannot read the state yet', fields);
      if (this.#stopped || this.#election.leading?.version !== leadership.version) return;
      this.#clock.after(AGAIN_MS_MAX, () => this.#leadFromStorage(leadership));
    });
  }
}

/** What callers of a standby are told: where to go, as far as it knows. */
export function redirect(leader: Leadership | null): RekindleError {
  if (leader === null) {
    return new RekindleError('COORDINATOR_UNAVAILABLE', 'no coordinator leads at present', {
      retryAfterMs: 50,
    });
  }
  const text = `this coordinator stands by; ${leader.address} leads (term ${leader.term})`;
  return new RekindleError('COORDINATOR_UNAVAILABLE', text, {
    details: { coordinator: leader.address },
  });
}

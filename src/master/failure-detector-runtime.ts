/**
 * Pings, hints and membership checks for the FailureDetector, and the probes that the coordinator
 * asks this server for as a witness. What stopping and ending the process mean is the owner's
 * affair.
 */
import type { Log } from '../ops/log.js';
import type { Sluggishness } from '../ops/sluggishness.js';
import { asRekindleError } from '../rpc/errors.js';
import type { ProbeOutcome, ServerList } from '../rpc/messages.js';
import { patience, probe } from '../rpc/probe.js';
import {
  FailureDetector,
  type FailureDetectorEffect,
  type FailureDetectorEvent,
  pingIntervalMs,
  pingTimeoutMs,
} from './failure-detector.js';
import type { CoordinatorCaller, ProbeDirectory } from './server-directory.js';

export interface FailureDetectorRuntimeOptions {
  serverId: number;
  servers: ProbeDirectory;
  coordinator: CoordinatorCaller;
  lag: Sluggishness;
  log: Log;
  random?: () => number;
  onStop: (reason: string) => void;
  onResume: () => void;
  /** The coordinator's verdict: this process must end. Called once. */
  onZombie: (reason: string) => void;
}

export class FailureDetectorRuntime {
  readonly #options: FailureDetectorRuntimeOptions;
  readonly #detector = new FailureDetector();
  readonly #random: () => number;
  readonly #timer: NodeJS.Timeout;
  #closed = false;

  constructor(options: FailureDetectorRuntimeOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.#timer = setInterval(
      () => this.#step({ kind: 'tick', random: this.#random() }),
      pingIntervalMs,
    );
    this.#timer.unref();
  }

  applyServerList(list: ServerList): void {
    const own = this.#options.serverId;
    const up = list.servers.filter((server) => server.status === 'up');
    const others = up.map((server) => server.serverId).filter((serverId) => serverId !== own);
    this.#step({ kind: 'servers', others });
    if (!up.some((server) => server.serverId === own)) {
      this.#step({ kind: 'verified', member: false });
    }
  }

  doubt(reason: string): void {
    this.#step({ kind: 'doubt', reason });
  }

  /** Somebody else has asked that server something in vain. */
  unanswered(serverId: number, reason: string): void {
    this.#step({ kind: 'pingFailed', serverId, reason });
  }

  /** The coordinator has said so. */
  verified(member: boolean): void {
    this.#step({ kind: 'verified', member });
  }

  /** PROBE_SERVER: can this server reach that one? */
  async probe(serverId: number, timeoutMs: number): Promise<ProbeOutcome> {
    const { servers } = this.#options;
    const link = servers.linkTo(serverId);
    if (link === null) return 'unknown';
    const freshLink = () => servers.freshLinkTo(serverId) ?? link;
    return probe({ link: () => link, freshLink }, timeoutMs);
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
  }

  #step(event: FailureDetectorEvent): void {
    if (this.#closed) return;
    const effects = this.#detector.step(event, performance.now());
    for (const effect of effects) this.#perform(effect);
  }

  #perform(effect: FailureDetectorEffect): void {
    switch (effect.kind) {
      case 'ping':
        void this.#ping(effect.serverId);
        return;
      case 'hint':
        void this.#hint(effect.serverId, effect.reason);
        return;
      case 'stopServing':
        this.#options.onStop(effect.reason);
        return;
      case 'resumeServing':
        this.#options.onResume();
        return;
      case 'verifyMembership':
        void this.#verify();
        return;
      case 'exit':
        this.#options.onZombie(effect.reason);
        return;
    }
  }

  async #ping(serverId: number): Promise<void> {
    const link = this.#options.servers.linkTo(serverId);
    if (link === null) return;
    try {
      const request = { callerServerId: this.#options.serverId };
      const timeoutMs = patience(pingTimeoutMs, this.#options.lag.ms());
      const { member } = await link.call('PING', request, { timeoutMs });
      this.#step({ kind: 'pingAnswered', serverId, member });
    } catch (thrown) {
      this.#step({ kind: 'pingFailed', serverId, reason: asRekindleError(thrown).code });
    }
  }

  async #hint(serverId: number, reason: string): Promise<void> {
    try {
      await this.#options.coordinator.call('HINT_SERVER_CRASHED', { serverId, reason });
    } catch (thrown) {
      // The next failed ping hints again.
      const { code } = asRekindleError(thrown);
      this.#options.log.debug({ serverId, code }, 'a hint did not reach the coordinator');
    }
  }

  async #verify(): Promise<void> {
    const { serverId, coordinator, log } = this.#options;
    try {
      const { member } = await coordinator.call('VERIFY_MEMBERSHIP', { serverId });
      this.#step({ kind: 'verified', member });
    } catch (thrown) {
      log.warn({ code: asRekindleError(thrown).code }, 'membership could not be verified');
      this.#step({ kind: 'verifyFailed' });
    }
  }
}

/**
 * Clock, timer and requests of the ReadLease. Grants come in two ways: with each BACKUP_WRITE, and
 * from RENEW_LEASE where a backup was not written to for a while. Neither waits for a disk.
 */
import type { Log } from '../ops/log.js';
import { asRekindleError } from '../rpc/errors.js';
import { faultPoint } from '../rpc/fault-point.js';
import { ReadLease, type ReadLeaseEffect, type ReadLeaseEvent } from './read-lease.js';
import type { CoordinatorCaller, ServerDirectory } from './server-directory.js';

const tickMs = 25;
const renewTimeoutMs = 250;

export interface ReadLeaseRuntimeOptions {
  serverId: number;
  servers: ServerDirectory;
  coordinator: CoordinatorCaller;
  log: Log;
  /** Boot time in milliseconds. */
  clock: () => number;
  /** A backup did not answer in time: perhaps it is dead. */
  onUnanswered: (serverId: number, reason: string) => void;
  /** The coordinator has removed this server. */
  onNotMember: () => void;
  onRegained: () => void;
}

export class ReadLeaseRuntime {
  readonly #options: ReadLeaseRuntimeOptions;
  readonly #lease = new ReadLease();
  readonly #timer: NodeJS.Timeout;
  #holders: readonly number[] | null = [];
  #lapsed = false;
  #lapses = 0;
  #closed = false;

  constructor(options: ReadLeaseRuntimeOptions) {
    this.#options = options;
    this.#timer = setInterval(() => this.#tick(), tickMs);
    this.#timer.unref();
  }

  /** Now: to be asked between a read and the departure of its answer. */
  holds(): boolean {
    return this.holdsAt(this.#options.clock());
  }

  /** The same for who has looked at the clock since the read. */
  holdsAt(bootTimeMs: number): boolean {
    return this.#lease.holds(bootTimeMs);
  }

  /** For `sentAtMs`: before the request is handed to the link. */
  now(): number {
    return this.#options.clock();
  }

  granted(serverId: number, sentAtMs: number, leaseMs: number): void {
    if (leaseMs > 0) this.#step({ kind: 'granted', serverId, sentAtMs, leaseMs });
  }

  /** The same array object means that nothing has changed. */
  setHolders(serverIds: readonly number[] | null): void {
    if (serverIds === this.#holders) return;
    this.#holders = serverIds;
    this.#step({ kind: 'holders', serverIds });
  }

  counters(): Record<string, number> {
    const nowMs = this.#options.clock();
    return {
      readLeaseHeld: this.#lease.holds(nowMs) ? 1 : 0,
      readLeaseByCoordinator: this.#lease.byCoordinator(nowMs) ? 1 : 0,
      readLeaseLapses: this.#lapses,
    };
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
  }

  #tick(): void {
    const lapsed = !this.holds();
    if (lapsed && !this.#lapsed) this.#lapses += 1;
    this.#lapsed = lapsed;
    this.#step({ kind: 'tick' });
  }

  #step(event: ReadLeaseEvent): void {
    if (this.#closed) return;
    const effects = this.#lease.step(event, this.#options.clock());
    for (const effect of effects) this.#perform(effect);
  }

  #perform(effect: ReadLeaseEffect): void {
    switch (effect.kind) {
      case 'renew':
        void this.#renew(effect.serverId);
        return;
      case 'askCoordinator':
        void this.#askCoordinator();
        return;
      case 'regained':
        this.#options.onRegained();
        return;
    }
  }

  async #renew(serverId: number): Promise<void> {
    const { serverId: masterId, servers, clock, log } = this.#options;
    const link = servers.linkTo(serverId);
    if (link === null) return;
    try {
      await faultPoint('lease-1');
      const sentAtMs = clock();
      const options = { timeoutMs: renewTimeoutMs };
      const { leaseMs } = await link.call('RENEW_LEASE', { masterId }, options);
      this.granted(serverId, sentAtMs, leaseMs);
    } catch (thrown) {
      // The next tick asks again.
      const { code } = asRekindleError(thrown);
      log.debug({ backup: serverId, code }, 'a backup granted no lease');
      if (code === 'TIMEOUT' || code === 'CONNECTION_LOST') {
        this.#options.onUnanswered(serverId, code);
      }
    }
  }

  async #askCoordinator(): Promise<void> {
    const { serverId, coordinator, clock, log } = this.#options;
    const sentAtMs = clock();
    try {
      const options = { timeoutMs: renewTimeoutMs };
      const answer = await coordinator.call('VERIFY_MEMBERSHIP', { serverId }, options);
      if (!answer.member) this.#options.onNotMember();
      else this.#step({ kind: 'coordinatorGranted', sentAtMs, leaseMs: answer.leaseMs });
    } catch (thrown) {
      log.debug({ code: asRekindleError(thrown).code }, 'the coordinator granted no lease');
    }
  }
}

/** What replication tells the lease. */
export type LeaseGrantee = Pick<ReadLeaseRuntime, 'now' | 'granted' | 'setHolders'>;

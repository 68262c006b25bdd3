/**
 * The right of a master to answer, as a pure state machine (docs/leases.md). It holds while *every*
 * backup of its open heads has a grant running, or the coordinator has. A recovery cannot find the
 * log without one of those backups, and waits for what it has granted: so nobody else owns the
 * tablets while the lease holds, also if this process was stopped for an hour in between.
 *
 * The owner asks `holds` *after* it has read and before the answer leaves. Times are boot time.
 * What the holders are is the ReplicaManager's to say; requests and timers are the runtime's.
 */
import { readLeaseMarginMs, readLeaseRenewMs } from '../rpc/read-lease-terms.js';

export type ReadLeaseEvent =
  /** Whose grants are needed; null: no set of backups can vouch for the log at present. */
  | { kind: 'holders'; serverIds: readonly number[] | null }
  /** `sentAtMs`: when the request left that was answered with the grant. */
  | { kind: 'granted'; serverId: number; sentAtMs: number; leaseMs: number }
  | { kind: 'coordinatorGranted'; sentAtMs: number; leaseMs: number }
  | { kind: 'tick' };

export type ReadLeaseEffect =
  | { kind: 'renew'; serverId: number }
  | { kind: 'askCoordinator' }
  /** It holds again: answers that were held back may leave. */
  | { kind: 'regained' };

/** What is left of the backups' grants when the coordinator is asked as well. */
const coordinatorAheadMs = 150;

interface Grant {
  /** Of the request that was answered last; -Infinity: none. */
  sentAtMs: number;
  untilMs: number;
  askedAtMs: number;
}

function noGrant(): Grant {
  return {
    sentAtMs: Number.NEGATIVE_INFINITY,
    untilMs: Number.NEGATIVE_INFINITY,
    askedAtMs: Number.NEGATIVE_INFINITY,
  };
}

export class ReadLease {
  /** None: a master without a log has nothing that it could answer wrongly. */
  #holders: readonly number[] | null = [];
  /** By server: holders, and backups that were written to within the last lease. */
  readonly #grants = new Map<number, Grant>();
  #coordinator = noGrant();
  #untilMs = Number.POSITIVE_INFINITY;

  holds(nowMs: number): boolean {
    return nowMs < this.#untilMs;
  }

  /** The backups' grants have run out, those of the coordinator keep the lease. */
  byCoordinator(nowMs: number): boolean {
    return this.holds(nowMs) && this.#backupsUntilMs() <= nowMs;
  }

  step(event: ReadLeaseEvent, nowMs: number): ReadLeaseEffect[] {
    const held = this.holds(nowMs);
    switch (event.kind) {
      case 'holders':
        this.#holders = event.serverIds;
        break;
      case 'granted':
        this.#take(this.#grantOf(event.serverId), event.sentAtMs, event.leaseMs);
        break;
      case 'coordinatorGranted':
        this.#take(this.#coordinator, event.sentAtMs, event.leaseMs);
        break;
      case 'tick':
        this.#forget(nowMs);
        break;
    }
    const backupsUntilMs = this.#backupsUntilMs();
    this.#untilMs = Math.max(backupsUntilMs, this.#coordinator.untilMs);
    const effects: ReadLeaseEffect[] = [];
    if (!held && this.holds(nowMs)) effects.push({ kind: 'regained' });
    if (event.kind === 'tick' || event.kind === 'holders') {
      this.#ask(nowMs, backupsUntilMs, effects);
    }
    return effects;
  }

  #ask(nowMs: number, backupsUntilMs: number, effects: ReadLeaseEffect[]): void {
    for (const serverId of this.#holders ?? []) {
      const grant = this.#grantOf(serverId);
      if (!isDue(grant, nowMs)) continue;
      grant.askedAtMs = nowMs;
      effects.push({ kind: 'renew', serverId });
    }
    if (backupsUntilMs - nowMs >= coordinatorAheadMs || !isDue(this.#coordinator, nowMs)) return;
    this.#coordinator.askedAtMs = nowMs;
    effects.push({ kind: 'askCoordinator' });
  }

  #take(grant: Grant, sentAtMs: number, leaseMs: number): void {
    if (leaseMs <= readLeaseMarginMs) return;
    grant.sentAtMs = Math.max(grant.sentAtMs, sentAtMs);
    grant.untilMs = Math.max(grant.untilMs, sentAtMs + leaseMs - readLeaseMarginMs);
  }

  #grantOf(serverId: number): Grant {
    let grant = this.#grants.get(serverId);
    if (grant === undefined) {
      grant = noGrant();
      this.#grants.set(serverId, grant);
    }
    return grant;
  }

  /** A side segment's backups grant too; nobody will look at those again. */
  #forget(nowMs: number): void {
    for (const [serverId, grant] of this.#grants) {
      const needed = this.#holders?.includes(serverId) ?? false;
      if (!needed && grant.untilMs <= nowMs) this.#grants.delete(serverId);
    }
  }

  #backupsUntilMs(): number {
    if (this.#holders === null) return Number.NEGATIVE_INFINITY;
    let untilMs = Number.POSITIVE_INFINITY;
    for (const serverId of this.#holders) {
      const grant = this.#grants.get(serverId);
      untilMs = Math.min(untilMs, grant?.untilMs ?? Number.NEGATIVE_INFINITY);
    }
    return untilMs;
  }
}

function isDue(grant: Grant, nowMs: number): boolean {
  return nowMs - Math.max(grant.sentAtMs, grant.askedAtMs) >= readLeaseRenewMs;
}

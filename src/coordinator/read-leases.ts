/**
 * Read leases as the coordinator sees them (docs/leases.md): its own grants, to masters whose
 * backups cannot vouch for them at present, and for each recovery the moment before which no tablet
 * may get a new owner. Times are any clock that never goes faster than true time; one that stands
 * still while the machine is suspended only makes it wait longer.
 */
import { readLeaseMs } from '../rpc/read-lease-terms.js';

/** When the last grant to one crashed master is over. Pure. */
export class LeaseEnd {
  /** When each backup was asked first; those that have answered are left out. */
  readonly #unanswered = new Map<number, number>();
  #atMs: number;

  constructor(atMs: number) {
    this.#atMs = atMs;
  }

  /** START_READING_DATA is sent. */
  asked(serverId: number, nowMs: number): void {
    if (!this.#unanswered.has(serverId)) this.#unanswered.set(serverId, nowMs);
  }

  answered(serverId: number, remainderMs: number, nowMs: number): void {
    this.#unanswered.delete(serverId);
    this.#atMs = Math.max(this.#atMs, nowMs + Math.min(remainderMs, readLeaseMs));
  }

  /**
   * The log cannot be complete without an answer of a backup whose grant the master needs, so
   * those that have not answered need not be waited for; but what they granted before the fence
   * began costs nothing to wait out, and covers a loss that an operator has accepted.
   */
  get atMs(): number {
    let atMs = this.#atMs;
    for (const askedAtMs of this.#unanswered.values()) {
      atMs = Math.max(atMs, askedAtMs + readLeaseMs);
    }
    return atMs;
  }
}

export class ReadLeases {
  readonly #startedAtMs: number;
  /** Newest grant by master; bounded by the servers of the list. */
  readonly #grantedAtMs = new Map<number, number>();

  constructor(nowMs: number) {
    this.#startedAtMs = nowMs;
  }

  /** The caller has found the master up in the committed list, in the same turn. */
  grant(masterId: number, nowMs: number): number {
    this.#grantedAtMs.set(masterId, nowMs);
    return readLeaseMs;
  }

  /**
   * A recovery begins, in the turn in which the crash is committed or the state was loaded.
   * An earlier process may have granted, or have heard of grants, until this one began.
   */
  begin(crashedServerId: number): LeaseEnd {
    const grantedAtMs = this.#grantedAtMs.get(crashedServerId) ?? Number.NEGATIVE_INFINITY;
    this.#grantedAtMs.delete(crashedServerId);
    return new LeaseEnd(Math.max(grantedAtMs, this.#startedAtMs) + readLeaseMs);
  }
}

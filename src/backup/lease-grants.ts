/**
 * What a backup has promised to masters, as a pure state machine: until the end of a grant it would
 * not let a recovery find the log behind its back, or rather, it says how long that recovery has
 * to wait (docs/leases.md). A master that is fenced or not up gets no grant any more.
 *
 * Times are boot time. A grant counts from the moment of its answer.
 */
import { readLeaseMs } from '../rpc/read-lease-terms.js';

export class LeaseGrants {
  /** Newest grant by master. */
  readonly #grantedAtMs = new Map<number, number>();
  readonly #fenced: Set<number>;
  readonly #startedAtMs: number;
  #up: ReadonlySet<number> = new Set();

  /** `fenced`: by earlier processes. What these have granted has an end: `startedAtMs` + T. */
  constructor(fenced: readonly number[], startedAtMs: number) {
    this.#fenced = new Set(fenced);
    this.#startedAtMs = startedAtMs;
  }

  /** `known`: up or crashed. Who has left was recovered, and its log is nobody's any more. */
  applyServerList(up: ReadonlySet<number>, known: ReadonlySet<number>): void {
    this.#up = up;
    for (const masterId of this.#grantedAtMs.keys()) {
      if (!known.has(masterId)) this.#grantedAtMs.delete(masterId);
    }
    for (const masterId of this.#fenced) if (!known.has(masterId)) this.#fenced.delete(masterId);
  }

  /** To be called when the answer leaves. 0: nothing is granted. */
  grant(masterId: number, nowMs: number): number {
    if (!this.#up.has(masterId) || this.#fenced.has(masterId)) return 0;
    this.#grantedAtMs.set(masterId, nowMs);
    return readLeaseMs;
  }

  /** Before anything else of a fence: from here on the remainder only shrinks. */
  fence(masterId: number): void {
    this.#fenced.add(masterId);
  }

  /** How long a grant to this master may still run. */
  remainderMs(masterId: number, nowMs: number): number {
    const grantedAtMs = Math.max(this.#grantedAtMs.get(masterId) ?? 0, this.#startedAtMs);
    return Math.max(0, Math.ceil(grantedAtMs + readLeaseMs - nowMs));
  }
}

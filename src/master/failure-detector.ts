/**
 * Random-probe failure detector and self-suspicion, as a pure state machine.
 *
 * Every tick one random other server is pinged; one that does not answer is hinted to the
 * coordinator, which verifies by itself. A server that is *told* that it was declared crashed (a
 * ping says member: false, a backup says fenced) stops serving before it asks: only the
 * coordinator's word lets it serve again.
 *
 * What it hears nothing of does no harm: a server that is cut off has no read lease
 * (read-lease.ts), and its writes find no backup.
 */
import { invariant } from '../rpc/errors.js';

export const pingIntervalMs = 100;
export const pingTimeoutMs = 200;
/** The coordinator verifies for itself; repeating the hint faster only adds load. */
const hintIntervalMs = 500;
const verifyIntervalMs = 500;

export type FailureDetectorEvent =
  /** `random` in [0, 1). */
  | { kind: 'tick'; random: number }
  | { kind: 'servers'; others: readonly number[] }
  | { kind: 'pingAnswered'; serverId: number; member: boolean }
  | { kind: 'pingFailed'; serverId: number; reason: string }
  /** Somebody treated us as fenced or foreign. */
  | { kind: 'doubt'; reason: string }
  | { kind: 'verified'; member: boolean }
  | { kind: 'verifyFailed' };

export type FailureDetectorEffect =
  | { kind: 'ping'; serverId: number }
  | { kind: 'hint'; serverId: number; reason: string }
  | { kind: 'stopServing'; reason: string }
  | { kind: 'resumeServing' }
  | { kind: 'verifyMembership' }
  | { kind: 'exit'; reason: string };

export class FailureDetector {
  #others: readonly number[] = [];
  /** At most one entry per other server. */
  readonly #hintedAtMs = new Map<number, number>();
  /** Why this server may not be a member any more. */
  #suspicion: string | null = null;
  #verifying = false;
  #verifiedAtMs = Number.NEGATIVE_INFINITY;
  #exited = false;

  get serving(): boolean {
    return this.#suspicion === null && !this.#exited;
  }

  step(event: FailureDetectorEvent, nowMs: number): FailureDetectorEffect[] {
    if (this.#exited) return [];
    switch (event.kind) {
      case 'tick':
        return this.#tick(event.random, nowMs);
      case 'servers':
        this.#others = event.others;
        for (const serverId of this.#hintedAtMs.keys()) {
          if (!event.others.includes(serverId)) this.#hintedAtMs.delete(serverId);
        }
        return [];
      case 'pingAnswered':
        return event.member
          ? []
          : this.#suspect(`server ${event.serverId} does not list this server`, nowMs);
      case 'pingFailed':
        return this.#pingFailed(event.serverId, event.reason, nowMs);
      case 'doubt':
        return this.#suspect(event.reason, nowMs);
      case 'verified':
        this.#verifying = false;
        return event.member ? this.#clear() : this.#exit();
      case 'verifyFailed':
        this.#verifying = false;
        return [];
    }
  }

  #tick(random: number, nowMs: number): FailureDetectorEffect[] {
    invariant(random >= 0 && random < 1, 'a random number in [0, 1)');
    const effects: FailureDetectorEffect[] = [];
    if (this.#suspicion !== null) effects.push(...this.#verify(nowMs));
    const serverId = this.#others[Math.floor(random * this.#others.length)];
    if (serverId !== undefined) effects.push({ kind: 'ping', serverId });
    return effects;
  }

  #pingFailed(serverId: number, reason: string, nowMs: number): FailureDetectorEffect[] {
    const hintedAtMs = this.#hintedAtMs.get(serverId) ?? Number.NEGATIVE_INFINITY;
    if (!this.#others.includes(serverId) || nowMs - hintedAtMs < hintIntervalMs) return [];
    this.#hintedAtMs.set(serverId, nowMs);
    return [{ kind: 'hint', serverId, reason }];
  }

  #suspect(reason: string, nowMs: number): FailureDetectorEffect[] {
    const effects: FailureDetectorEffect[] = [];
    if (this.#suspicion === null) effects.push({ kind: 'stopServing', reason });
    this.#suspicion ??= reason;
    effects.push(...this.#verify(nowMs));
    return effects;
  }

  #verify(nowMs: number): FailureDetectorEffect[] {
    if (this.#verifying || nowMs - this.#verifiedAtMs < verifyIntervalMs) return [];
    this.#verifying = true;
    this.#verifiedAtMs = nowMs;
    return [{ kind: 'verifyMembership' }];
  }

  #clear(): FailureDetectorEffect[] {
    const stopped = this.#suspicion !== null;
    this.#suspicion = null;
    return stopped ? [{ kind: 'resumeServing' }] : [];
  }

  #exit(): FailureDetectorEffect[] {
    this.#exited = true;
    const reason = this.#suspicion ?? 'the server list';
    return [{ kind: 'exit', reason: `the coordinator has removed this server (${reason})` }];
  }
}

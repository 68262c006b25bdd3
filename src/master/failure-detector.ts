/**
 * Random-probe failure detector and self-suspicion, as a pure state machine.
 *
 * Every tick one random other server is pinged; one that does not answer is hinted to the
 * coordinator, which verifies by itself. A server that has reason to think that it was declared
 * crashed stops serving *before* it asks:
 *  - told (a ping says member: false, a backup says fenced): only the coordinator's word lets it
 *    serve again, since recovery may have moved its tablets already;
 *  - silence (five failed pings in a row): an answered ping with member: true is as good, since it
 *    shows both that the isolation is over and that a peer's list still has this server up. The
 *    coordinator may be down then, and reads should not depend on it.
 * What it does not do: leases. Between a crash verdict and the first ping that tells of it, a
 * cut-off master can serve stale reads (originals 2(f), F4).
 */
import { invariant } from '../rpc/errors.js';

export const pingIntervalMs = 150;
export const pingTimeoutMs = 250;
const failuresInRowMax = 5;
/** The coordinator verifies for itself; repeating the hint faster only adds load. */
const hintIntervalMs = 1_000;
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

type Suspicion = 'none' | 'silence' | 'told';

export class FailureDetector {
  #others: readonly number[] = [];
  /** At most one entry per other server. */
  readonly #hintedAtMs = new Map<number, number>();
  #failuresInRow = 0;
  #suspicion: Suspicion = 'none';
  #reason = '';
  #verifying = false;
  #verifiedAtMs = Number.NEGATIVE_INFINITY;
  #exited = false;

  get serving(): boolean {
    return this.#suspicion === 'none' && !this.#exited;
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
          ? this.#notSuspected()
          : this.#suspect('told', `server ${event.serverId} does not list this server`, nowMs);
      case 'pingFailed':
        return this.#pingFailed(event.serverId, event.reason, nowMs);
      case 'doubt':
        return this.#suspect('told', event.reason, nowMs);
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
    if (this.#suspicion !== 'none') effects.push(...this.#verify(nowMs));
    const serverId = this.#others[Math.floor(random * this.#others.length)];
    if (serverId !== undefined) effects.push({ kind: 'ping', serverId });
    return effects;
  }

  #pingFailed(serverId: number, reason: string, nowMs: number): FailureDetectorEffect[] {
    const effects: FailureDetectorEffect[] = [];
    const hintedAtMs = this.#hintedAtMs.get(serverId) ?? Number.NEGATIVE_INFINITY;
    if (this.#others.includes(serverId) && nowMs - hintedAtMs >= hintIntervalMs) {
      this.#hintedAtMs.set(serverId, nowMs);
      effects.push({ kind: 'hint', serverId, reason });
    }
    this.#failuresInRow += 1;
    if (this.#failuresInRow >= failuresInRowMax) {
      const text = `${this.#failuresInRow} pings in a row were not answered`;
      effects.push(...this.#suspect('silence', text, nowMs));
    }
    return effects;
  }

  #notSuspected(): FailureDetectorEffect[] {
    this.#failuresInRow = 0;
    return this.#suspicion === 'silence' ? this.#clear() : [];
  }

  #suspect(suspicion: Suspicion, reason: string, nowMs: number): FailureDetectorEffect[] {
    const effects: FailureDetectorEffect[] = [];
    if (this.#suspicion === 'none') effects.push({ kind: 'stopServing', reason });
    if (this.#suspicion !== 'told') {
      this.#suspicion = suspicion;
      this.#reason = reason;
    }
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
    const stopped = this.#suspicion !== 'none';
    this.#suspicion = 'none';
    this.#failuresInRow = 0;
    return stopped ? [{ kind: 'resumeServing' }] : [];
  }

  #exit(): FailureDetectorEffect[] {
    this.#exited = true;
    const reason = this.#reason === '' ? 'the server list' : this.#reason;
    return [{ kind: 'exit', reason: `the coordinator has removed this server (${reason})` }];
  }
}

/**
 * Log lines about peers that break the protocol: at most one per address and minute, and a bounded
 * memory of addresses, so that a port scanner cannot fill a disk.
 */
import type { EndpointLog } from './uws-endpoint.js';

const PERIOD_MS = 60_000;
const ADDRESSES_MAX = 1024;

export class ComplaintLog {
  readonly #log: EndpointLog;
  readonly #lastMs = new Map<string, number>();
  #suppressed = 0;

  constructor(log: EndpointLog) {
    this.#log = log;
  }

  add(remoteAddress: string, problem: string, nowMs: number): void {
    const lastMs = this.#lastMs.get(remoteAddress);
    if (lastMs !== undefined && nowMs - lastMs < PERIOD_MS) {
      this.#suppressed += 1;
      return;
    }
    if (lastMs === undefined && this.#lastMs.size >= ADDRESSES_MAX) {
      // Insertion order is age: the oldest goes.
      for (const [address] of this.#lastMs) {
        this.#lastMs.delete(address);
        break;
      }
    }
    this.#lastMs.delete(remoteAddress);
    this.#lastMs.set(remoteAddress, nowMs);
    this.#log('warn', 'connection closed: it breaks the protocol', {
      remoteAddress,
      problem,
      suppressed: this.#suppressed,
    });
    this.#suppressed = 0;
  }
}

/**
 * Calls to the coordinator from a server: one address after the other until one answers. A call is
 * repeated only when it was surely not executed or its RPC is idempotent, and only within its own
 * time-out.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import { type JsonRpcName, type ReplyOf, type RequestOf, RPC } from '../rpc/table.js';
import type { CallOptions, LinkPool } from '../rpc/transport.js';

const retryDelayMs = 50;

export class CoordinatorSession {
  readonly #links: LinkPool;
  readonly #addresses: readonly string[];
  #current = 0;

  /** `addresses`: `host:port`, separated by commas. */
  constructor(links: LinkPool, addresses: string) {
    this.#links = links;
    this.#addresses = addresses
      .split(',')
      .map((address) => address.trim())
      .filter((address) => address !== '');
    if (this.#addresses.length === 0) {
      throw new RekindleError('INVALID_ARGUMENT', 'no coordinator address is given');
    }
  }

  async call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    options: CallOptions = {},
  ): Promise<ReplyOf<K>> {
    const row = RPC[name];
    const deadlineMs = performance.now() + (options.timeoutMs ?? row.timeoutMs);
    for (;;) {
      const address = this.#addresses[this.#current % this.#addresses.length] ?? '';
      const timeoutMs = Math.max(1, deadlineMs - performance.now());
      try {
        return await this.#links.link(address).call(name, request, { ...options, timeoutMs });
      } catch (thrown) {
        const error = asRekindleError(thrown);
        if (!isElsewhere(error) || (!row.idempotent && error.outcome === 'unknown')) throw error;
        if (performance.now() + retryDelayMs >= deadlineMs) {
          const text = `no coordinator answers at ${this.#addresses.join(', ')}`;
          throw new RekindleError('COORDINATOR_UNAVAILABLE', text, { cause: error });
        }
        this.#current += 1;
        await sleep(retryDelayMs, undefined, options.signal ? { signal: options.signal } : {});
      }
    }
  }
}

/** The address answers not at all or is no coordinator: another one may. */
function isElsewhere(error: RekindleError): boolean {
  return (
    error.code === 'CONNECTION_LOST' ||
    error.code === 'WRONG_SERVER' ||
    error.code === 'COORDINATOR_UNAVAILABLE'
  );
}

/**
 * Calls to whoever leads, as clients and servers make them: redirects are followed, lost calls are
 * made again at the next address, until there is an answer. `CoordinatorSession` has its own tests.
 */
import { asRekindleError, type RekindleError } from '../../src/rpc/errors.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../../src/rpc/table.js';
import type { SimulatedLinkPool } from './simulated-network.js';
import type { SimulatedProcess } from './simulated-time.js';

export interface CallerOptions {
  /** After these the last error is thrown; default: no end. */
  attempts?: number;
  timeoutMs?: number;
}

const AGAIN_MS = 60;

export class SimulatedCaller {
  private address: string;

  constructor(
    private readonly pool: SimulatedLinkPool,
    private readonly process: SimulatedProcess,
    private readonly addresses: readonly string[],
  ) {
    this.address = process.time.pick(addresses);
  }

  async call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    { attempts = Number.POSITIVE_INFINITY, timeoutMs = 1_000 }: CallerOptions = {},
  ): Promise<ReplyOf<K>> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.pool.link(this.address).call(name, request, { timeoutMs });
      } catch (thrown) {
        const error = asRekindleError(thrown);
        this.turn(error);
        // The disk of that leader: the next one knows what was done.
        const again = error.retryable || error.code === 'DISK_ERROR';
        if (!again || attempt >= attempts) throw error;
      }
      await this.process.sleep(AGAIN_MS);
    }
  }

  private turn({ code, details }: RekindleError): void {
    if (code === 'RETRY' || code === 'NOT_ENOUGH_BACKUPS') return;
    const to = details?.coordinator;
    const next = (this.addresses.indexOf(this.address) + 1) % this.addresses.length;
    this.address = typeof to === 'string' ? to : (this.addresses[next] ?? this.address);
  }
}

/**
 * The links of one process, one per address and expected server. A link that nobody has used for
 * a while gives its connection back but stays usable; the table of links is bounded.
 *
 * Bulk traffic wants connections of its own, so that it does not delay small requests: whoever
 * moves segments makes a second pool.
 */
import { RekindleError } from './errors.js';
import type { LinkPool, RpcLink } from './transport.js';
import { WsLink, type WsLinkOptions } from './ws-link.js';

export type LinkPoolOptions = Omit<WsLinkOptions, 'expectServerId'> & {
  idleMs?: number;
  linksMax?: number;
};

const IDLE_MS = 60_000;
const LINKS_MAX = 8_192;

export class WsLinkPool implements LinkPool {
  readonly #options: LinkPoolOptions;
  readonly #links = new Map<string, WsLink>();
  readonly #sweepTimer: NodeJS.Timeout;
  #closed = false;

  constructor(options: LinkPoolOptions) {
    this.#options = options;
    const idleMs = options.idleMs ?? IDLE_MS;
    this.#sweepTimer = setInterval(() => this.#sweep(performance.now() - idleMs), idleMs / 4);
    this.#sweepTimer.unref();
  }

  link(address: string, expectServerId: number | null = null): RpcLink {
    if (this.#closed) throw new RekindleError('CLIENT_CLOSED', 'the link pool is closed');
    const key = keyOf(address, expectServerId);
    const existing = this.#links.get(key);
    if (existing !== undefined) return existing;
    if (this.#links.size >= (this.#options.linksMax ?? LINKS_MAX)) this.#makeRoom();
    const link = new WsLink(address, { ...this.#options, expectServerId });
    this.#links.set(key, link);
    return link;
  }

  drop(address: string, expectServerId?: number): void {
    const only = expectServerId === undefined ? null : keyOf(address, expectServerId);
    for (const [key, link] of this.#links) {
      if (only === null ? link.address !== address : key !== only) continue;
      this.#links.delete(key);
      link.close();
    }
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#sweepTimer);
    for (const link of this.#links.values()) link.close();
    this.#links.clear();
  }

  #sweep(idleSinceMs: number): void {
    if (this.#options.keepConnected === true) return;
    for (const link of this.#links.values()) link.disconnectIfIdle(idleSinceMs);
  }

  #makeRoom(): void {
    for (const [key, link] of this.#links) {
      if (!link.disconnectIfIdle(performance.now())) continue;
      this.#links.delete(key);
      link.close();
      return;
    }
    throw new RekindleError('RETRY', `${this.#links.size} links are in use`, { retryAfterMs: 100 });
  }
}

function keyOf(address: string, expectServerId: number | null): string {
  return `${address} ${expectServerId ?? ''}`;
}

/**
 * What a server process knows of its cluster: the newest server list and the highest coordinator
 * term. Lists are applied in the order of their versions, older ones ignored; an RPC of a leader
 * with a lower term than one heard of is refused.
 */
import { updatedList } from '../coordinator/server-list-update.js';
import type { ProbeDirectory } from '../master/server-directory.js';
import { RekindleError } from '../rpc/errors.js';
import type { ServerEntry, ServerList, ServerListUpdate } from '../rpc/messages.js';
import type { LinkPool, RpcLink } from '../rpc/transport.js';

/** Ids remembered of servers that have left; beyond it the oldest are forgotten. */
const seenMax = 16_384;

export class Membership {
  #list: ServerList | null = null;
  #entries = new Map<number, ServerEntry>();
  #termHighest = 0;
  /** Insertion order = order of first sight. */
  readonly #seen = new Set<number>();
  readonly #listeners: ((list: ServerList) => void)[] = [];

  get list(): ServerList | null {
    return this.#list;
  }

  get version(): number {
    return this.#list?.version ?? 0;
  }

  /** Later subscribers are told the present list at once. */
  subscribe(listener: (list: ServerList) => void): void {
    this.#listeners.push(listener);
    if (this.#list !== null) listener(this.#list);
  }

  checkTerm(term: number): void {
    if (term < this.#termHighest) {
      const text = `coordinator term ${term} is over: term ${this.#termHighest} has begun`;
      throw new RekindleError('FENCED', text);
    }
    this.#termHighest = term;
  }

  /** The same of an update; nothing happens if it is about a newer list than there is. */
  update(update: ServerListUpdate): boolean {
    this.#checkCluster(update.clusterId);
    this.checkTerm(update.term);
    const list = updatedList(this.#list, update);
    return list !== null && this.apply(list);
  }

  #checkCluster(clusterId: string): void {
    if (this.#list === null || clusterId === this.#list.clusterId) return;
    const text = `this server belongs to cluster ${this.#list.clusterId}, not ${clusterId}`;
    throw new RekindleError('WRONG_CLUSTER', text);
  }

  /** Returns whether the list was news. */
  apply(list: ServerList): boolean {
    this.#checkCluster(list.clusterId);
    this.checkTerm(list.term);
    if (list.version <= this.version) return false;
    this.#list = list;
    this.#entries = new Map(list.servers.map((server) => [server.serverId, server]));
    for (const { serverId } of list.servers) this.#seen.add(serverId);
    for (const serverId of this.#seen) {
      if (this.#seen.size <= seenMax) break;
      if (!this.#entries.has(serverId)) this.#seen.delete(serverId);
    }
    for (const listener of this.#listeners) listener(list);
    return true;
  }

  /** False only for servers known to be crashed or gone; one never heard of may be new. */
  mayBeMember(serverId: number): boolean {
    const entry = this.#entries.get(serverId);
    return entry === undefined ? !this.#seen.has(serverId) : entry.status === 'up';
  }

  /** Links to up servers over a pool of one's own; the incarnation is checked at the handshake. */
  directory(links: LinkPool): ProbeDirectory {
    return {
      linkTo: (serverId): RpcLink | null => {
        const entry = this.#entries.get(serverId);
        if (entry === undefined || entry.status !== 'up') return null;
        return links.link(entry.address, serverId);
      },
      freshLinkTo: (serverId): RpcLink | null => {
        const entry = this.#entries.get(serverId);
        if (entry === undefined || entry.status !== 'up') return null;
        links.drop(entry.address, serverId);
        return links.link(entry.address, serverId);
      },
    };
  }
}

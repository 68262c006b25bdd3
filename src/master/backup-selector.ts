/**
 * Chooses backups for the replicas of a segment: at random among those that the rules allow.
 * Never the master's own server, never two replicas on one server; never two on one host nor on
 * the master's host, unless the cluster allows it. Pure: the random numbers come from the owner.
 */
import type { ServerEntry, ServerList } from '../rpc/messages.js';

/** A backup that had no free frame is left alone for so long. */
const fullPauseMs = 1_000;

export class BackupSelector {
  readonly #ownServerId: number;
  readonly #random: () => number;
  #backups = new Map<number, ServerEntry>();
  #ownHost: string | null = null;
  #allowSameHost = false;
  /** At most one entry per listed backup. */
  readonly #fullUntilMs = new Map<number, number>();

  constructor(ownServerId: number, random: () => number) {
    this.#ownServerId = ownServerId;
    this.#random = random;
  }

  applyServerList(list: ServerList): void {
    this.#allowSameHost = list.allowSameHost;
    this.#backups = new Map();
    for (const server of list.servers) {
      if (server.serverId === this.#ownServerId) this.#ownHost = server.host;
      else if (server.backup && server.status === 'up') this.#backups.set(server.serverId, server);
    }
    for (const serverId of this.#fullUntilMs.keys()) {
      if (!this.#backups.has(serverId)) this.#fullUntilMs.delete(serverId);
    }
  }

  isUp(serverId: number): boolean {
    return this.#backups.has(serverId);
  }

  noteFull(serverId: number, nowMs: number): void {
    if (this.#backups.has(serverId)) this.#fullUntilMs.set(serverId, nowMs + fullPauseMs);
  }

  /** A backup beside `taken`, or null if there is none at present. */
  choose(taken: readonly number[], excluded: ReadonlySet<number>, nowMs: number): number | null {
    const takenHosts = new Set<string>();
    if (!this.#allowSameHost) {
      if (this.#ownHost !== null) takenHosts.add(this.#ownHost);
      for (const serverId of taken) {
        const server = this.#backups.get(serverId);
        if (server !== undefined) takenHosts.add(server.host);
      }
    }
    const candidates: number[] = [];
    for (const [serverId, server] of this.#backups) {
      if (taken.includes(serverId) || excluded.has(serverId)) continue;
      if ((this.#fullUntilMs.get(serverId) ?? 0) > nowMs) continue;
      if (takenHosts.has(server.host)) continue;
      candidates.push(serverId);
    }
    return candidates[Math.floor(this.#random() * candidates.length)] ?? null;
  }

  /** Whether a new segment could be placed on `replicas` backups now. */
  canPlace(replicas: number, nowMs: number): boolean {
    const hosts = new Set<string>();
    let servers = 0;
    for (const [serverId, server] of this.#backups) {
      if ((this.#fullUntilMs.get(serverId) ?? 0) > nowMs) continue;
      servers += 1;
      if (server.host !== this.#ownHost) hosts.add(server.host);
    }
    return (this.#allowSameHost ? servers : hosts.size) >= replicas;
  }
}

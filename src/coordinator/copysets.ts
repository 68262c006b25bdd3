/**
 * Copysets: the groups of R backups that hold all replicas of a segment together (Cidon et al.,
 * USENIX ATC '13). The fewer groups there are, the less probable it is that R servers which fail at
 * once are one of them. The scatter width says how many other servers a server shares groups with:
 * more of them make re-replication faster and a loss more probable (docs/placement.md).
 *
 * Stable: a group whose members are all up never changes. One that lost a member gets another in
 * its place, so that what was lost there is copied to one server and the group holds all again;
 * only if none fits is the group given up. A server that joins gets groups of its own. Every group
 * obeys the rules of placement: distinct hosts (unless the cluster allows otherwise), and two racks
 * if the servers are in several. Pure, and without chance: the same history, the same groups.
 */
import { invariant } from '../rpc/errors.js';
import type { ServerEntry } from '../rpc/messages.js';

export type CopysetServer = Pick<ServerEntry, 'serverId' | 'host' | 'rack'>;

export interface CopysetRules {
  replicas: number;
  /** Other servers that a server shares groups with, at least; as far as there are so many. */
  scatterWidth: number;
  allowSameHost: boolean;
}

/** The groups after the servers that are up have changed. */
export function updateCopysets(
  before: readonly (readonly number[])[],
  servers: readonly CopysetServer[],
  rules: CopysetRules,
): number[][] {
  invariant(rules.replicas >= 1, 'a segment has replicas');
  // Groups of one are no groups: any server may hold any segment.
  if (rules.replicas === 1) return [];
  const builder = new CopysetBuilder(servers, rules);
  const broken = before.filter((set) => !builder.keep(set));
  for (const set of broken) builder.repair(set);
  builder.complete();
  return builder.sets;
}

interface Candidate {
  server: CopysetServer;
  /** Members of the group that it shares another group with. */
  known: number;
  width: number;
}

class CopysetBuilder {
  readonly sets: number[][] = [];
  readonly #rules: CopysetRules;
  readonly #servers = new Map<number, CopysetServer>();
  /** Servers that a server shares a group with. */
  readonly #neighbours = new Map<number, Set<number>>();
  readonly #keys = new Set<string>();
  readonly #severalRacks: boolean;

  constructor(servers: readonly CopysetServer[], rules: CopysetRules) {
    this.#rules = rules;
    for (const server of servers) {
      this.#servers.set(server.serverId, server);
      this.#neighbours.set(server.serverId, new Set());
    }
    const racks = new Set(servers.flatMap(({ rack }) => (rack === null ? [] : [rack])));
    this.#severalRacks = racks.size > 1;
  }

  /** False if a member is gone, or labels or rules have changed. */
  keep(set: readonly number[]): boolean {
    const members = this.#present(set);
    if (set.length !== this.#rules.replicas || members.length !== set.length) return false;
    this.#add(members);
    return true;
  }

  /** Puts others in the place of members that are gone; the rest of the group stays. */
  repair(set: readonly number[]): void {
    const members = this.#present(set);
    if (members.length === 0 || members.length > this.#rules.replicas) return;
    const whole = this.#fill(members);
    if (whole !== null) this.#add(whole);
  }

  /** The members that are up and fit together. */
  #present(set: readonly number[]): CopysetServer[] {
    const members: CopysetServer[] = [];
    for (const serverId of set) {
      const server = this.#servers.get(serverId);
      if (server !== undefined && this.#fits(members, server)) members.push(server);
    }
    return members;
  }

  /** Adds groups until every server has its scatter width, or no group adds to it any more. */
  complete(): void {
    const wanting = [...this.#servers.values()].sort((a, b) => a.serverId - b.serverId);
    const width = Math.min(this.#rules.scatterWidth, this.#servers.size - 1);
    for (const server of wanting) {
      while (this.#widthOf(server.serverId) < width) {
        const before = this.#widthOf(server.serverId);
        const whole = this.#fill([server]);
        if (whole === null) break;
        this.#add(whole);
        if (this.#widthOf(server.serverId) === before) break;
      }
    }
  }

  /** Completes a group with servers that share least with others, strangers first. */
  #fill(members: readonly CopysetServer[]): CopysetServer[] | null {
    const set = [...members];
    while (set.length < this.#rules.replicas) {
      let best: Candidate | null = null;
      for (const server of this.#servers.values()) {
        if (!this.#fits(set, server)) continue;
        const neighbours = this.#neighboursOf(server.serverId);
        let known = 0;
        for (const member of set) known += neighbours.has(member.serverId) ? 1 : 0;
        const candidate: Candidate = { server, known, width: neighbours.size };
        if (best === null || isBetter(candidate, best)) best = candidate;
      }
      if (best === null) return null;
      set.push(best.server);
    }
    return set;
  }

  /** Whether the server may join this part of a group. Called most: nothing is allocated. */
  #fits(set: readonly CopysetServer[], server: CopysetServer): boolean {
    let otherRack = false;
    let rack = server.rack;
    for (const member of set) {
      if (member.serverId === server.serverId) return false;
      if (!this.#rules.allowSameHost && member.host === server.host) return false;
      rack ??= member.rack;
      otherRack ||= member.rack !== null && member.rack !== rack;
    }
    if (!this.#severalRacks || otherRack) return true;
    // As many are still to come as racks are missing.
    return (rack === null ? 0 : 1) + (this.#rules.replicas - set.length - 1) >= 2;
  }

  #add(members: readonly CopysetServer[]): void {
    const set = members.map(({ serverId }) => serverId).sort((a, b) => a - b);
    const key = set.join(' ');
    if (this.#keys.has(key)) return;
    this.#keys.add(key);
    this.sets.push(set);
    for (const serverId of set) {
      const neighbours = this.#neighboursOf(serverId);
      for (const other of set) if (other !== serverId) neighbours.add(other);
    }
  }

  #widthOf(serverId: number): number {
    return this.#neighboursOf(serverId).size;
  }

  #neighboursOf(serverId: number): Set<number> {
    const neighbours = this.#neighbours.get(serverId);
    invariant(neighbours !== undefined, 'members of groups are servers that are up');
    return neighbours;
  }
}

function isBetter(one: Candidate, other: Candidate): boolean {
  const order = one.known - other.known || one.width - other.width;
  return (order || one.server.serverId - other.server.serverId) < 0;
}

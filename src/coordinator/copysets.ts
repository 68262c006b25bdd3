/**
 * Copysets: the groups of R backups that hold all replicas of a segment together (Cidon et al.,
 * USENIX ATC '13). The fewer groups there are, the less probable it is that R servers which fail at
 * once are one of them. The scatter width says how many other servers a server shares groups with:
 * more of them make re-replication faster and a loss more probable (docs/placement.md).
 *
 * Stable: a group whose members are all up never changes. One that lost a member gets another in
 * its place, so that what was lost there is copied to one server and the group holds all again; only
 * if none fits is the group given up. A server that joins gets groups of its own. Every group obeys
 * the rules of placement: distinct hosts (unless the cluster allows otherwise), and two racks if the
 * servers are in several. Pure, and without chance: the same history gives the same groups.
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
    if (set.length !== this.#rules.replicas) return false;
    for (let index = 0; index < set.length; index += 1) {
      if (!this.#fits(set.slice(0, index), set[index] ?? 0)) return false;
    }
    this.#add([...set]);
    return true;
  }

  /** Puts others in the place of members that are gone; the rest of the group stays. */
  repair(set: readonly number[]): void {
    const members: number[] = [];
    for (const serverId of set) {
      if (this.#servers.has(serverId) && this.#fits(members, serverId)) members.push(serverId);
    }
    if (members.length === 0 || members.length > this.#rules.replicas) return;
    const whole = this.#fill(members);
    if (whole !== null) this.#add(whole);
  }

  /** Adds groups until every server has its scatter width, or no group adds to it any more. */
  complete(): void {
    const wanting = [...this.#servers.keys()].sort((a, b) => a - b);
    const width = Math.min(this.#rules.scatterWidth, this.#servers.size - 1);
    for (const serverId of wanting) {
      while (this.#widthOf(serverId) < width) {
        const before = this.#widthOf(serverId);
        const whole = this.#fill([serverId]);
        if (whole === null) break;
        this.#add(whole);
        if (this.#widthOf(serverId) === before) break;
      }
    }
  }

  /** Completes a group with servers that share least with others, strangers first. */
  #fill(members: readonly number[]): number[] | null {
    const set = [...members];
    while (set.length < this.#rules.replicas) {
      let best: { serverId: number; known: number; width: number } | null = null;
      for (const serverId of this.#servers.keys()) {
        if (!this.#fits(set, serverId)) continue;
        const neighbours = this.#neighboursOf(serverId);
        const known = set.filter((member) => neighbours.has(member)).length;
        const candidate = { serverId, known, width: neighbours.size };
        if (best === null || isBetter(candidate, best)) best = candidate;
      }
      if (best === null) return null;
      set.push(best.serverId);
    }
    return set;
  }

  /** Whether the server may join this part of a group. */
  #fits(set: readonly number[], serverId: number): boolean {
    const server = this.#servers.get(serverId);
    if (server === undefined || set.includes(serverId)) return false;
    const members = set.flatMap((id) => this.#servers.get(id) ?? []);
    if (!this.#rules.allowSameHost && members.some(({ host }) => host === server.host))
      return false;
    if (!this.#severalRacks) return true;
    const racks = new Set(
      [...members, server].flatMap(({ rack }) => (rack === null ? [] : [rack])),
    );
    return racks.size + (this.#rules.replicas - set.length - 1) >= 2;
  }

  #add(set: number[]): void {
    set.sort((a, b) => a - b);
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

function isBetter(
  one: { serverId: number; known: number; width: number },
  other: { serverId: number; known: number; width: number },
): boolean {
  return (one.known - other.known || one.width - other.width || one.serverId - other.serverId) < 0;
}

/**
 * Chooses backups for the replicas of a segment.
 *
 * Rules that always hold: never the master's own server, never two replicas on one server; never
 * two on one host nor on the master's host, unless the cluster allows it; never all in one rack if
 * the backups that this master may use are in several (a server without a label proves nothing).
 * Among those that are left, a backup that completes a copyset of the cluster comes first, since
 * few combinations of servers then hold all replicas of anything (docs/placement.md); without one,
 * any is taken, and counted. Of two drawn at random the less loaded one is chosen, by what backups
 * report with each answer. One that is being drained is taken only if there is no other.
 *
 * Pure: random numbers and the time come from the owner. The rules are about labels in the server
 * list, not about load: a rack whose backups are all full does not make the other one enough.
 */
import type { ServerEntry, ServerList } from '../rpc/messages.js';
import {
  type PlacementShortage,
  type RuledOut,
  type RulingOut,
  ruledOutCount,
} from './placement-shortage.js';

/** What a backup reports with each answer to a write. */
export interface BackupLoad {
  freeFrames: number;
  queuedKib: number;
}

/** A backup that had no free frame, or failed a write, is left alone for so long. */
const pauseMs = 1_000;
/** Queues that differ by less are taken for equal. */
const queueStepKib = 1024;

interface Report extends BackupLoad {
  atMs: number;
  /** Replicas opened there by this master since then. */
  opened: number;
}

interface Health {
  report: Report | null;
  failedUntilMs: number;
  /** Latched: a disk that failed does not come back before the server does, under another id. */
  diskFailed: boolean;
}

export class BackupSelector {
  readonly #ownServerId: number;
  readonly #replicas: number;
  readonly #random: () => number;
  #backups = new Map<number, ServerEntry>();
  /** Copysets whose members are all up and allowed for this master. */
  #copysets: readonly (readonly number[])[] = [];
  #ownHost: string | null = null;
  #allowSameHost = false;
  #severalRacks = false;
  /** At most one entry per listed backup. */
  readonly #health = new Map<number, Health>();
  #draining: ReadonlySet<number> = new Set();
  #outsideCopysets = 0;

  constructor(ownServerId: number, replicas: number, random: () => number) {
    this.#ownServerId = ownServerId;
    this.#replicas = replicas;
    this.#random = random;
  }

  applyServerList(list: ServerList): void {
    this.#allowSameHost = list.allowSameHost;
    this.#backups = new Map();
    for (const server of list.servers) {
      if (server.serverId === this.#ownServerId) this.#ownHost = server.host;
      else if (server.backup && server.status === 'up') this.#backups.set(server.serverId, server);
    }
    for (const serverId of this.#health.keys()) {
      if (!this.#backups.has(serverId)) this.#health.delete(serverId);
    }
    const draining = [...this.#backups.values()].filter((server) => server.draining);
    this.#draining = new Set(draining.map(({ serverId }) => serverId));
    const usable = [...this.#backups.values()].filter((server) => !this.#onOwnHost(server));
    const racks = new Set(usable.flatMap(({ rack }) => (rack === null ? [] : [rack])));
    this.#severalRacks = racks.size > 1;
    const usableIds = new Set(usable.map(({ serverId }) => serverId));
    this.#copysets = list.copysets.filter(
      (set) => set.length === this.#replicas && set.every((serverId) => usableIds.has(serverId)),
    );
  }

  isUp(serverId: number): boolean {
    return this.#backups.has(serverId);
  }

  isDraining(serverId: number): boolean {
    return this.#draining.has(serverId);
  }

  /** Replicas that were placed although they complete no copyset, while there are copysets. */
  get outsideCopysets(): number {
    return this.#outsideCopysets;
  }

  noteLoad(serverId: number, load: BackupLoad, nowMs: number): void {
    const health = this.#healthOf(serverId);
    if (health !== null) health.report = { ...load, atMs: nowMs, opened: 0 };
  }

  noteFull(serverId: number, nowMs: number): void {
    this.noteLoad(serverId, { freeFrames: 0, queuedKib: 0 }, nowMs);
  }

  /** A write failed there, for good as far as its replica goes. */
  noteFailed(serverId: number, nowMs: number): void {
    const health = this.#healthOf(serverId);
    if (health !== null) health.failedUntilMs = nowMs + pauseMs;
  }

  noteDiskFailed(serverId: number): void {
    const health = this.#healthOf(serverId);
    if (health !== null) health.diskFailed = true;
  }

  /** A backup beside `taken`, or null if there is none at present. */
  choose(taken: readonly number[], excluded: ReadonlySet<number>, nowMs: number): number | null {
    const admissible = this.#admissible(taken, excluded, nowMs);
    const staying = admissible.filter((serverId) => !this.#draining.has(serverId));
    return this.#chooseOf(staying.length > 0 ? staying : admissible, taken);
  }

  /** The same, but never one that is being drained. */
  chooseStaying(
    taken: readonly number[],
    excluded: ReadonlySet<number>,
    nowMs: number,
  ): number | null {
    const admissible = this.#admissible(taken, excluded, nowMs);
    return this.#chooseOf(
      admissible.filter((serverId) => !this.#draining.has(serverId)),
      taken,
    );
  }

  #chooseOf(admissible: readonly number[], taken: readonly number[]): number | null {
    let pool: readonly number[] = this.#completing(taken, new Set(admissible));
    if (pool.length === 0) {
      pool = admissible;
      if (this.#copysets.length > 0 && pool.length > 0) this.#outsideCopysets += 1;
    }
    const first = this.#draw(pool);
    const second = this.#draw(pool);
    if (first === null || second === null) return null;
    const chosen = this.#isLighter(second, first) ? second : first;
    const report = this.#health.get(chosen)?.report;
    if (report) report.opened += 1;
    return chosen;
  }

  /** Whether a new segment could be placed without those that are being drained. */
  canLeave(nowMs: number): boolean {
    return this.#draining.size > 0 && this.shortage([], this.#draining, nowMs) === null;
  }

  /** Whether a new segment could be placed now. */
  canPlace(nowMs: number): boolean {
    return this.shortage([], new Set(), nowMs) === null;
  }

  /** What is missing to place a segment that has replicas on `taken`; null: nothing. */
  shortage(
    taken: readonly number[],
    excluded: ReadonlySet<number>,
    nowMs: number,
  ): PlacementShortage | null {
    const ruledOut: RuledOut = {};
    const placed = [...taken];
    // Hosts are taken in turn, and racks ask for one replica in another only: greed finds the most.
    for (let candidate = 0; ; ) {
      if (placed.length >= this.#replicas) return null;
      const [next] = this.#admissible(placed, excluded, nowMs);
      if (next === undefined) {
        for (const server of this.#backups.values()) {
          const { serverId } = server;
          // What could be had is not ruled out by being had.
          if (placed.includes(serverId) && !taken.includes(serverId)) continue;
          const why = this.#rulingOut(server, placed, excluded, nowMs);
          if (why === null) continue;
          ruledOut[why] = ruledOutCount(ruledOut, why) + 1;
        }
        const needed = this.#replicas - taken.length;
        return { needed, candidates: candidate, others: this.#backups.size, ruledOut };
      }
      placed.push(next);
      candidate += 1;
    }
  }

  #admissible(taken: readonly number[], excluded: ReadonlySet<number>, nowMs: number): number[] {
    const admissible: number[] = [];
    for (const [serverId, server] of this.#backups) {
      if (this.#rulingOut(server, taken, excluded, nowMs) === null) admissible.push(serverId);
    }
    return admissible;
  }

  /** The first reason why a backup cannot hold one more replica beside those on `taken`. */
  #rulingOut(
    server: ServerEntry,
    taken: readonly number[],
    excluded: ReadonlySet<number>,
    nowMs: number,
  ): RulingOut | null {
    if (taken.includes(server.serverId)) return 'holdsReplica';
    if (this.#onOwnHost(server)) return 'ownHost';
    const others = taken.map((serverId) => this.#backups.get(serverId));
    if (!this.#allowSameHost && others.some((other) => other?.host === server.host)) {
      return 'hostTaken';
    }
    const health = this.#health.get(server.serverId);
    if (health?.diskFailed) return 'diskFailed';
    if (excluded.has(server.serverId)) return 'notFreedYet';
    if ((health?.failedUntilMs ?? 0) > nowMs) return 'diskError';
    const report = health?.report;
    if (report && report.freeFrames <= report.opened && nowMs < report.atMs + pauseMs) {
      return 'noFreeFrame';
    }
    return this.#rackRulingOut(server, others);
  }

  #rackRulingOut(
    server: ServerEntry,
    others: readonly (ServerEntry | undefined)[],
  ): RulingOut | null {
    if (!this.#severalRacks || this.#replicas < 2) return null;
    const racks = new Set<string>();
    for (const each of [...others, server]) {
      if (each !== undefined && each.rack !== null) racks.add(each.rack);
    }
    const left = this.#replicas - others.length - 1;
    if (racks.size + left >= 2) return null;
    return server.rack === null ? 'noRackLabel' : 'sameRack';
  }

  /** Admissible backups that make, with `taken`, a copyset or a part of one that can be had. */
  #completing(taken: readonly number[], admissible: ReadonlySet<number>): number[] {
    const pool: number[] = [];
    for (const set of this.#copysets) {
      if (!taken.every((serverId) => set.includes(serverId))) continue;
      const rest = set.filter((serverId) => !taken.includes(serverId));
      if (rest.every((serverId) => admissible.has(serverId))) pool.push(...rest);
    }
    return pool;
  }

  #onOwnHost(server: ServerEntry): boolean {
    return !this.#allowSameHost && server.host === this.#ownHost;
  }

  #draw(pool: readonly number[]): number | null {
    return pool[Math.floor(this.#random() * pool.length)] ?? null;
  }

  /** Shorter queue; if that is equal, more free frames. A backup that is new is taken for idle. */
  #isLighter(one: number, other: number): boolean {
    const load = (serverId: number): [queue: number, free: number] => {
      const report = this.#health.get(serverId)?.report;
      if (!report) return [0, Number.POSITIVE_INFINITY];
      return [Math.floor(report.queuedKib / queueStepKib), report.freeFrames - report.opened];
    };
    const [queue, free] = load(one);
    const [otherQueue, otherFree] = load(other);
    return queue === otherQueue ? free > otherFree : queue < otherQueue;
  }

  #healthOf(serverId: number): Health | null {
    if (!this.#backups.has(serverId)) return null;
    const known = this.#health.get(serverId);
    if (known !== undefined) return known;
    const health: Health = { report: null, failedUntilMs: 0, diskFailed: false };
    this.#health.set(serverId, health);
    return health;
  }
}

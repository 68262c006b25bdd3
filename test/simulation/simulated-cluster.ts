/**
 * A whole simulated cluster: three coordinators on one store, servers, clients. First everything
 * may go wrong that the faults say; then nothing does any more, and all that was begun must come
 * to its end.
 */
import assert from 'node:assert/strict';
import type { SlotRange } from '../../src/rpc/messages.js';
import { CoordinatorRules, type Happening } from './coordinator-rules.js';
import { SimulatedCoordinator } from './simulated-coordinator.js';
import type { SimulatedLog } from './simulated-master.js';
import { SimulatedNetwork } from './simulated-network.js';
import { type Machine, SimulatedServer } from './simulated-server.js';
import { SimulatedStore } from './simulated-storage.js';
import { SimulatedTime } from './simulated-time.js';
import { Workload } from './workload.js';

const COORDINATORS = ['c1:1', 'c2:1', 'c3:1'];
const SERVERS = 5;
const CLIENTS = 3;
const REPLICAS = 2;
const FAULTS_MS = 12_000;
const SETTLE_MS = 240_000;

export interface Outcome extends Record<Happening, number> {
  operations: number;
  events: number;
  /** Virtual time. */
  endedAtMs: number;
}

export class SimulatedCluster {
  readonly time: SimulatedTime;
  readonly network: SimulatedNetwork;
  readonly store = new SimulatedStore();
  readonly storageFaults = { delayMs: 2, lost: 0, unknown: 0 };
  readonly logs = new Map<number, SimulatedLog>();
  readonly rules = new CoordinatorRules(this.logs);
  readonly coordinators = COORDINATORS;
  readonly replicas = REPLICAS;
  over = false;
  private readonly problems: string[] = [];
  private readonly leaders = new Map<string, SimulatedCoordinator>();
  private readonly servers = new Map<string, SimulatedServer>();
  private readonly machines: Machine[] = [];
  private readonly clients: Workload[] = [];
  private readonly ids = new Map<string, number>();
  private incarnations = 0;
  private crashShare = 0;

  constructor(seed: number) {
    this.time = new SimulatedTime(seed);
    this.network = new SimulatedNetwork(this.time);
    this.store.onCommit = (commit) => {
      this.guard(() => this.rules.committed(commit));
    };
  }

  get state(): CoordinatorRules['state'] {
    return this.rules.state;
  }

  broken(what: string): void {
    this.problems.push(what);
  }

  fails(share: number): boolean {
    return this.crashShare > 0 && this.time.chance(share);
  }

  readonly faultPoint = (coordinator: SimulatedCoordinator) => (): Promise<void> | undefined => {
    if (!this.time.chance(this.crashShare)) return undefined;
    coordinator.kill();
    return new Promise<void>(() => undefined);
  };

  joined(nonce: string, serverId: number): void {
    const known = this.ids.get(nonce);
    if (known !== undefined && known !== serverId) this.broken(`${nonce} has two ids`);
    this.ids.set(nonce, serverId);
    if (!this.rules.knows(serverId)) this.broken(`server ${serverId} was not committed`);
  }

  /** Of all that have a lease one may answer reads. */
  serves(server: SimulatedServer, ranges: readonly SlotRange[]): void {
    for (const range of ranges) {
      if (this.state.tables.get(range.tableId)?.state !== 'normal') continue;
      const all = [...this.servers.values()].filter((each) => each.mayAnswer(range));
      if (all.length < 2 || !all.includes(server)) continue;
      const ids = all.map(({ serverId }) => serverId).join();
      this.broken(`servers ${ids} all answer reads of ${JSON.stringify(range)}`);
    }
  }

  ended(process: SimulatedServer | SimulatedCoordinator): void {
    const restartMs = this.time.between(100, 3_000);
    this.time.at(this.time.nowMs + restartMs, () => {
      if (process instanceof SimulatedServer) this.boot(process.machine);
      else this.leaders.set(process.address, new SimulatedCoordinator(this, process.address));
    });
  }

  async play(): Promise<Outcome> {
    for (const address of COORDINATORS) {
      this.leaders.set(address, new SimulatedCoordinator(this, address));
    }
    for (let n = 1; n <= SERVERS; n++) {
      const machine = { name: `s${n}`, address: `s${n}:1`, host: `h${n}`, formerId: null };
      this.machines.push(machine);
      this.boot(machine);
    }
    const failed = (): boolean => this.problems.length > 0;
    await this.time.run(20_000, () => this.state.upServers().length === SERVERS || failed());
    for (let n = 1; n <= CLIENTS; n++) this.clients.push(new Workload(this, `k${n}`));
    const beginMs = this.time.nowMs;
    this.faults(true);
    this.strike();
    await this.time.run(beginMs + FAULTS_MS, failed);
    this.faults(false);
    this.over = true;
    const settled = await this.time.run(
      this.time.nowMs + SETTLE_MS,
      () => failed() || this.unsettled() === null,
    );
    assert.deepEqual(this.problems, []);
    assert.ok(settled, `it does not come to an end: ${this.unsettled()}`);
    this.checkOwners();
    this.checkLists();
    for (const client of this.clients) client.check();
    return {
      ...this.rules.seen,
      operations: this.clients.reduce((sum, { done }) => sum + done, 0),
      events: this.time.events,
      endedAtMs: this.time.nowMs,
    };
  }

  private boot(machine: Machine): void {
    const nonce = `${machine.name}-${++this.incarnations}`;
    this.servers.set(machine.name, new SimulatedServer(this, machine, nonce));
  }

  /** How bad it is differs from run to run. */
  private faults(on: boolean): void {
    const { time } = this;
    const share = (most: number): number => (on ? most * time.random() ** 2 : 0);
    Object.assign(this.network.faults, {
      delayMs: on ? time.pick([2, 10, 60, 300]) : 2,
      lost: share(0.1),
      twice: share(0.3),
    });
    Object.assign(this.storageFaults, {
      delayMs: on ? time.pick([2, 10, 60, 300]) : 2,
      lost: share(0.1),
      unknown: share(0.01),
    });
    this.crashShare = on ? Math.max(0.001, share(0.05)) : 0;
    this.network.cuts.clear();
    if (on) return;
    for (const each of [...this.leaders.values(), ...this.servers.values()]) each.process.resume();
  }

  /** One thing after the other goes wrong, for as long as things may. */
  private strike(): void {
    if (this.over) return;
    const { time } = this;
    const coordinator = time.pick([...this.leaders.values()]);
    const server = time.pick([...this.servers.values()]);
    const dice = time.below(11);
    if (dice < 2) coordinator.kill();
    else if (dice < 4) this.standStill(coordinator);
    else if (dice < 6) server.end();
    else if (dice < 7) this.standStill(server);
    else if (dice < 8) this.cut(coordinator.process.name, server.machine.address);
    else if (dice < 9) this.cut(server.process.name, time.pick(COORDINATORS));
    else if (dice < 10) this.deafen(server);
    time.at(time.nowMs + time.between(50, 1_500), () => this.strike());
  }

  private standStill({ process }: SimulatedCoordinator | SimulatedServer): void {
    process.pause();
    const lastsMs = this.time.pick([50, 300, 1_500, 7_000]);
    this.time.at(this.time.nowMs + lastsMs, () => process.resume());
  }

  /** It reaches everybody, and nobody reaches it: it is declared crashed while it has a lease. */
  private deafen({ machine, process }: SimulatedServer): void {
    for (const other of [...this.leaders.values(), ...this.servers.values()]) {
      if (other.process !== process) this.cut(other.process.name, machine.address);
    }
  }

  private cut(from: string, to: string): void {
    const pair = `${from} ${to}`;
    this.network.cuts.add(pair);
    const { time } = this;
    time.at(time.nowMs + time.between(100, 4_000), () => this.network.cuts.delete(pair));
  }

  /** What is not over yet; null: nothing. */
  private unsettled(): string | null {
    const { tables, migrations, recoveries, cluster } = this.state;
    const pending = [...tables.values()].filter(({ state }) => state !== 'normal');
    if (pending.length > 0) return `tables ${pending.map((each) => each.state).join()}`;
    if (migrations.size > 0) return `${migrations.size} migrations`;
    if (recoveries.size > 0) return `${recoveries.size} recoveries`;
    const draining = [...this.state.servers.values()].filter((s) => s.drain?.state === 'draining');
    if (draining.length > 0) return `drains of ${draining.map((each) => each.serverId).join()}`;
    if (this.clients.some(({ open }) => open > 0)) return 'operations of clients';
    const up = this.state.upServers();
    if (up.length < SERVERS) return `${up.length} servers`;
    for (const { serverId } of up) {
      const server = [...this.servers.values()].find((each) => each.serverId === serverId);
      if (server === undefined) return `server ${serverId} is not there`;
      const { version, list } = server.membership;
      const news = version === cluster.serverListVersion && list !== null;
      if (!news) return `the list of server ${serverId}`;
      const coming = server.master?.tablets.some(({ service }) => service === 'coming') ?? true;
      if (coming) return `what comes to server ${serverId}`;
    }
    return null;
  }

  /** Each tablet is where the map has it, made of whole ones there, and nowhere else. */
  private checkOwners(): void {
    for (const { tableId, tablets } of this.state.tables.values()) {
      for (const { startSlot, endSlot, serverId } of tablets) {
        const range = { tableId, startSlot, endSlot };
        const what = JSON.stringify({ ...range, serverId });
        for (const server of this.servers.values()) {
          if (server.serverId !== serverId) {
            assert.ok(!server.has(range), `server ${server.serverId} has ${what} as well`);
            continue;
          }
          const parts = server.master?.serves(range) ?? [];
          const whole = parts.every((p) => p.startSlot >= startSlot && p.endSlot <= endSlot);
          const slots = parts.reduce((sum, p) => sum + p.endSlot - p.startSlot + 1, 0);
          assert.ok(whole && slots === endSlot - startSlot + 1, `${what} is not served`);
          assert.ok(
            parts.every(({ service, moving }) => service === 'full' && !moving),
            `${what} is locked`,
          );
        }
      }
    }
  }

  /** Made of updates, and the same everywhere. */
  private checkLists(): void {
    const { term: _, ...list } = this.state.serverList();
    for (const { membership } of this.servers.values()) {
      const { term: __, ...has } = membership.list ?? { term: 0 };
      assert.deepEqual(has, list);
    }
  }

  private guard(check: () => void): void {
    try {
      check();
    } catch (error) {
      this.broken((error as Error).stack ?? String(error));
    }
  }
}

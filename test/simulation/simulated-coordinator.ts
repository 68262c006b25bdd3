/**
 * A coordinator process on simulated time, network and storage: the real candidate, gate and
 * coordinator, put together as `src/cluster/coordinator.ts` does it. It may die at any fault point.
 */
import { CoordinatorGate } from '../../src/cluster/coordinator-gate.js';
import { Candidate, type Lead, redirect } from '../../src/coordinator/candidate.js';
import { Coordinator } from '../../src/coordinator/coordinator.js';
import { FAILURE_MONITOR_DEFAULTS } from '../../src/coordinator/failure-monitor.js';
import { asRekindleError, RekindleError } from '../../src/rpc/errors.js';
import type { FaultPoint } from '../../src/rpc/fault-point.js';
import type { JsonRpcName } from '../../src/rpc/table.js';
import type { JsonHandler, Peer } from '../../src/rpc/transport.js';
import type { SimulatedLinkPool, SimulatedNetwork, SimulatedNode } from './simulated-network.js';
import { SimulatedStorage, type SimulatedStore, type StorageFaults } from './simulated-storage.js';
import { SimulatedProcess } from './simulated-time.js';

export interface CoordinatorWorld {
  readonly network: SimulatedNetwork;
  readonly store: SimulatedStore;
  readonly storageFaults: StorageFaults;
  readonly replicas: number;
  readonly faultPoint: (coordinator: SimulatedCoordinator) => FaultPoint;
  ended(coordinator: SimulatedCoordinator): void;
  /** Something that must never happen. */
  broken(what: string): void;
}

/** Of etcd: the key of a leader that cannot reach it goes. */
const LEASE_MS = 5_000;
const QUIET = { ms: () => 0, close: () => undefined };
/** Fewer events than every 100 ms. */
const MONITOR = { ...FAILURE_MONITOR_DEFAULTS, pingIntervalMs: 300 };

export class SimulatedCoordinator implements SimulatedNode {
  readonly process: SimulatedProcess;
  readonly serverId = null;
  readonly nonce = '';
  private readonly handlers = new Map<string, (request: unknown, call: never) => unknown>();
  private readonly storage: SimulatedStorage;
  private readonly pool: SimulatedLinkPool;
  private readonly gate = new CoordinatorGate(() => redirect(this.candidate.leader));
  private readonly candidate: Candidate;
  private coordinator: Coordinator | null = null;

  constructor(
    private readonly world: CoordinatorWorld,
    readonly address: string,
  ) {
    const { network, store, storageFaults } = world;
    this.process = new SimulatedProcess(network.time, address);
    this.storage = new SimulatedStorage(store, this.process, storageFaults);
    this.pool = network.pool(this.process, () => ({
      ...{ role: 'coordinator', serverId: null, remoteAddress: '' },
    }));
    const handle = (name: string, handler: unknown): void => {
      this.handlers.set(name, handler as (request: unknown, call: never) => unknown);
    };
    this.gate.install({ handle } as Parameters<CoordinatorGate['install']>[0]);
    this.candidate = new Candidate({
      storage: this.storage,
      links: this.pool,
      address,
      log: (level, message, fields) => this.log(level, message, fields),
      lag: QUIET,
      clock: this.process.clock,
      onLead: (lead) => this.lead(lead),
      onDeposed: () => this.standBy('another coordinator leads'),
    });
    network.nodes.set(address, this);
    this.candidate.start(() => undefined).catch((error: unknown) => world.broken(String(error)));
    this.watchLease();
  }

  get leads(): boolean {
    return this.process.alive && this.coordinator !== null && this.coordinator.clusterId !== null;
  }

  answer(name: JsonRpcName, request: unknown, call: { peer: Peer; deadlineMs: number }): unknown {
    const handler = this.handlers.get(name);
    if (handler === undefined) throw new RekindleError('UNSUPPORTED_OPCODE', name);
    return (handler as JsonHandler<JsonRpcName>)(request as never, call);
  }

  /** As SIGKILL. */
  kill(): void {
    if (!this.process.alive) return;
    this.world.network.kill(this.address);
    const held = this.world.store.leader;
    const { time } = this.process;
    if (held?.address === this.address) {
      time.at(time.nowMs + LEASE_MS, () => this.world.store.resign(held));
    }
    this.world.ended(this);
  }

  /** Who stands still for too long loses the key as well. */
  private watchLease(): void {
    const { time } = this.process;
    let stoodStillMs = 0;
    const look = (): void => {
      if (!this.process.alive) return;
      stoodStillMs = this.process.standsStill ? stoodStillMs + 500 : 0;
      const held = this.world.store.leader;
      if (stoodStillMs >= LEASE_MS && held?.address === this.address) this.world.store.resign(held);
      time.at(time.nowMs + 500, look);
    };
    look();
  }

  private lead(lead: Lead): void {
    const { replicas, faultPoint } = this.world;
    const coordinator = new Coordinator({
      endpoint: this.gate,
      links: this.pool,
      storage: this.storage,
      config: { replicas },
      log: (level, message, fields) => this.log(level, message, fields),
      clock: this.process.clock,
      lag: QUIET,
      monitor: MONITOR,
      // Five servers make a tree.
      listFanOut: 2,
      faultPoint: faultPoint(this),
      onFatal: (error) => this.cannotGoOn(coordinator, error),
    });
    this.coordinator = coordinator;
    coordinator.start(lead).catch((error: unknown) => {
      coordinator.depose('the coordinator could not begin');
      this.cannotGoOn(coordinator, asRekindleError(error));
    });
  }

  private standBy(reason: string): void {
    this.coordinator?.depose(reason);
    this.coordinator = null;
    this.gate.shut();
  }

  private cannotGoOn(coordinator: Coordinator, error: RekindleError): void {
    if (this.coordinator !== coordinator) return;
    if (error.code === 'FENCED') {
      this.standBy(error.message);
      this.candidate.surrender().catch(() => this.kill());
      return;
    }
    if (error.code !== 'DISK_ERROR') this.world.broken(`a leader ended: ${error.stack}`);
    this.kill();
  }

  private log(level: string, message: string, fields: object = {}): void {
    if (process.env.REKINDLE_SIM_LOG === undefined) return;
    const atMs = Math.round(this.process.time.nowMs);
    console.log(atMs, this.address, level, message, JSON.stringify(fields));
  }
}

/**
 * A server process as far as the coordinator has to do with it: it joins, keeps the server list,
 * owns tablets, recovers partitions, moves tablets, lists replicas, answers witnesses, renews its
 * lease, and ends when it hears that it was declared crashed. It follows `src/master` and
 * `src/cluster/server.ts`; each step takes time, and may fail.
 */
import { Membership } from '../../src/cluster/membership.js';
import { takeServerList } from '../../src/cluster/server-list-forwarder.js';
import { asRekindleError, RekindleError } from '../../src/rpc/errors.js';
import type { SlotRange } from '../../src/rpc/messages.js';
import { probe } from '../../src/rpc/probe.js';
import { readLeaseMarginMs } from '../../src/rpc/read-lease-terms.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../../src/rpc/table.js';
import type { RpcLink } from '../../src/rpc/transport.js';
import { SimulatedCaller } from './simulated-caller.js';
import { overlaps, type SimulatedLog, SimulatedMaster } from './simulated-master.js';
import { SimulatedMoves } from './simulated-moves.js';
import type { SimulatedNetwork, SimulatedNode } from './simulated-network.js';
import { SimulatedProcess } from './simulated-time.js';

/** What stays when a process ends. */
export interface Machine {
  readonly name: string;
  readonly address: string;
  readonly host: string;
  /** Of the process that wrote to its disk last. */
  formerId: number | null;
}

/** What servers share: what happens to them, and what is on disks. */
export interface ServerWorld {
  readonly network: SimulatedNetwork;
  readonly coordinators: readonly string[];
  /** By server id. */
  readonly logs: Map<number, SimulatedLog>;
  /** Whether something goes wrong that goes wrong with this probability. */
  fails(share: number): boolean;
  /** Told when a server begins to serve tablets, or has a lease again. */
  serves(server: SimulatedServer, ranges: readonly SlotRange[]): void;
  /** Told when an enlistment was answered. */
  joined(nonce: string, serverId: number): void;
  ended(server: SimulatedServer): void;
}

const LEASE_RENEWAL_MS = 100;

export class SimulatedServer implements SimulatedNode {
  serverId: number | null = null;
  readonly process: SimulatedProcess;
  readonly membership = new Membership();
  readonly coordinator: SimulatedCaller;
  /** It may answer reads until then. */
  leaseUntilMs = 0;
  /** null before it has joined. */
  master: SimulatedMaster | null = null;
  private moves: SimulatedMoves | null = null;
  private readonly pool;

  constructor(
    readonly world: ServerWorld,
    readonly machine: Machine,
    readonly nonce: string,
  ) {
    const { network } = world;
    this.process = new SimulatedProcess(network.time, `server ${nonce}`);
    const peer = () => ({ role: 'server' as const, serverId: this.serverId, remoteAddress: '' });
    this.pool = network.pool(this.process, peer);
    this.coordinator = new SimulatedCaller(this.pool, this.process, world.coordinators);
    network.nodes.set(machine.address, this);
    void this.live();
  }

  get id(): number {
    if (this.serverId === null) throw new RekindleError('RETRY', 'it has not joined yet');
    return this.serverId;
  }

  link(serverId: number): RpcLink {
    const link = this.membership.directory(this.pool).linkTo(serverId);
    if (link === null) throw new RekindleError('CONNECTION_LOST', `${serverId} is not up`);
    return link;
  }

  answer(name: JsonRpcName, request: unknown): unknown {
    // Those with a term are of leaders.
    const term = (request as { term?: number }).term;
    if (term !== undefined) this.membership.checkTerm(term);
    const member = this.ofMember(name, request);
    if (member !== undefined) return member;
    const { master, moves } = this;
    if (master === null || moves === null) throw new RekindleError('RETRY', 'it is starting');
    return this.ofMaster(name, request, master) ?? moves.answer(name, request);
  }

  private ofMember(name: JsonRpcName, request: unknown): unknown {
    switch (name) {
      case 'PING': {
        const { callerServerId } = request as RequestOf<'PING'>;
        const member = callerServerId === null || this.membership.mayBeMember(callerServerId);
        return { serverListVersion: this.membership.version, member, lagMs: 0 };
      }
      case 'UPDATE_SERVER_LIST':
        return this.takeList(request as RequestOf<'UPDATE_SERVER_LIST'>);
      case 'PROBE_SERVER':
        return this.witness(request as RequestOf<'PROBE_SERVER'>);
      case 'START_READING_DATA':
        return this.replicasOf((request as RequestOf<'START_READING_DATA'>).crashedServerId);
      case 'STORE_COORDINATOR_STATE':
      case 'START_PARTITIONS':
      case 'RECOVERY_COMPLETE':
        return {};
      case 'GET_SERVER_STATS':
        return { master: { memoryBytes: 1e9, liveBytes: 1e6 } };
      case 'COUNT_REPLICAS':
        return {
          serverListVersion: this.membership.version,
          replicas: this.world.fails(0.5) ? 1 : 0,
        };
      default:
        return undefined;
    }
  }

  private ofMaster(name: JsonRpcName, request: unknown, master: SimulatedMaster): unknown {
    switch (name) {
      case 'TAKE_TABLET_OWNERSHIP':
        master.take(request as SlotRange);
        return {};
      case 'DROP_TABLET_OWNERSHIP':
        return this.drop(request as SlotRange, master);
      case 'MERGE_TABLET_OWNERSHIP': {
        const { apply, ...range } = request as RequestOf<'MERGE_TABLET_OWNERSHIP'>;
        const ctimeSegmentId = master.mergedCtime(range);
        if (apply) master.merge(range);
        return { ctimeSegmentId };
      }
      case 'SPLIT_TABLET_OWNERSHIP': {
        const { slot, ...range } = request as RequestOf<'SPLIT_TABLET_OWNERSHIP'>;
        if (this.world.fails(0.3)) throw new RekindleError('RETRY', 'it counts');
        master.split(range, slot);
        return {};
      }
      default:
        return undefined;
    }
  }

  private async drop(range: SlotRange, master: SimulatedMaster): Promise<object> {
    const gone = master.drop(range);
    this.moves?.dropped(range);
    if (gone !== null) {
      await this.process.sleep(this.process.time.between(0, 300));
      master.erased(gone);
    }
    return {};
  }

  private replicasOf(serverId: number): ReplyOf<'START_READING_DATA'> {
    const { headSegmentId, epoch, lostSegmentIds } = this.world.logs.get(serverId) as SimulatedLog;
    const open = { closed: false, primary: true, doubtful: false };
    const segmentIds = [...lostSegmentIds, headSegmentId];
    return {
      leaseRemainderMs: 0,
      replicas: [{ segmentId: headSegmentId, epoch, length: 64, ...open }],
      digests: [{ segmentId: headSegmentId, epoch, segmentIds, tabletStats: [] }],
    };
  }

  private takeList(request: RequestOf<'UPDATE_SERVER_LIST'>): Promise<unknown> {
    const directory = this.membership.directory(this.pool);
    return takeServerList(request, this.membership, directory, { debug: () => undefined });
  }

  private async witness({
    serverId,
    timeoutMs,
  }: RequestOf<'PROBE_SERVER'>): Promise<ReplyOf<'PROBE_SERVER'>> {
    const directory = this.membership.directory(this.pool);
    const link = (): RpcLink => directory.linkTo(serverId) ?? this.pool.link('nowhere', serverId);
    if (directory.linkTo(serverId) === null) return { outcome: 'unknown' };
    const freshLink = (): RpcLink => directory.freshLinkTo(serverId) ?? link();
    const { clock } = this.process;
    return { outcome: await probe({ link, freshLink }, timeoutMs, undefined, clock) };
  }

  private async live(): Promise<void> {
    const { process, machine, world, nonce } = this;
    await process.sleep(process.time.between(0, 50));
    try {
      const { serverId, list } = await this.coordinator.call('ENLIST_SERVER', {
        ...{ nonce, replacesId: machine.formerId, clusterId: null, address: machine.address },
        ...{ host: machine.host, rack: null, master: true, backup: true, memoryBytes: 1 },
      });
      world.joined(nonce, serverId);
      this.join(serverId);
      this.membership.apply(list);
      this.membership.subscribe((newer) => {
        const own = newer.servers.find((each) => each.serverId === serverId);
        if (own?.status !== 'up') this.end();
      });
      await this.renew(serverId);
    } catch (error) {
      // It was declared crashed before it had heard of its id.
      if (asRekindleError(error).code !== 'CALLER_NOT_IN_CLUSTER') throw error;
      this.end();
    }
  }

  private join(serverId: number): void {
    const lostSegmentIds = this.world.fails(0.4) ? [1] : [];
    const first = { headSegmentId: 2, firstSegmentId: 1, epoch: 0, lostSegmentIds };
    const log = this.world.logs.get(serverId) ?? first;
    this.serverId = serverId;
    this.machine.formerId = serverId;
    this.world.logs.set(serverId, log);
    this.master = new SimulatedMaster(log);
    this.moves = new SimulatedMoves(this, this.master);
  }

  /** As the coordinator grants it: what its backups grant is not its matter. */
  private async renew(serverId: number): Promise<void> {
    for (;;) {
      const askedAtMs = this.process.time.nowMs;
      try {
        const request = { serverId };
        const options = { attempts: 1, timeoutMs: 300 };
        const { member, leaseMs } = await this.coordinator.call(
          'VERIFY_MEMBERSHIP',
          request,
          options,
        );
        if (!member) {
          this.end();
          return;
        }
        const lapsed = this.process.time.nowMs >= this.leaseUntilMs;
        this.leaseUntilMs = askedAtMs + leaseMs - readLeaseMarginMs;
        if (lapsed) this.world.serves(this, this.master?.tablets ?? []);
      } catch (error) {
        const { retryable, code } = asRekindleError(error);
        if (!retryable && code !== 'DISK_ERROR') throw error;
      }
      await this.process.sleep(LEASE_RENEWAL_MS);
      await this.write();
    }
  }

  /** A head is closed now and then, old segments are cleaned, an open replica is lost. */
  private async write(): Promise<void> {
    const { master, process, world } = this;
    if (master === null) return;
    const { log } = master;
    if (process.time.chance(0.02)) log.headSegmentId++;
    if (process.time.chance(0.01)) master.clean(log.headSegmentId - process.time.below(3));
    if (!world.fails(0.01)) return;
    log.epoch++;
    const { headSegmentId: segmentId, epoch } = log;
    await this.coordinator.call('SET_MASTER_RECOVERY_INFO', {
      serverId: this.id,
      segmentId,
      epoch,
    });
  }

  end(): void {
    if (!this.process.alive) return;
    this.leaseUntilMs = 0;
    this.world.network.kill(this.machine.address);
    this.world.ended(this);
  }

  /** Whether it answers reads of a part of the range now. */
  mayAnswer(range: SlotRange): boolean {
    const leased = this.process.alive && this.process.time.nowMs < this.leaseUntilMs;
    return leased && (this.master?.serves(range).length ?? 0) > 0;
  }

  has(range: SlotRange): boolean {
    return this.master?.tablets.some((each) => overlaps(each, range)) ?? false;
  }
}

/**
 * The coordinator as it runs: RPC handlers and timers around the machines of this folder. The
 * rule: a change is decided on the committed state, committed in one transaction, and only then
 * does anybody hear of it; whatever has to follow is derived from the committed state, so that a
 * successor does it too.
 *
 * One of these lives as long as one leadership. Links, endpoint and storage are given by the
 * caller, who also closes them.
 */
import { randomUUID } from 'node:crypto';
import type { Sluggishness } from '../ops/sluggishness.js';
import { type Clock, systemClock } from '../rpc/clock.js';
import { asRekindleError, invariant, RekindleError } from '../rpc/errors.js';
import { type FaultPoint, faultPoint as processFaultPoint } from '../rpc/fault-point.js';
import type { ClusterStatus } from '../rpc/messages.js';
import { answersWithoutId } from '../rpc/probe.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../rpc/table.js';
import type { CallOptions, JsonHandler, LinkPool, RpcEndpoint } from '../rpc/transport.js';
import { Balancer } from './balancer.js';
import type { Lead } from './candidate.js';
import { type ClusterOptions, decideStart } from './cluster-start.js';
import { clusterNotes, clusterWarnings } from './cluster-warnings.js';
import type { CoordinatorContext, Log } from './context.js';
import type { CoordinatorState, Decision } from './coordinator-state.js';
import { DrainManager } from './drain-manager.js';
import type { ExternalStorage, Leadership } from './external-storage/external-storage.js';
import { FAILURE_MONITOR_DEFAULTS, FailureMonitor } from './failure-monitor.js';
import { MigrationManager } from './migration-manager.js';
import { ReadLeases } from './read-leases.js';
import { RecoveryManager } from './recovery-manager.js';
import { decideCrash, decideEnlist, decideRecoveryInfo } from './server-list.js';
import { ServerListPusher } from './server-list-pusher.js';
import { StateCopier } from './state-copier.js';
import { TableOperations } from './table-operations.js';
import { TableTurns } from './table-turns.js';
import { decideCreateTable, decideDropTable } from './tables.js';
import { mergeTablets } from './tablet-merge-operation.js';
import { splitTablet } from './tablet-split-operation.js';

/** Commits that may wait for their turn. */
const COMMITS_WAITING_MAX = 10_000;
/** How long CREATE_TABLE and DROP_TABLE wait for masters before they answer. */
const TABLE_WAIT_MS = 12_000;
const REPLY_MARGIN_MS = 200;

export interface CoordinatorOptions {
  endpoint: Pick<RpcEndpoint, 'handle'>;
  links: LinkPool;
  storage: Pick<ExternalStorage, 'commit' | 'confirm' | 'candidates'>;
  /** Fixed at the first start of the cluster; left out: as stored, or the default. */
  config: ClusterOptions;
  log: Log;
  /** Default: that of the system. */
  clock?: Clock;
  /** How slow this process is; default: measured. */
  lag?: Pick<Sluggishness, 'ms' | 'close'>;
  /** Called once if the coordinator cannot go on (storage lost or taken over). */
  onFatal?: (error: RekindleError) => void;
  faultPoint?: FaultPoint;
  /** Tablets are moved so that masters have equal shares; default false. */
  balance?: boolean;
  monitor?: typeof FAILURE_MONITOR_DEFAULTS;
  /** Servers that one tells of a new server list. */
  listFanOut?: number;
}

export class Coordinator implements CoordinatorContext {
  private committed: CoordinatorState | null = null;
  private leadership: Leadership | null = null;
  private committedRevision = 0;
  private commitTail: Promise<unknown> = Promise.resolve();
  private commitsWaiting = 0;
  private stoppedBy: RekindleError | null = null;
  /** What cancels each. */
  private readonly timers = new Set<() => void>();
  /** Of requests that are being carried out. */
  private readonly waiting = new Set<(error: RekindleError) => void>();
  private readonly monitor: FailureMonitor;
  private readonly pusher: ServerListPusher;
  private readonly copier: StateCopier;
  private readonly tables: TableOperations;
  private readonly migrations: MigrationManager;
  private readonly turns = new TableTurns();
  private readonly drains: DrainManager;
  private readonly balancer: Balancer;
  private readonly recoveries: RecoveryManager;
  private readonly leases: ReadLeases;
  readonly log: Log;
  readonly faultPoint: FaultPoint;
  readonly clock: Clock;

  constructor(private readonly options: CoordinatorOptions) {
    this.log = options.log;
    this.clock = options.clock ?? systemClock;
    this.leases = new ReadLeases(this.clock.monotonicMs());
    this.faultPoint = options.faultPoint ?? processFaultPoint;
    this.monitor = new FailureMonitor(
      this,
      options.links,
      (serverId, suspectedAtMs, reason) =>
        this.background(this.crash(serverId, suspectedAtMs, reason), 'declaring a crash'),
      options.monitor ?? FAILURE_MONITOR_DEFAULTS,
      options.lag,
    );
    this.pusher = new ServerListPusher(this, options.listFanOut);
    this.copier = new StateCopier(this);
    this.tables = new TableOperations(this);
    this.migrations = new MigrationManager(this);
    this.drains = new DrainManager(this, this.migrations);
    this.balancer = new Balancer(this, this.migrations, options.balance ?? false);
    this.recoveries = new RecoveryManager(this, this.leases);
    this.registerHandlers();
  }

  /** null until the state is loaded; for the identity of the endpoint. */
  get clusterId(): string | null {
    return this.committed?.cluster.clusterId ?? null;
  }

  get state(): CoordinatorState {
    invariant(this.committed !== null, 'the state is loaded before anything looks at it');
    return this.committed;
  }

  get revision(): number {
    return this.committedRevision;
  }

  now(): number {
    return this.clock.now();
  }

  /** Begins a term (★) on the state of the victory; takes up whatever was left unfinished. */
  async start({ leadership, revision, state }: Lead): Promise<void> {
    const { config, storage } = this.options;
    const { writes } = decideStart(state, config, randomUUID(), leadership.term);
    this.committedRevision = await storage.commit(leadership, revision, writes);
    this.leadership = leadership;
    state.apply(writes);
    this.committed = state;
    const { clusterId, term } = state.cluster;
    const fields = { clusterId, term, servers: state.servers.size, tables: state.tables.size };
    this.log('info', 'the coordinator serves', fields);
    this.monitor.start();
    this.balancer.start();
    this.changed();
  }

  /** Stops all work. Nothing is left to be flushed. */
  async close(): Promise<void> {
    this.depose('the coordinator stops');
    await this.commitTail;
  }

  /** The leadership is over: from now on everything is refused. */
  depose(reason: string): void {
    this.stop(new RekindleError('SHUTTING_DOWN', reason));
  }

  commit<T>(decide: (state: CoordinatorState) => Decision<T>): Promise<T> {
    if (this.commitsWaiting >= COMMITS_WAITING_MAX) {
      throw new RekindleError('RETRY', 'too many changes are waiting', { retryAfterMs: 200 });
    }
    this.commitsWaiting++;
    const turn = this.commitTail.then(() => this.commitNow(decide));
    // The next commit follows whether this one failed or not; its own caller hears of the failure.
    this.commitTail = turn.then(
      () => this.commitsWaiting--,
      () => this.commitsWaiting--,
    );
    return turn;
  }

  private async commitNow<T>(decide: (state: CoordinatorState) => Decision<T>): Promise<T> {
    if (this.stoppedBy !== null) throw this.stoppedBy;
    const { state, leadership, committedRevision } = this;
    invariant(leadership !== null, 'who commits leads');
    const { writes, result } = decide(state);
    if (writes.length === 0) {
      // What is not so here may be so at the leader after this one: "no" is an answer, too.
      await this.confirmLeadership();
      return result;
    }
    const { storage } = this.options;
    try {
      this.committedRevision = await storage.commit(leadership, committedRevision, writes);
    } catch (error) {
      const cause = asRekindleError(error);
      // Refused before anything was written: only this change fails.
      if (cause.code === 'REQUEST_TOO_LARGE' || cause.code === 'INVALID_ARGUMENT') throw cause;
      this.fatal(cause);
      throw cause.code === 'FENCED' ? leadershipLost(cause) : cause;
    }
    state.apply(writes);
    this.changed();
    return result;
  }

  async call<K extends JsonRpcName>(
    serverId: number,
    name: K,
    request: RequestOf<K>,
    options?: CallOptions,
  ): Promise<ReplyOf<K>> {
    const server = this.state.servers.get(serverId);
    if (this.stoppedBy !== null) throw this.stoppedBy;
    if (server === undefined || server.status !== 'up') {
      throw new RekindleError('CONNECTION_LOST', `server ${serverId} is not up`, {
        outcome: 'not-applied',
      });
    }
    try {
      return await this.monitor.link(server).call(name, request, options);
    } catch (error) {
      const { code, message } = asRekindleError(error);
      const lost = code === 'CONNECTION_LOST' || code === 'WRONG_SERVER' || code === 'TIMEOUT';
      if (lost && !answersWithoutId(error)) {
        this.monitor.suspect(serverId, `${name} failed: ${message}`);
      }
      throw error;
    }
  }

  after(ms: number, action: () => void): () => void {
    if (this.stoppedBy !== null) return () => undefined;
    const cancel = this.clock.after(ms, () => {
      this.timers.delete(cancel);
      action();
    });
    this.timers.add(cancel);
    return () => {
      cancel();
      this.timers.delete(cancel);
    };
  }

  background(promise: Promise<unknown>, what: string): void {
    promise.catch((error: unknown) => {
      if (this.stoppedBy !== null) return;
      const cause = asRekindleError(error);
      this.log('error', `unexpected failure in ${what}`, { error: String(cause.stack) });
      this.fatal(cause);
    });
  }

  private fatal(error: RekindleError): void {
    if (this.stoppedBy !== null) return;
    this.log('error', 'the coordinator cannot go on', { code: error.code, error: error.message });
    // What waits was not begun: its callers may try elsewhere, whatever has happened to this one.
    this.stop(new RekindleError('SHUTTING_DOWN', error.message, { cause: error }));
    this.options.onFatal?.(error);
  }

  private stop(reason: RekindleError): void {
    this.stoppedBy ??= reason;
    this.monitor.stop();
    for (const cancel of this.timers) cancel();
    this.timers.clear();
    // In a later turn: who knows what became of his request says so himself.
    this.clock.after(0, () => {
      const problem = 'this coordinator has stopped: what was under way may have been done';
      for (const reject of this.waiting) reject(new RekindleError('CONNECTION_LOST', problem));
    });
  }

  /** After each commit: everybody looks at the new state. */
  private changed(): void {
    if (this.stoppedBy !== null) return;
    this.pusher.kick();
    this.copier.kick();
    this.tables.kick();
    this.recoveries.kick();
    this.migrations.kick();
    this.drains.kick();
  }

  private async crash(serverId: number, suspectedAtMs: number, reason: string): Promise<void> {
    await this.faultPoint('crash-1');
    const address = this.state.servers.get(serverId)?.address;
    const crashed = await this.commit((state) =>
      decideCrash(state, serverId, suspectedAtMs, this.now()),
    );
    if (!crashed) return;
    // A drained one is gone at once; every other one is listed until it is recovered.
    const what = this.state.servers.has(serverId) ? 'has crashed' : 'was drained, and has ended';
    this.log('warn', `a server ${what}`, { serverId, reason });
    this.left(serverId, address);
    await this.faultPoint('crash-2');
  }

  private left(serverId: number, address: string | undefined): void {
    this.monitor.left(serverId);
    const shared = this.state.upServers().some((other) => other.address === address);
    if (address !== undefined && !shared) this.options.links.drop(address);
  }

  private handle<K extends JsonRpcName>(name: K, handler: JsonHandler<K>): void {
    this.options.endpoint.handle(name, (request, call) => {
      if (this.stoppedBy !== null) {
        throw new RekindleError('SHUTTING_DOWN', 'this coordinator has stopped');
      }
      if (this.committed === null) {
        throw new RekindleError('RETRY', 'the coordinator is starting', { retryAfterMs: 100 });
      }
      const answer = handler(request, call);
      return answer instanceof Promise ? this.answeredOrStopped(answer) : answer;
    });
  }

  /** Whoever waits here when this coordinator stops is sent to the next one. */
  private answeredOrStopped<T>(answer: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.waiting.add(reject);
      answer.then(resolve, reject).finally(() => this.waiting.delete(reject));
    });
  }

  private registerHandlers(): void {
    this.handle('PING', ({ callerServerId }) => ({
      serverListVersion: this.state.cluster.serverListVersion,
      member: callerServerId === null || this.state.isUp(callerServerId),
      lagMs: 0,
    }));
    this.handle('VERIFY_MEMBERSHIP', ({ serverId }) => this.verifyMembership(serverId));
    this.handle('GET_SERVER_LIST', () => ({ list: this.state.serverList() }));
    this.handle('ENLIST_SERVER', (request) => this.enlist(request));
    this.handle('HINT_SERVER_CRASHED', ({ serverId, reason }, { peer }) => {
      this.monitor.hinted(peer.serverId, serverId, reason);
      return {};
    });
    this.handle('SET_MASTER_RECOVERY_INFO', async (request) => {
      await this.commit((state) => decideRecoveryInfo(state, request));
      return {};
    });
    this.handle('RECOVERY_MASTER_FINISHED', (request) => this.recoveries.finished(request));
    this.handle('ACCEPT_LOSS', (request) => this.recoveries.acceptLoss(request));
    this.handle('CREATE_TABLE', (request, { deadlineMs }) => this.createTable(request, deadlineMs));
    this.handle('DROP_TABLE', (request, { deadlineMs }) => this.dropTable(request, deadlineMs));
    this.handle('MERGE_TABLETS', ({ name }) =>
      this.turns.run(name, () => mergeTablets(this, name)),
    );
    this.handle('SPLIT_TABLET', (request, { deadlineMs }) =>
      this.turns.run(request.name, () => splitTablet(this, request, deadlineMs)),
    );
    this.handle('MIGRATE_TABLET', (request) => this.migrations.migrate(request));
    this.handle('MIGRATION_FINISHED', (request) => this.migrations.finished(request));
    this.handle('DRAIN_SERVER', (request) => this.drains.drain(request));
    this.handle('LIST_TABLES', () => ({ tables: this.state.tableInfos() }));
    this.handle('GET_TABLE', (request) => this.getTable(request));
    this.handle('GET_STATUS', () => this.status());
  }

  /** Nobody else had begun to lead when this resolves. */
  private async confirmLeadership(): Promise<void> {
    const { leadership } = this;
    invariant(leadership !== null, 'who answers leads');
    try {
      await this.options.storage.confirm(leadership);
    } catch (error) {
      const cause = asRekindleError(error);
      if (cause.code !== 'FENCED') throw cause;
      this.fatal(cause);
      throw leadershipLost(cause);
    }
    if (this.stoppedBy !== null) throw this.stoppedBy;
  }

  /**
   * A grant must not outlive what the next leader waits for, which counts from its victory: so it
   * is given only if this one still led after the master had asked.
   */
  private async verifyMembership(serverId: number): Promise<ReplyOf<'VERIFY_MEMBERSHIP'>> {
    await this.confirmLeadership();
    const member = this.state.isUp(serverId);
    return { member, leaseMs: member ? this.leases.grant(serverId, this.clock.monotonicMs()) : 0 };
  }

  private async enlist(request: RequestOf<'ENLIST_SERVER'>): Promise<ReplyOf<'ENLIST_SERVER'>> {
    await this.faultPoint('enlist-1');
    const before = new Map(this.state.servers);
    const { serverId, crashed } = await this.commit((state) =>
      decideEnlist(state, request, this.now()),
    );
    await this.faultPoint('enlist-2');
    for (const crashedServerId of crashed) {
      this.left(crashedServerId, before.get(crashedServerId)?.address);
      const fields = { serverId: crashedServerId, replacedBy: serverId };
      this.log('warn', 'the process of a server was replaced', fields);
    }
    const { address, host, master, backup } = request;
    this.log('info', 'a server has joined', { serverId, address, host, master, backup });
    return { serverId, list: this.state.serverList() };
  }

  private async createTable(
    request: RequestOf<'CREATE_TABLE'>,
    deadlineMs: number,
  ): Promise<ReplyOf<'CREATE_TABLE'>> {
    await this.faultPoint('create-1');
    const tableId = await this.commit((state) => decideCreateTable(state, request));
    await this.faultPoint('create-2');
    const settled = await this.tables.settled(tableId, this.tableWaitMs(deadlineMs));
    await this.faultPoint('create-4');
    const table = this.state.tables.get(tableId);
    if (table === undefined || table.state === 'dropping') {
      throw new RekindleError('TABLE_NOT_FOUND', `table "${request.name}" was dropped meanwhile`);
    }
    if (!settled) {
      throw new RekindleError('RETRY', `masters have not taken table "${request.name}" yet`, {
        retryAfterMs: 200,
      });
    }
    return { table: this.state.tableInfo(table) };
  }

  private async dropTable(
    request: RequestOf<'DROP_TABLE'>,
    deadlineMs: number,
  ): Promise<ReplyOf<'DROP_TABLE'>> {
    await this.faultPoint('drop-1');
    const { existed, tableId } = await this.commit((state) => decideDropTable(state, request));
    await this.faultPoint('drop-2');
    // Committed already: an owner that is slow or crashed does not hold the caller up for ever.
    if (tableId !== null) await this.tables.settled(tableId, this.tableWaitMs(deadlineMs));
    return { existed };
  }

  private tableWaitMs(deadlineMs: number): number {
    const leftMs = deadlineMs - this.clock.monotonicMs() - REPLY_MARGIN_MS;
    return Math.min(TABLE_WAIT_MS, Math.max(0, leftMs));
  }

  private getTable({ name, tableId }: RequestOf<'GET_TABLE'>): ReplyOf<'GET_TABLE'> {
    const table =
      name !== undefined
        ? this.state.tableNamed(name)
        : this.state.tables.get(tableId ?? Number.NaN);
    if (table === undefined || table.state === 'dropping') {
      const what = name !== undefined ? `"${name}"` : `${tableId}`;
      throw new RekindleError('TABLE_NOT_FOUND', `there is no table ${what}`);
    }
    return { table: this.state.tableInfo(table) };
  }

  private async status(): Promise<ClusterStatus> {
    const leader = this.leadership?.address ?? '';
    const { candidates, problem } = await this.candidates();
    const { clusterId, term, replicas, durability, serverListVersion } = this.state.cluster;
    const recoveries = this.recoveries.reports();
    const stateCopies = this.copier.copies;
    return {
      clusterId,
      term,
      leader,
      standbys: candidates.filter((address) => address !== leader),
      replicas,
      durability,
      serverListVersion,
      servers: this.state.serverList().servers,
      tables: this.state.tableInfos(),
      recoveries,
      migrations: this.migrations.reports(),
      drains: this.drains.reports(),
      balance: this.balancer.report(),
      losses: [...this.state.losses.values()].sort((a, b) => b.lossId - a.lossId),
      stateCopies,
      warnings: [
        ...clusterWarnings(this.state, recoveries, this.copier),
        ...this.monitor.warnings(),
        ...(problem === null ? [] : [`the coordinator's storage does not answer: ${problem}`]),
      ],
      notes: clusterNotes(this.state),
    };
  }

  private async candidates(): Promise<{ candidates: string[]; problem: string | null }> {
    try {
      return { candidates: await this.options.storage.candidates(), problem: null };
    } catch (error) {
      return { candidates: [], problem: asRekindleError(error).message };
    }
  }
}

/** The caller may try again elsewhere: whether it was committed the next leader knows. */
function leadershipLost(cause: RekindleError): RekindleError {
  return new RekindleError('CONNECTION_LOST', cause.message, { cause });
}

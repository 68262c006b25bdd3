/**
 * One storage server: endpoint, enlistment, master and backup in one process.
 *
 * Order of a start: listen (the address must be known) -> open the backup's storage, which names
 * the former identity -> enlist with it -> make the new identity durable -> serve. Order of a stop:
 * serve no more, let recoveries end, close connections, then storage, memory last, since sockets
 * send straight from it. A server that learns that it was declared crashed ends its process.
 */
import { randomUUID } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setImmediate as yieldTurn } from 'node:timers/promises';
import { BackupService } from '../backup/backup-service.js';
import { ReplicaGarbageCollectorRuntime } from '../backup/replica-garbage-collector-runtime.js';
import { CleanerDriver } from '../master/cleaner-driver.js';
import { FailureDetectorRuntime } from '../master/failure-detector-runtime.js';
import { MasterService } from '../master/master-service.js';
import { MigrationSource } from '../master/migration-source.js';
import { MigrationTarget } from '../master/migration-target.js';
import { OwnershipNotes } from '../master/ownership-notes.js';
import { ReadLeaseRuntime } from '../master/read-lease-runtime.js';
import { RecoveryMaster } from '../master/recovery-master.js';
import { ReplicaManagerRuntime } from '../master/replica-manager-runtime.js';
import type { Addon, BackupCore, MasterCore } from '../native/contract.js';
import { asNativeError, loadAddon } from '../native/index.js';
import { createLog, type Log } from '../ops/log.js';
import { Sluggishness } from '../ops/sluggishness.js';
import { parseCoordinators } from '../rpc/connection-string.js';
import { coordinatorAddresses } from '../rpc/coordinator-addresses.js';
import { CoordinatorSession } from '../rpc/coordinator-session.js';
import { RekindleError } from '../rpc/errors.js';
import { WsLinkPool } from '../rpc/link-pool.js';
import type { Durability, ServerList, ServerStats } from '../rpc/messages.js';
import type { EndpointIdentity } from '../rpc/transport.js';
import { UwsEndpoint } from '../rpc/uws-endpoint.js';
import { CoordinatorStateCopy } from './coordinator-state-copy.js';
import { callUntilAnswered, enlist } from './enlistment.js';
import { HandlerTable } from './handler-table.js';
import { checkListenAddress } from './listen-address.js';
import { Membership } from './membership.js';
import { takeServerList } from './server-list-forwarder.js';

const segmentBytes = 8 * 1024 * 1024;
const memoryBytesMin = 64 * 1024 * 1024;
const framesMin = 256;
const diskExpansionFactorDefault = 2;
export const scrubBytesPerSecondDefault = 1024 * 1024;
export const migrationBytesPerSecondDefault = 32 * 1024 * 1024;
/**
 * Pieces of a dead master's log that wait for recovery masters: a share of the log memory, so that
 * nine servers of a kind hold all of the ninth's, and each segment is read and split once.
 */
const pieceCacheShare = 1 / 8;
const pieceCacheBytesMin = 128 * 1024 * 1024;
/** Frames beyond an even share of all replicas: chance, and logs that are being recovered. */
const framesMargin = 4 / 3;
/** Exit code of a server that was declared crashed. */
const zombieExitCode = 3;

export interface ServerOptions {
  /** `host:port` of each coordinator, separated by commas, or `rekindle+srv://name`. */
  coordinator: string;
  /** Folder of this server alone: replicas, identity, copy of the coordinator's state. */
  dataDirectory: string;
  /** Address to listen on. Other than loopback only with `insecure`. */
  host: string;
  /** 0: any free port. */
  port: number;
  /** Log memory of the master; rounded down to whole segments of 8 MiB, at least 64 MiB. */
  memoryBytes: number;
  /** `host:port` under which others reach this server; default: host and port listened on. */
  advertise?: string;
  /** Placement label: replicas of a segment never share it. Default: the host name. */
  hostLabel?: string;
  /** Placement label: replicas of a segment are never all in one rack, if there are several. */
  rack?: string;
  /** Roles; both by default. */
  master?: boolean;
  backup?: boolean;
  /** Threads that replay in a recovery. Default: half of the cores, at least 1. */
  replayThreads?: number;
  /**
   * Segments that the log may have on its backups, as a multiple of those that fit into memory: at
   * least 1, default 2. More disk for less work of the cleaner.
   */
  diskExpansionFactor?: number;
  /**
   * Replica frames of 8 MiB that the disk may hold. Default: a third more than R expanded logs of
   * this server's memory have segments (R = 3, factor 2: eight times the log memory), at least 256.
   */
  framesMax?: number;
  /** `replicated` clusters: longest time until a write is on disk. */
  flushIntervalMs?: number;
  /** Compress closed replicas where it pays. Default: true. */
  compress?: boolean;
  /** Closed replicas are read again and verified at this rate; 0: never. Default: 1 MiB/s. */
  scrubBytesPerSecond?: number;
  /** Of tablets that migrate to this server; 0: as fast as they can. */
  migrationBytesPerSecond?: number;
  /** There is no authentication yet: needed to listen beyond loopback. */
  insecure?: boolean;
  /** SIGINT and SIGTERM stop the server and end the process. Default: false. */
  handleSignals?: boolean;
  /** Ends a start that waits for the coordinator. */
  signal?: AbortSignal;
  log?: Log;
  addon?: Addon;
  /** What a server does that was declared crashed. Default: ends the process with code 3. */
  onZombie?: (reason: string) => void;
}

export interface RunningServer {
  readonly serverId: number;
  readonly clusterId: string;
  readonly port: number;
  stats(): ServerStats;
  stop(): Promise<void>;
}

/** Starts a server; resolves when it serves. Fails with a clear error if it cannot ever. */
export async function startServer(options: ServerOptions): Promise<RunningServer> {
  checkOptions(options);
  const server = new Server(options);
  try {
    await server.start();
  } catch (thrown) {
    await server.stop();
    throw asNativeError(thrown);
  }
  if (options.handleSignals === true) server.stopOnSignals();
  return server;
}

function checkOptions(options: ServerOptions): void {
  const refuse = (text: string): never => {
    throw new RekindleError('INVALID_ARGUMENT', text);
  };
  checkListenAddress(options.host, options.insecure === true);
  if (options.memoryBytes < memoryBytesMin) refuse('a server needs at least 64 MiB of memory');
  if (options.master === false && options.backup === false) refuse('a server needs a role');
  // False for what is not a number, too.
  const expandable = (options.diskExpansionFactor ?? diskExpansionFactorDefault) >= 1;
  if (!expandable) refuse('the disk expansion factor is a number from 1 up');
}

class Server implements RunningServer {
  serverId = 0;
  clusterId = '';
  port = 0;

  readonly #options: ServerOptions;
  readonly #log: Log;
  readonly #addon: Addon;
  readonly #startedMs = performance.now();
  readonly #abort = new AbortController();
  readonly #membership = new Membership();
  readonly #handlers = new HandlerTable();
  readonly #stateCopy: CoordinatorStateCopy;
  readonly #endpoint: UwsEndpoint;
  /** Small requests, segments out and recovery data in do not wait for one another. */
  readonly #controlLinks: WsLinkPool;
  readonly #replicationLinks: WsLinkPool;
  readonly #recoveryLinks: WsLinkPool;
  readonly #coordinator: CoordinatorSession;
  readonly #nonce = randomUUID();
  #identity: EndpointIdentity = {
    ...{ role: 'server', clusterId: null, serverId: null },
    nonce: this.#nonce,
  };
  #backupCore: BackupCore | null = null;
  #masterCore: MasterCore | null = null;
  #backup: BackupService | null = null;
  #garbage: ReplicaGarbageCollectorRuntime | null = null;
  #master: MasterService | null = null;
  #lease: ReadLeaseRuntime | null = null;
  #replication: ReplicaManagerRuntime | null = null;
  #recovery: RecoveryMaster | null = null;
  #migrationSource: MigrationSource | null = null;
  #migrationTarget: MigrationTarget | null = null;
  #cleaner: CleanerDriver | null = null;
  #detector: FailureDetectorRuntime | null = null;
  readonly #lag = new Sluggishness();
  #stopping: Promise<void> | null = null;

  constructor(options: ServerOptions) {
    this.#options = options;
    this.#log = options.log ?? createLog();
    this.#addon = options.addon ?? loadAddon();
    const addon = this.#addon;
    this.#stateCopy = new CoordinatorStateCopy(options.dataDirectory, (b) => addon.crc32c(b));
    const identity = () => ({ ...this.#identity, role: 'server' as const });
    this.#controlLinks = new WsLinkPool({ identity });
    this.#replicationLinks = new WsLinkPool({ identity });
    this.#recoveryLinks = new WsLinkPool({ identity });
    this.#coordinator = new CoordinatorSession({
      pool: this.#controlLinks,
      addresses: coordinatorAddresses(parseCoordinators(options.coordinator)),
      random: Math.random,
    });
    this.#endpoint = new UwsEndpoint({
      identity: () => this.#identity,
      log: (level, message, fields) => this.#log[level](fields, message),
    });
  }

  async start(): Promise<void> {
    const { dataDirectory, host, port, signal } = this.#options;
    signal?.addEventListener('abort', () => this.#abort.abort(signal.reason), { once: true });
    await mkdir(dataDirectory, { recursive: true });
    await this.#stateCopy.load();
    this.#registerServerHandlers();
    this.#handlers.install(this.#endpoint);
    this.port = await this.#endpoint.listen(host, port);
    const { durability, replicas } = await this.#clusterSettings();
    if (this.#options.backup !== false) await this.#openStorage(durability, replicas);
    const list = await this.#enlist();
    if (this.#options.backup !== false) this.#startBackup();
    if (this.#options.master !== false) this.#startMaster(list);
    this.#startDetector();
    this.#membership.apply(list);
    this.#handlers.open();
    this.#lag.forget();
    const { serverId, clusterId } = this;
    this.#log.info({ serverId, clusterId, port: this.port }, 'server is ready');
  }

  stats(): ServerStats {
    return {
      serverId: this.serverId,
      uptimeMs: Math.round(performance.now() - this.#startedMs),
      rssBytes: process.memoryUsage.rss(),
      master:
        this.#masterCore === null
          ? null
          : {
              ...this.#masterCore.stats(),
              ...this.#replication?.counters(),
              ...this.#lease?.counters(),
              ...this.#cleaner?.counters(),
              ...this.#master?.counters(),
              recoveriesRunning: this.#recovery?.running ?? 0,
              migrationsRunning: this.#migrationTarget?.running ?? 0,
            },
      backup:
        this.#backupCore === null
          ? null
          : { ...this.#backupCore.stats(), ...this.#backup?.counters() },
      endpoint: this.#endpoint.stats(),
    };
  }

  /** Idempotent. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop();
    return this.#stopping;
  }

  stopOnSignals(): void {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => {
        this.#log.info({ signal }, 'server is stopping');
        this.stop().then(
          () => process.exit(0),
          (thrown: unknown) => {
            this.#log.error({ err: thrown }, 'the server did not stop cleanly');
            process.exit(1);
          },
        );
      });
    }
  }

  async #stop(): Promise<void> {
    this.#abort.abort(new RekindleError('SHUTTING_DOWN', 'the server is stopping'));
    this.#detector?.close();
    this.#lag.close();
    this.#lease?.close();
    this.#master?.stop();
    const cleanerEnded = this.#cleaner?.stop();
    // Replication first: recoveries and the cleaner wait for it, and get a definite error from it.
    this.#replication?.stop();
    await cleanerEnded;
    await Promise.all([this.#recovery?.stop(), this.#migrationTarget?.stop()]);
    this.#migrationSource?.close();
    this.#master?.close();
    await this.#garbage?.close();
    this.#backup?.close();
    await this.#endpoint.close();
    this.#controlLinks.close();
    this.#replicationLinks.close();
    this.#recoveryLinks.close();
    await this.#backupCore?.close();
    // One turn for the sockets to let go of segment bytes.
    await yieldTurn();
    this.#masterCore?.close();
  }

  /** The mode is the cluster's, and the storage must know it when it opens. */
  async #clusterSettings(): Promise<{ durability: Durability; replicas: number }> {
    const { list } = await callUntilAnswered(
      this.#coordinator,
      'GET_SERVER_LIST',
      {},
      this.#log,
      this.#abort.signal,
    );
    return { durability: list.durability, replicas: list.replicas };
  }

  async #openStorage(durability: Durability, replicas: number): Promise<void> {
    const { dataDirectory, memoryBytes, framesMax, flushIntervalMs, compress } = this.#options;
    const expansion = this.#options.diskExpansionFactor ?? diskExpansionFactorDefault;
    const logSegments = Math.ceil((memoryBytes / segmentBytes) * expansion);
    const framesDefault = Math.ceil(logSegments * replicas * framesMargin);
    const directory = path.join(dataDirectory, 'backup');
    await mkdir(directory, { recursive: true });
    this.#backupCore = await this.#addon.openBackup({
      directory,
      framesMax: framesMax ?? Math.max(framesMin, framesDefault),
      durability,
      flushIntervalMs: flushIntervalMs ?? 100,
      compress: compress ?? true,
      pieceCacheBytes: Math.max(pieceCacheBytesMin, Math.floor(memoryBytes * pieceCacheShare)),
      scrubBytesPerSecond: this.#options.scrubBytesPerSecond ?? scrubBytesPerSecondDefault,
      fault: process.env.REKINDLE_DISK_FAULT ?? '',
    });
  }

  async #enlist(): Promise<ServerList> {
    const { advertise, host, hostLabel, memoryBytes, rack } = this.#options;
    const former = this.#backupCore?.identity() ?? null;
    const { serverId, list } = await enlist(
      this.#coordinator,
      {
        replacesId: former?.serverId ?? null,
        clusterId: former?.clusterId ?? null,
        address: advertise ?? `${host.includes(':') ? `[${host}]` : host}:${this.port}`,
        host: hostLabel ?? os.hostname(),
        rack: rack ?? null,
        master: this.#options.master !== false,
        backup: this.#options.backup !== false,
        memoryBytes,
        nonce: this.#nonce,
      },
      this.#log,
      this.#abort.signal,
    );
    this.serverId = serverId;
    this.clusterId = list.clusterId;
    // Others may look for the new incarnation from now on; they are told RETRY until it serves.
    this.#identity = { role: 'server', clusterId: list.clusterId, serverId };
    await this.#backupCore?.setIdentity(list.clusterId, serverId);
    return list;
  }

  #registerServerHandlers(): void {
    const membership = this.#membership;
    this.#handlers.handle('PING', ({ callerServerId }) => ({
      serverListVersion: membership.version,
      member: callerServerId === null || membership.mayBeMember(callerServerId),
      lagMs: Math.round(this.#lag.ms()),
    }));
    const directory = membership.directory(this.#controlLinks);
    this.#handlers.handle('UPDATE_SERVER_LIST', (request) =>
      takeServerList(request, membership, directory, this.#log),
    );
    this.#handlers.handle('STORE_COORDINATOR_STATE', async (copy) => {
      if (this.clusterId !== '' && copy.clusterId !== this.clusterId) {
        throw new RekindleError('WRONG_CLUSTER', `this server belongs to ${this.clusterId}`);
      }
      membership.checkTerm(copy.term);
      await this.#stateCopy.store(copy);
      return {};
    });
    this.#handlers.handle('GET_SERVER_STATS', () => this.stats());
    this.#handlers.handle('PROBE_SERVER', async ({ serverId, timeoutMs }) => ({
      outcome: (await this.#detector?.probe(serverId, timeoutMs)) ?? 'unknown',
    }));
  }

  #startBackup(): void {
    const core = this.#backupCore;
    if (core === null) return;
    const log = this.#log.with({ part: 'backup' });
    const directory = this.#membership.directory(this.#controlLinks);
    const service = new BackupService({
      core,
      checkTerm: (term) => this.#membership.checkTerm(term),
      mayBeMember: (serverId) => this.#membership.mayBeMember(serverId),
      log,
      clock: () => this.#addon.bootTimeMs(),
    });
    const garbage = new ReplicaGarbageCollectorRuntime({
      serverId: this.serverId,
      clusterId: this.clusterId,
      core,
      linkTo: (serverId) => directory.linkTo(serverId),
      log,
    });
    service.register(this.#handlers);
    this.#membership.subscribe((list) => {
      service.applyServerList(list);
      garbage.applyServerList(list);
    });
    this.#backup = service;
    this.#garbage = garbage;
  }

  #startMaster(list: ServerList): void {
    const { diskExpansionFactor, memoryBytes, replayThreads } = this.#options;
    const { serverId } = this;
    const log = this.#log.with({ part: 'master' });
    const core = new this.#addon.MasterCore({
      serverId,
      memoryBytes: Math.floor(memoryBytes / segmentBytes) * segmentBytes,
      replayThreads: replayThreads ?? Math.max(1, Math.floor(os.availableParallelism() / 2)),
      replicated: list.replicas > 0,
      diskExpansionFactor: diskExpansionFactor ?? diskExpansionFactorDefault,
    });
    this.#masterCore = core;
    const coordinator = this.#coordinator;
    const lease = new ReadLeaseRuntime({
      serverId,
      servers: this.#membership.directory(this.#controlLinks),
      coordinator,
      log,
      clock: () => this.#addon.bootTimeMs(),
      onUnanswered: (backupId, reason) => this.#detector?.unanswered(backupId, reason),
      onNotMember: () => this.#detector?.verified(false),
      onRegained: () => this.#master?.onLease(),
    });
    this.#lease = lease;
    const replication = new ReplicaManagerRuntime({
      serverId,
      replicas: list.replicas,
      core,
      servers: this.#membership.directory(this.#replicationLinks),
      coordinator,
      log,
      lease,
      onDurable: (position) => this.#master?.onDurable(position),
      onFlushed: () => this.#endpoint.flush(),
      onMembershipDoubt: (reason) => this.#detector?.doubt(reason),
    });
    const notes = new OwnershipNotes(core);
    const recovery = new RecoveryMaster({
      serverId,
      notes,
      core,
      replication,
      servers: this.#membership.directory(this.#recoveryLinks),
      coordinator,
      log,
    });
    this.#cleaner = new CleanerDriver({ core, replication, log });
    const service = new MasterService({
      core,
      replication,
      recovery,
      ...this.#startMigrations(core, notes, replication, log),
      notes,
      lease,
      checkTerm: (term) => this.#membership.checkTerm(term),
      log,
    });
    service.register(this.#handlers);
    this.#membership.subscribe((newList) => {
      replication.applyServerList(newList);
      this.#noteCluster(notes, newList);
      replication.scheduleFlush();
    });
    this.#replication = replication;
    this.#recovery = recovery;
    this.#master = service;
  }

  #startMigrations(
    core: MasterCore,
    notes: OwnershipNotes,
    replication: ReplicaManagerRuntime,
    log: Log,
  ): { migrationSource: MigrationSource; migrationTarget: MigrationTarget } {
    const checkTerm = (term: number): void => this.#membership.checkTerm(term);
    const migrationSource = new MigrationSource({ core, notes, checkTerm, log });
    const migrationTarget = new MigrationTarget({
      serverId: this.serverId,
      notes,
      core,
      replication,
      servers: this.#membership.directory(this.#recoveryLinks),
      coordinator: this.#coordinator,
      checkTerm,
      bytesPerSecond: this.#options.migrationBytesPerSecond ?? migrationBytesPerSecondDefault,
      log,
    });
    this.#migrationSource = migrationSource;
    this.#migrationTarget = migrationTarget;
    return { migrationSource, migrationTarget };
  }

  /** Only a rebuild needs it, and the next list brings it again: no memory for it is no failure. */
  #noteCluster(notes: OwnershipNotes, list: ServerList): void {
    try {
      notes.noteCluster(list);
    } catch (thrown) {
      const { code, message } = asNativeError(thrown);
      this.#log.warn({ code, message }, 'the list of servers is not noted in the log');
    }
  }

  #startDetector(): void {
    const detector = new FailureDetectorRuntime({
      serverId: this.serverId,
      servers: this.#membership.directory(this.#controlLinks),
      coordinator: this.#coordinator,
      lag: this.#lag,
      log: this.#log,
      onStop: (reason) => {
        this.#log.warn({ reason }, 'serving stops until membership is verified');
        this.#master?.stop();
      },
      onResume: () => {
        this.#log.info({}, 'membership is verified: serving goes on');
        this.#master?.resume();
      },
      onZombie: (reason) => this.#onZombie(reason),
    });
    this.#detector = detector;
    this.#membership.subscribe((list) => detector.applyServerList(list));
  }

  #onZombie(reason: string): void {
    this.#master?.stop();
    this.#log.error({ serverId: this.serverId, reason }, 'this server is not a member any more');
    if (this.#options.onZombie !== undefined) this.#options.onZombie(reason);
    else process.exit(zombieExitCode);
  }
}

/**
 * One coordinator process: storage, endpoint and links around a candidate, and around a
 * `Coordinator` while it leads.
 *
 * Order of a start: storage -> listen -> follow the state -> election. Until it leads, callers are
 * told who does. Order of a stop: the leader's work ends, its leadership is given back (a standby
 * takes over at once), then connections and storage are closed.
 */
import { readFile } from 'node:fs/promises';
import { Candidate, type Lead, redirect } from '../coordinator/candidate.js';
import { decideStart } from '../coordinator/cluster-start.js';
import { Coordinator } from '../coordinator/coordinator.js';
import type { CoordinatorState } from '../coordinator/coordinator-state.js';
import { EtcdStorage } from '../coordinator/external-storage/etcd.js';
import type { ExternalStorage } from '../coordinator/external-storage/external-storage.js';
import { LmdbStorage } from '../coordinator/external-storage/lmdb.js';
import { parseStorageUrl } from '../coordinator/external-storage/storage-url.js';
import { restoreState } from '../coordinator/state-copy.js';
import { createLog, type Log } from '../ops/log.js';
import { Sluggishness } from '../ops/sluggishness.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import { WsLinkPool } from '../rpc/link-pool.js';
import type { Durability } from '../rpc/messages.js';
import type { EndpointIdentity } from '../rpc/transport.js';
import { UwsEndpoint } from '../rpc/uws-endpoint.js';
import { CoordinatorGate } from './coordinator-gate.js';
import { checkListenAddress } from './listen-address.js';

export interface CoordinatorProcessOptions {
  /** Folder of its state, locked while it runs; or else `storage`. */
  dataDirectory?: string;
  /** `etcd://host:port,host:port/prefix`: one leads, all others that name it stand by. */
  storage?: string;
  /** Address to listen on. Other than loopback only with `insecure`. */
  host: string;
  /** 0: any free port. */
  port: number;
  /** `host:port` under which others reach it; default: host and port listened on. */
  advertise?: string;
  /** Fixed at the first start of a cluster, like the next two; left out: as stored, or 3. */
  replicas?: number;
  durability?: Durability;
  allowSameHost?: boolean;
  /** Of copysets; may be changed at any start. 0, the default: replicas are placed at random. */
  scatterWidth?: number;
  /** A server's copy of the state, for an empty storage. */
  restoreFile?: string;
  insecure?: boolean;
  /** Tablets are moved so that masters have equal shares; default false. */
  balance?: boolean;
  log?: Log;
  /** Called once if it cannot go on. */
  onFatal?: (error: RekindleError) => void;
}

export interface RunningCoordinator {
  readonly port: number;
  /** null: there is no cluster yet, and somebody else is about to make it. */
  readonly clusterId: string | null;
  readonly leads: boolean;
  stop(): Promise<void>;
}

/** Starts a coordinator; resolves when it serves or stands by. */
export async function startCoordinator(
  options: CoordinatorProcessOptions,
): Promise<RunningCoordinator> {
  checkListenAddress(options.host, options.insecure ?? false);
  const log = options.log ?? createLog();
  const write: Write = (level, message, fields = {}) => log[level](fields, message);
  const restoreText =
    options.restoreFile === undefined ? null : await readCopy(options.restoreFile);
  const running = new CoordinatorProcess(options, await openStorage(options, write), write);
  try {
    await running.start(restoreText);
    return running;
  } catch (error) {
    await running.stop();
    throw error;
  }
}

export type Write = (
  level: 'debug' | 'info' | 'warn' | 'error',
  message: string,
  fields?: Record<string, unknown>,
) => void;

/** How often a start looks whether somebody leads. */
const LOOK_MS = 5;
const STOP_WAIT_MS = 2_000;

class CoordinatorProcess implements RunningCoordinator {
  port = 0;
  readonly #options: CoordinatorProcessOptions;
  readonly #storage: ExternalStorage;
  readonly #log: Write;
  readonly #endpoint: UwsEndpoint;
  readonly #links: WsLinkPool;
  readonly #gate = new CoordinatorGate(() => redirect(this.#candidate?.leader ?? null));
  readonly #lag = new Sluggishness();
  #candidate: Candidate | null = null;
  #coordinator: Coordinator | null = null;
  #restoreText: string | null = null;
  /** Why it cannot go on; ends a start too. */
  #problem: RekindleError | null = null;
  #stopping = false;

  constructor(options: CoordinatorProcessOptions, storage: ExternalStorage, log: Write) {
    this.#options = options;
    this.#storage = storage;
    this.#log = log;
    const identity = (): EndpointIdentity => ({
      role: 'coordinator',
      clusterId: this.clusterId,
      serverId: null,
    });
    this.#endpoint = new UwsEndpoint({ identity, log });
    this.#links = new WsLinkPool({ identity });
    this.#gate.install(this.#endpoint);
  }

  get clusterId(): string | null {
    return this.#coordinator?.clusterId ?? this.#candidate?.clusterId ?? null;
  }

  get leads(): boolean {
    return this.#coordinator !== null && this.#coordinator.clusterId !== null;
  }

  async start(restoreText: string | null): Promise<void> {
    const { host, port, advertise } = this.#options;
    this.#restoreText = restoreText;
    this.port = await this.#endpoint.listen(host, port);
    const candidate = new Candidate({
      storage: this.#storage,
      links: this.#links,
      address: advertise ?? `${host.includes(':') ? `[${host}]` : host}:${this.port}`,
      log: this.#log,
      lag: this.#lag,
      onLead: (lead) => this.#lead(lead),
      onDeposed: () => this.#standBy('another coordinator leads'),
    });
    this.#candidate = candidate;
    await candidate.start((state) => this.#check(state));
    while (!this.leads && (candidate.leader === null || candidate.leads)) {
      if (this.#problem !== null) throw this.#problem;
      await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    }
    if (!this.leads) {
      this.#log('info', 'this coordinator stands by', { leader: candidate.leader?.address });
    }
  }

  async stop(): Promise<void> {
    if (this.#stopping) return;
    this.#stopping = true;
    // A commit that waits for etcd ends when the storage is closed.
    const waited = new AbortController();
    await Promise.race([this.#coordinator?.close(), elapsed(STOP_WAIT_MS, waited.signal)]);
    waited.abort();
    await this.#candidate?.stop();
    await this.#endpoint.close();
    this.#links.close();
    this.#lag.close();
    await this.#storage.close();
  }

  /** A standby with other settings would fail only when it is needed. */
  #check(state: CoordinatorState): void {
    if (state.exists) decideStart(state, this.#config(), state.cluster.clusterId);
  }

  #config(): ConstructorParameters<typeof Coordinator>[0]['config'] {
    const { replicas, durability, allowSameHost, scatterWidth } = this.#options;
    return { replicas, durability, allowSameHost, scatterWidth };
  }

  #lead(lead: Lead): void {
    const wonAtMs = performance.now();
    const coordinator = new Coordinator({
      endpoint: this.#gate,
      links: this.#links,
      storage: this.#storage,
      balance: this.#options.balance ?? false,
      config: this.#config(),
      log: this.#log,
      onFatal: (error) => this.#cannotGoOn(coordinator, error),
    });
    this.#coordinator = coordinator;
    const begin = async (): Promise<void> => {
      await coordinator.start(await this.#restored(lead));
      const readyMs = Math.round(performance.now() - wonAtMs);
      this.#log('info', 'this coordinator leads', { term: lead.leadership.term, readyMs });
    };
    begin().catch((error: unknown) => {
      coordinator.depose('the coordinator could not begin');
      this.#cannotGoOn(coordinator, asRekindleError(error));
    });
  }

  async #restored(lead: Lead): Promise<Lead> {
    if (this.#restoreText === null) return lead;
    const restored = await restoreState(this.#storage, lead, this.#restoreText);
    this.#restoreText = null;
    this.#log('warn', 'the state was restored from a copy of a server', { ...restored.report });
    return restored.lead;
  }

  #standBy(reason: string): void {
    this.#coordinator?.depose(reason);
    this.#coordinator = null;
    this.#gate.shut();
  }

  /**
   * Who is fenced stands by again, if others can lead; after anything else nobody knows what is
   * true, and only a process that reads the storage anew can go on.
   */
  #cannotGoOn(coordinator: Coordinator, error: RekindleError): void {
    if (this.#stopping || this.#coordinator !== coordinator) return;
    if (error.code === 'FENCED' && this.#options.storage !== undefined) {
      this.#standBy(error.message);
      this.#candidate?.surrender().catch((thrown: unknown) => this.#fail(asRekindleError(thrown)));
    } else this.#fail(error);
  }

  #fail(error: RekindleError): void {
    if (this.#problem !== null || this.#stopping) return;
    this.#problem = error;
    this.#options.onFatal?.(error);
  }
}

function elapsed(ms: number, over: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    over.addEventListener('abort', () => clearTimeout(timer), { once: true });
  });
}

/** The one storage that is named. */
export async function openStorage(
  { dataDirectory, storage }: Pick<CoordinatorProcessOptions, 'dataDirectory' | 'storage'>,
  log: Write,
): Promise<ExternalStorage> {
  if (storage !== undefined && dataDirectory === undefined) {
    return EtcdStorage.open(parseStorageUrl(storage), { log });
  }
  if (dataDirectory === undefined || storage !== undefined) {
    const text = 'a coordinator needs a data folder (--data) or a storage (--storage), not both';
    throw new RekindleError('INVALID_ARGUMENT', text);
  }
  return LmdbStorage.open(dataDirectory);
}

async function readCopy(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw new RekindleError('INVALID_ARGUMENT', `cannot read the copy ${file}: ${cause}`, {
      cause,
    });
  }
}

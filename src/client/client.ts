/**
 * The entry to the SDK: `connect` finds the coordinator, a `Client` hands out tables. Data goes
 * from tables to masters directly; the coordinator is asked for tables and where they are.
 *
 * A client holds sockets and timers only while it is open; `close` (or `await using`) ends
 * everything that is under way with `CLIENT_CLOSED`.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import {
  checkSignal,
  checkTimeoutMs,
  invalidArgument,
  parseConnectionString,
} from '../rpc/connection-string.js';
import { coordinatorAddresses, type ResolveSrv } from '../rpc/coordinator-addresses.js';
import { CoordinatorSession } from '../rpc/coordinator-session.js';
import { RekindleError } from '../rpc/errors.js';
import { WsLinkPool } from '../rpc/link-pool.js';
import type { ClusterStatus, Hello, LossReport, TableInfo } from '../rpc/messages.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../rpc/table.js';
import { bytes } from './codec.js';
import { OperationRouter } from './operation-router.js';
import { type OperationOptions, Table } from './table.js';

export interface ConnectOptions {
  /** Default deadline of every call, 10 s; overrides the connection string's. */
  timeoutMs?: number;
  /** Ends `connect` early. */
  signal?: AbortSignal;
  /** How the cluster lists this caller. */
  role?: Extract<Hello['role'], 'client' | 'tool'>;
  /** Checked in a later version. */
  credential?: string;
  /** Looks up `rekindle+srv://`; default: Node's DNS. */
  resolveSrv?: ResolveSrv;
}

export interface CreateTableOptions extends OperationOptions {
  /** Number of tablets, each on the next master; 1 unless given. */
  span?: number;
}

const TIMEOUT_MS = 10_000;
const TABLE_NAME_BYTES_MAX = 255;
/** GET_TABLE for parked operations; they have deadlines of their own. */
const SLOT_MAX = 0xffff_ffff;
const FETCH_TIMEOUT_MS = 2_000;

export class Client implements AsyncDisposable {
  readonly timeoutMs: number;
  readonly #pool: WsLinkPool;
  readonly #coordinator: CoordinatorSession;
  readonly #router: OperationRouter;
  #closed = false;

  /** Use `connect`. */
  constructor(url: string, options: ConnectOptions) {
    const { clusterId, timeoutMs, ...place } = parseConnectionString(url);
    this.timeoutMs = checkTimeoutMs(options.timeoutMs ?? timeoutMs ?? TIMEOUT_MS);
    const random = Math.random;
    this.#pool = new WsLinkPool({
      identity: () => ({
        role: options.role ?? 'client',
        // Known after the first answer: from then on no server of another cluster is spoken to.
        clusterId: clusterId ?? this.#coordinator.clusterId,
        serverId: null,
        credential: options.credential ?? null,
      }),
    });
    const addresses = coordinatorAddresses(place, options.resolveSrv);
    this.#coordinator = new CoordinatorSession({ pool: this.#pool, addresses, random });
    this.#router = new OperationRouter({
      clientId: randomClientId(),
      pool: this.#pool,
      fetchTable: (name) => this.#fetchTable(name),
      coordinatorProblem: () => this.#coordinator.problem,
      random,
    });
  }

  get clusterId(): string | null {
    return this.#coordinator.clusterId;
  }

  /** A handle; whether the table exists shows with its first operation. */
  table(name: string): Table {
    const entry = this.#router.tables.entry(checkTableName(name));
    return new Table({ router: this.#router, timeoutMs: this.timeoutMs }, entry, bytes);
  }

  /** Creates the table, or finds it if it exists. */
  async createTable(name: string, options: CreateTableOptions = {}): Promise<Table> {
    const { span } = options;
    checkTableName(name);
    if (span !== undefined && !(Number.isInteger(span) && span >= 1 && span <= 65_536)) {
      throw invalidArgument(`span ${span} is not in 1 … 65536`);
    }
    const request = { operationId: randomUUID(), name, ...(span === undefined ? {} : { span }) };
    const { table } = await this.#call('CREATE_TABLE', request, options);
    this.#router.tables.learn(table);
    return this.table(name);
  }

  /** Whether there was one. */
  async dropTable(name: string, options: OperationOptions = {}): Promise<boolean> {
    const request = { operationId: randomUUID(), name: checkTableName(name) };
    const { existed } = await this.#call('DROP_TABLE', request, options);
    this.#router.tables.forget(name);
    return existed;
  }

  /** Makes one tablet of neighbours that are on one server; says how many runs there were. */
  async mergeTablets(
    name: string,
    options: OperationOptions = {},
  ): Promise<ReplyOf<'MERGE_TABLETS'>> {
    const reply = await this.#call('MERGE_TABLETS', { name: checkTableName(name) }, options);
    this.#router.tables.learn(reply.table);
    return reply;
  }

  /**
   * Makes two of a tablet, on the server that has it: the upper one begins with `slot`, by default
   * in the middle of the widest one. Nothing if a tablet begins there already.
   */
  async splitTablet(
    name: string,
    options: OperationOptions & { slot?: number } = {},
  ): Promise<TableInfo> {
    const { slot } = options;
    if (slot !== undefined && !(Number.isInteger(slot) && slot >= 1 && slot <= SLOT_MAX)) {
      throw invalidArgument(`slot ${slot} is not in 1 … ${SLOT_MAX}`);
    }
    const request = { operationId: randomUUID(), name: checkTableName(name) };
    const at = slot === undefined ? {} : { slot };
    const { table } = await this.#call('SPLIT_TABLET', { ...request, ...at }, options);
    this.#router.tables.learn(table);
    return table;
  }

  /**
   * Starts to move the tablet that holds a slot; `status` shows how it gets on. 0: it is there. The
   * same again is the same migration, as long as that runs.
   */
  async migrateTablet(
    name: string,
    slot: number,
    targetServerId: number,
    options: OperationOptions = {},
  ): Promise<number> {
    const request = { name: checkTableName(name), slot, targetServerId };
    return (await this.#call('MIGRATE_TABLET', request, options)).migrationId;
  }

  /**
   * Starts to empty a server (docs/drain.md), or gives that up; `status` shows how it gets on.
   * Repeating it does no harm.
   */
  async drainServer(
    serverId: number,
    { cancel = false, ...options }: OperationOptions & { cancel?: boolean } = {},
  ): Promise<void> {
    await this.#call('DRAIN_SERVER', { serverId, cancel }, options);
  }

  async listTables(options: OperationOptions = {}): Promise<TableInfo[]> {
    return (await this.#call('LIST_TABLES', {}, options)).tables;
  }

  status(options: OperationOptions = {}): Promise<ClusterStatus> {
    return this.#call('GET_STATUS', {}, options);
  }

  /**
   * Gives up what a crashed master had in segments that are gone for ever (docs/recovery.md). Keys
   * whose newest version was there show an older one, or are absent, or reappear.
   */
  async acceptLoss(
    loss: RequestOf<'ACCEPT_LOSS'>,
    options: OperationOptions = {},
  ): Promise<LossReport> {
    return (await this.#call('ACCEPT_LOSS', loss, options)).loss;
  }

  /** Operations and messages under way, retries, masters. */
  stats(): Record<string, number> {
    return this.#router.stats();
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#router.close();
    this.#pool.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    { timeoutMs, signal }: OperationOptions,
  ): Promise<ReplyOf<K>> {
    if (this.#closed) {
      throw new RekindleError('CLIENT_CLOSED', 'the client is closed', { outcome: 'not-applied' });
    }
    checkSignal(signal);
    return this.#coordinator.call(name, request, {
      timeoutMs: timeoutMs === undefined ? this.timeoutMs : checkTimeoutMs(timeoutMs),
      signal,
    });
  }

  async #fetchTable(name: string): Promise<TableInfo> {
    return (await this.#call('GET_TABLE', { name }, { timeoutMs: FETCH_TIMEOUT_MS })).table;
  }
}

/**
 * Connects to a cluster: `rekindle://host:port,host:port/?cluster=UUID&timeoutMs=10000` names all
 * its coordinators, `rekindle+srv://name/` a DNS service that does. Resolves when a coordinator has
 * answered; else `COORDINATOR_UNAVAILABLE` by the deadline.
 */
export async function connect(url: string, options: ConnectOptions = {}): Promise<Client> {
  const client = new Client(url, options);
  try {
    await client.listTables(options.signal === undefined ? {} : { signal: options.signal });
    return client;
  } catch (error) {
    await client.close();
    throw error;
  }
}

/** Random and below 2^53 (docs/formats.md); 0 is nobody. */
function randomClientId(): number {
  const random = randomBytes(8);
  return (random.readUInt32LE(0) & 0x1f_ffff) * 0x1_0000_0000 + random.readUInt32LE(4) || 1;
}

function checkTableName(name: string): string {
  const length = typeof name === 'string' ? Buffer.byteLength(name) : 0;
  if (length >= 1 && length <= TABLE_NAME_BYTES_MAX) return name;
  throw invalidArgument(`a table's name has 1 to ${TABLE_NAME_BYTES_MAX} bytes, not ${length}`);
}

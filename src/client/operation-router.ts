/**
 * The engine of the SDK: takes operations, finds their masters, brings every operation to its one
 * end, and keeps the bounds. One deadline through all retries; a mutation gets its rpc id when it
 * is sent first, and every retry carries the same.
 *
 * An rpc id counts as finished when its operation has ended in any way: nothing asks about it
 * again, and a copy that is still under way is refused by the master as stale.
 */
import { DeadlineSet } from '../rpc/deadline-set.js';
import { RekindleError } from '../rpc/errors.js';
import { type ExecuteReplyReader, OP_READ, OP_REMOVE } from '../rpc/execute-codec.js';
import { hashKey } from '../rpc/key-hash.js';
import type { TableInfo, TabletInfo } from '../rpc/messages.js';
import { STATUS, statusCode } from '../rpc/status.js';
import type { LinkPool } from '../rpc/transport.js';
import { MasterSession, type SessionRuntime } from './master-session.js';
import { MessageMemory } from './message-memory.js';
import type { Operation } from './operation.js';
import { nextStep, waitMs } from './retry-policy.js';
import { RpcTracker } from './rpc-tracker.js';
import { TableMap } from './table-map.js';

const OPERATIONS_MAX = 262_144;
const OPERATION_BYTES_MAX = 256 * 1024 * 1024;
const BUSY_RETRY_MS = 10;
const SESSIONS_MAX = 4_096;
/** Operations that wait for the same few milliseconds share a timer. */
const WAIT_GRAIN_MS = 4;
const OBJECT_NOT_FOUND = STATUS.OBJECT_NOT_FOUND.number;

export interface RouterOptions {
  clientId: number;
  pool: LinkPool;
  fetchTable(name: string): Promise<TableInfo>;
  /** Why the coordinator cannot be reached, while that is so. */
  coordinatorProblem(): RekindleError | null;
  random(): number;
  rpcWindow?: number;
}

export class OperationRouter implements SessionRuntime {
  readonly clientId: number;
  readonly messageMemory = new MessageMemory();
  readonly tables: TableMap;
  readonly #options: RouterOptions;
  readonly #tracker: RpcTracker;
  readonly #live = new DeadlineSet<Operation>((operation) => this.#onDeadline(operation));
  readonly #sessions = new Map<number, MasterSession>();
  /** Waiting operations by the time when they are routed again, in grains. */
  readonly #waiting = new Map<number, { operations: Operation[]; timer: NodeJS.Timeout }>();
  #operationBytes = 0;
  #closed = false;
  #retries = 0;

  constructor(options: RouterOptions) {
    this.#options = options;
    this.clientId = options.clientId;
    this.#tracker = new RpcTracker(options.rpcWindow);
    this.tables = new TableMap({
      fetch: options.fetchTable,
      route: (operation) => this.route(operation),
      fail: (operation, error) => this.fail(operation, error),
      random: options.random,
    });
  }

  get ackId(): number {
    return this.#tracker.ackId;
  }

  get rpcIdsFree(): number {
    return this.#tracker.room;
  }

  nextRpcId(): number {
    return this.#tracker.next();
  }

  stats(): Record<string, number> {
    let messages = 0;
    for (const session of this.#sessions.values()) messages += session.messagesSent;
    return {
      operations: this.#live.size,
      operationBytes: this.#operationBytes,
      mutationsOutstanding: this.#tracker.outstanding,
      messages,
      retries: this.#retries,
      masters: this.#sessions.size,
    };
  }

  /** Takes an operation over, or ends it at once. */
  submit(operation: Operation, signal: AbortSignal | undefined): void {
    const refusal = this.#refusal(operation, signal);
    if (refusal !== null) {
      operation.ended = true;
      operation.call.failed(operation.index, refusal);
      return;
    }
    this.#operationBytes += operation.bytes;
    this.#live.add(operation);
    if (signal !== undefined) operation.watch(signal, () => this.abort(operation, signal.reason));
    this.route(operation);
  }

  abort(operation: Operation, reason: unknown): void {
    if (operation.ended) return;
    this.fail(operation, operation.failure('ABORTED', 'aborted by its caller', reason));
  }

  fail(operation: Operation, error: RekindleError): void {
    if (this.#end(operation)) operation.call.failed(operation.index, error);
  }

  /** Sends an operation towards its master, by the map as it is now. */
  route(operation: Operation): void {
    if (operation.ended) return;
    const { table } = operation;
    if (table.tableId === 0) {
      this.tables.park(operation);
      return;
    }
    if (operation.tableId !== table.tableId) {
      if (operation.everSent && operation.isMutation) {
        const problem = `table ${table.name} was dropped and created anew`;
        this.fail(operation, operation.failure('TABLE_NOT_FOUND', problem));
        return;
      }
      operation.tableId = table.tableId;
      operation.slot = hashKey(table.tableId, operation.key);
    }
    const tablet = TableMap.tabletOf(table, operation.slot);
    if (tablet === undefined || tablet.status !== 'normal' || tablet.address === null) {
      this.tables.park(operation);
      return;
    }
    this.#session(tablet).enqueue(operation);
  }

  answered(operation: Operation, reader: ExecuteReplyReader, serverId: number): void {
    const { status } = reader;
    if (status === 0) {
      this.#done(operation, reader);
      return;
    }
    if (status === OBJECT_NOT_FOUND && operation.reject === 0) {
      if (operation.op === OP_READ) {
        this.#finish(operation, undefined);
        return;
      }
      if (operation.op === OP_REMOVE) {
        this.#finish(operation, { version: 0 });
        return;
      }
    }
    // Absence is a version too (0), for those who asked for one.
    const absent = status === OBJECT_NOT_FOUND && operation.givenVersion !== 0;
    const code = absent ? 'WRONG_VERSION' : statusCode(status);
    const error = operation.refusal(code, serverId, reader.version);
    if (nextStep(error.code) === 'fail') {
      this.fail(operation, error);
      return;
    }
    this.#tryAgain(operation, error, reader.retryAfterMs);
  }

  lost(operation: Operation, error: RekindleError): void {
    if (nextStep(error.code) === 'fail') {
      this.fail(operation, operation.failure(error.code, error.message, error));
      return;
    }
    this.#tryAgain(operation, error, error.retryAfterMs ?? 0);
  }

  /** Ends everything that is under way. */
  close(): void {
    this.#closed = true;
    for (const operation of this.#live.drain()) {
      this.fail(operation, operation.failure('CLIENT_CLOSED', 'the client was closed'));
    }
    for (const { timer } of this.#waiting.values()) clearTimeout(timer);
    this.#waiting.clear();
    this.tables.close();
    this.#sessions.clear();
  }

  #refusal(operation: Operation, signal: AbortSignal | undefined): RekindleError | null {
    if (this.#closed) return operation.failure('CLIENT_CLOSED', 'the client is closed');
    if (signal?.aborted === true) {
      return operation.failure('ABORTED', 'aborted before it began', signal.reason);
    }
    const bytes = this.#operationBytes + operation.bytes;
    if (this.#live.size < OPERATIONS_MAX && bytes <= OPERATION_BYTES_MAX) return null;
    return new RekindleError(
      'RETRY',
      `this client has ${this.#live.size} operations with ${this.#operationBytes} bytes under way`,
      { retryAfterMs: BUSY_RETRY_MS },
    );
  }

  #session(tablet: TabletInfo): MasterSession {
    const known = this.#sessions.get(tablet.serverId);
    if (known !== undefined) return known;
    if (this.#sessions.size >= SESSIONS_MAX) {
      for (const [serverId, session] of this.#sessions) {
        if (session.idle) this.#sessions.delete(serverId);
      }
    }
    const address = tablet.address ?? '';
    const session = new MasterSession(tablet.serverId, address, this.#options.pool, this);
    this.#sessions.set(tablet.serverId, session);
    return session;
  }

  #done(operation: Operation, reader: ExecuteReplyReader): void {
    const { version } = reader;
    const { codec, form } = operation.call;
    if (form === 'version') {
      this.#finish(operation, { version });
      return;
    }
    let value: unknown;
    try {
      value = codec.decode(reader.takeValue(codec.views === true));
    } catch (cause) {
      const problem = `table ${operation.table.name}: the codec cannot decode the value`;
      this.fail(operation, new RekindleError('INVALID_ARGUMENT', problem, { cause }));
      return;
    }
    this.#finish(operation, form === 'value' ? value : { value, version });
  }

  #finish(operation: Operation, result: unknown): void {
    if (this.#end(operation)) operation.call.done(operation.index, result);
  }

  #tryAgain(operation: Operation, error: RekindleError, retryAfterMs: number): void {
    this.#retries += 1;
    operation.lastError = error;
    if (nextStep(error.code) === 'refresh') this.tables.park(operation);
    else this.#waitFor(operation, waitMs(error.code, retryAfterMs, this.#options.random()));
  }

  #waitFor(operation: Operation, delayMs: number): void {
    const grain = Math.ceil((performance.now() + delayMs) / WAIT_GRAIN_MS);
    const waiting = this.#waiting.get(grain);
    if (waiting !== undefined) {
      waiting.operations.push(operation);
      return;
    }
    const timer = setTimeout(() => {
      const due = this.#waiting.get(grain);
      this.#waiting.delete(grain);
      for (const each of due?.operations ?? []) this.route(each);
    }, delayMs);
    this.#waiting.set(grain, { operations: [operation], timer });
  }

  #onDeadline(operation: Operation): void {
    const parked = operation.table.parked.has(operation);
    if (parked) operation.lastError = this.#options.coordinatorProblem() ?? operation.lastError;
    this.fail(operation, operation.expiry());
  }

  /** Takes an operation off all books; false if it has ended before. */
  #end(operation: Operation): boolean {
    if (operation.ended) return false;
    operation.ended = true;
    operation.unwatch();
    this.#live.delete(operation);
    this.#operationBytes -= operation.bytes;
    if (operation.table.parked.size > 0) operation.table.parked.delete(operation);
    if (operation.rpcId !== 0) this.#finishId(operation.rpcId);
    return true;
  }

  #finishId(rpcId: number): void {
    const wasFull = this.#tracker.room === 0;
    this.#tracker.finish(rpcId);
    if (!wasFull || this.#tracker.room === 0) return;
    for (const session of this.#sessions.values()) session.flushSoon();
  }
}

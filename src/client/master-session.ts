/**
 * The operations of one client for one master. All that is queued in one turn of the event loop
 * leaves as few EXECUTE messages; while the most messages are in flight the rest waits, and so
 * goes out in larger ones. What an answer means is decided by the router.
 *
 * Operations of one message are executed in the order in which they were queued.
 */
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import {
  EXECUTE_HEADER_BYTES,
  ExecuteReplyReader,
  writeExecuteHeader,
  writeOperation,
} from '../rpc/execute-codec.js';
import type { LinkPool, RpcLink } from '../rpc/transport.js';
import type { Operation } from './operation.js';
import { OperationQueue } from './operation-queue.js';
import { attemptMs } from './retry-policy.js';

export const MESSAGE_OPERATIONS_MAX = 1_024;
/** A message goes over it only if a single operation does. */
const MESSAGE_OPERATION_BYTES_MAX = 1_048_576;
/** Few, so that load makes messages larger instead of more; enough to keep a master busy. */
const MESSAGES_IN_FLIGHT_MAX = 4;
/**
 * After which the map is asked whether the owner has changed; a handshake that takes longer goes
 * on meanwhile, and the next attempt finds it done.
 */
const CONNECT_MS = 250;

export interface SessionRuntime {
  readonly clientId: number;
  readonly ackId: number;
  /** A master's result for one operation; the reader stands on it. */
  answered(operation: Operation, reader: ExecuteReplyReader, serverId: number): void;
  /** The message was lost or refused as a whole. */
  lost(operation: Operation, error: RekindleError): void;
}

export class MasterSession {
  readonly serverId: number;
  readonly #pool: LinkPool;
  readonly #address: string;
  readonly #runtime: SessionRuntime;
  readonly #queue = new OperationQueue();
  #messagesInFlight = 0;
  #flushScheduled = false;
  #connecting = false;
  messagesSent = 0;

  constructor(serverId: number, address: string, pool: LinkPool, runtime: SessionRuntime) {
    this.serverId = serverId;
    this.#address = address;
    this.#pool = pool;
    this.#runtime = runtime;
  }

  get idle(): boolean {
    return this.#messagesInFlight === 0 && !this.#connecting && this.#queue.peek() === undefined;
  }

  enqueue(operation: Operation): void {
    this.#queue.push(operation);
    this.#scheduleFlush();
  }

  #scheduleFlush(): void {
    if (this.#flushScheduled || this.#messagesInFlight >= MESSAGES_IN_FLIGHT_MAX) return;
    this.#flushScheduled = true;
    // After the callbacks of this turn: they may queue more, and then it is one message.
    setImmediate(() => {
      this.#flushScheduled = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (this.#queue.peek() === undefined) return;
    let link: RpcLink;
    try {
      // Asked for each time, since a pool may replace a link that was idle.
      link = this.#pool.link(this.#address, this.serverId);
    } catch (thrown) {
      this.#loseQueue(asRekindleError(thrown));
      return;
    }
    if (!link.connected) {
      void this.#connect(link);
      return;
    }
    while (this.#messagesInFlight < MESSAGES_IN_FLIGHT_MAX) {
      const operations = this.#takeMessage();
      if (operations.length === 0) break;
      void this.#send(link, operations);
    }
    link.flush();
  }

  /**
   * Operations are encoded only for an open connection: one that ends while it waits here was
   * certainly not applied. Never rejects.
   */
  async #connect(link: RpcLink): Promise<void> {
    if (this.#connecting) return;
    this.#connecting = true;
    try {
      await link.connect({ timeoutMs: CONNECT_MS });
    } catch (thrown) {
      this.#loseQueue(asRekindleError(thrown));
    } finally {
      this.#connecting = false;
    }
    if (this.#queue.peek() !== undefined) this.#flush();
  }

  #loseQueue(error: RekindleError): void {
    for (let operation = this.#queue.shift(); operation; operation = this.#queue.shift()) {
      this.#runtime.lost(operation, error);
    }
  }

  #takeMessage(): Operation[] {
    const operations: Operation[] = [];
    let bytes = EXECUTE_HEADER_BYTES;
    while (operations.length < MESSAGE_OPERATIONS_MAX) {
      const operation = this.#queue.peek();
      if (operation === undefined) break;
      bytes += operation.bytes;
      if (operations.length > 0 && bytes > MESSAGE_OPERATION_BYTES_MAX) break;
      this.#queue.shift();
      operations.push(operation);
    }
    return operations;
  }

  /** Never rejects. */
  async #send(link: RpcLink, operations: Operation[]): Promise<void> {
    let bytes = EXECUTE_HEADER_BYTES;
    let attempts = 0;
    let deadlineMs = 0;
    for (const operation of operations) {
      bytes += operation.bytes;
      attempts = Math.max(attempts, operation.attempts);
      deadlineMs = Math.max(deadlineMs, operation.deadlineMs);
    }
    const body = Buffer.allocUnsafe(bytes);
    writeExecuteHeader(body, this.#runtime.clientId, this.#runtime.ackId, operations.length);
    let at = EXECUTE_HEADER_BYTES;
    for (const operation of operations) {
      at = writeOperation(body, at, operation);
      operation.inFlight = true;
      operation.everSent = true;
      operation.attempts += 1;
    }
    const remainingMs = Math.max(1, deadlineMs - performance.now());
    const timeoutMs = Math.min(attemptMs(attempts), remainingMs);
    this.#messagesInFlight += 1;
    this.messagesSent += 1;
    let reply: Uint8Array | null = null;
    let error: RekindleError | null = null;
    try {
      reply = await link.callBinary('EXECUTE', [body], { timeoutMs });
    } catch (thrown) {
      error = asRekindleError(thrown);
    }
    this.#messagesInFlight -= 1;
    if (reply !== null) error = this.#deliver(operations, reply);
    if (error !== null) this.#lose(operations, error);
    if (this.#queue.peek() !== undefined) this.#scheduleFlush();
  }

  /** Hands out the results; returns what was wrong with the reply, if anything. */
  #deliver(operations: Operation[], reply: Uint8Array): RekindleError | null {
    try {
      const reader = new ExecuteReplyReader(reply);
      if (reader.count !== operations.length) {
        const problem = `${reader.count} results for ${operations.length} operations`;
        return new RekindleError('INTERNAL', `EXECUTE reply is broken: ${problem}`);
      }
      for (const operation of operations) {
        reader.next();
        operation.inFlight = false;
        if (!operation.ended) this.#runtime.answered(operation, reader, this.serverId);
      }
      return null;
    } catch (thrown) {
      return asRekindleError(thrown);
    }
  }

  #lose(operations: Operation[], error: RekindleError): void {
    for (const operation of operations) {
      // Those that a broken reply did answer have been through `answered`.
      if (!operation.inFlight) continue;
      operation.inFlight = false;
      if (error.outcome === 'unknown') operation.doubt(this.serverId);
      if (!operation.ended) this.#runtime.lost(operation, error);
    }
  }
}

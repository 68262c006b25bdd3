/**
 * The operations of one client for one master. All that is queued in one turn of the event loop
 * leaves as few EXECUTE messages, reads and writes apart; while the most messages are in flight the
 * rest waits, and so goes out in larger ones. Which operations make a message is decided by the
 * lanes, what an answer means by the router.
 *
 * The master executes the messages of a connection in the order in which they were sent.
 */
import { bodyMemory } from '../rpc/body-memory.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import {
  EXECUTE_HEADER_BYTES,
  ExecuteReplyReader,
  SHARED_BYTES_MAX,
  writeExecuteHeader,
  writeOperation,
} from '../rpc/execute-codec.js';
import type { LinkPool, RpcLink } from '../rpc/transport.js';
import type { MessageMemory } from './message-memory.js';
import type { Operation } from './operation.js';
import { type Message, OperationLanes } from './operation-lanes.js';
import { attemptMs } from './retry-policy.js';

/**
 * After which the map is asked whether the owner has changed; a handshake that takes longer goes
 * on meanwhile, and the next attempt finds it done.
 */
const CONNECT_MS = 250;

export interface SessionRuntime {
  readonly clientId: number;
  readonly ackId: number;
  readonly messageMemory: MessageMemory;
  /** How many `nextRpcId` would give; when there are some again, `flushSoon` is called. */
  readonly rpcIdsFree: number;
  nextRpcId(): number;
  /** A master's result for one operation; the reader stands on it. */
  answered(operation: Operation, reader: ExecuteReplyReader, serverId: number): void;
  /** The message was lost or refused as a whole. */
  lost(operation: Operation, error: RekindleError): void;
}

/**
 * The memory of one reply with several values. Where they are many or large each is copied out of
 * it, lest one of them keep them all; then this memory is used again.
 */
class PassingReply {
  readonly #memory: MessageMemory;
  #body: Buffer | null = null;

  constructor(memory: MessageMemory) {
    this.#memory = memory;
  }

  get placed(): boolean {
    return this.#body !== null;
  }

  readonly place = (bytes: number): Uint8Array => {
    if (bytes <= SHARED_BYTES_MAX) return bodyMemory(bytes);
    this.#body = this.#memory.take(bytes);
    return this.#body;
  };

  /** Nobody reads it any more. */
  giveBack(): void {
    if (this.#body !== null) this.#memory.giveBack(this.#body);
    this.#body = null;
  }
}

/** Not of a single value, which is the reply, nor where results may be views. */
function copiesValues({ lane, operations }: Message): boolean {
  if (lane !== 'reads' || operations.length === 1) return false;
  return operations.every(({ call }) => call.codec.views !== true);
}

export class MasterSession {
  readonly serverId: number;
  readonly #pool: LinkPool;
  readonly #address: string;
  readonly #runtime: SessionRuntime;
  readonly #lanes: OperationLanes;
  #flushScheduled = false;
  #connecting = false;
  messagesSent = 0;

  constructor(serverId: number, address: string, pool: LinkPool, runtime: SessionRuntime) {
    this.serverId = serverId;
    this.#address = address;
    this.#pool = pool;
    this.#runtime = runtime;
    this.#lanes = new OperationLanes(() => runtime.rpcIdsFree);
  }

  get idle(): boolean {
    return this.#lanes.messagesInFlight === 0 && !this.#connecting && this.#lanes.empty;
  }

  enqueue(operation: Operation): void {
    this.#lanes.push(operation);
    this.flushSoon();
  }

  flushSoon(): void {
    if (this.#flushScheduled || !this.#lanes.ready) return;
    this.#flushScheduled = true;
    // After the callbacks of this turn: they may queue more, and then it is one message.
    setImmediate(() => {
      this.#flushScheduled = false;
      this.#flush();
    });
  }

  #flush(): void {
    if (!this.#lanes.ready) return;
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
    for (let message = this.#lanes.next(); message !== null; message = this.#lanes.next()) {
      void this.#send(link, message);
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
    this.#flush();
  }

  #loseQueue(error: RekindleError): void {
    for (let operation = this.#lanes.shift(); operation; operation = this.#lanes.shift()) {
      this.#runtime.lost(operation, error);
    }
  }

  /** Never rejects. */
  async #send(link: RpcLink, message: Message): Promise<void> {
    const { operations } = message;
    let attempts = 0;
    let deadlineMs = 0;
    for (const operation of operations) {
      attempts = Math.max(attempts, operation.attempts);
      deadlineMs = Math.max(deadlineMs, operation.deadlineMs);
    }
    const body = this.#runtime.messageMemory.take(message.bytes);
    writeExecuteHeader(body, this.#runtime.clientId, this.#runtime.ackId, operations.length);
    let at = EXECUTE_HEADER_BYTES;
    for (const operation of operations) {
      if (operation.isMutation && operation.rpcId === 0) {
        operation.rpcId = this.#runtime.nextRpcId();
      }
      at = writeOperation(body, at, operation);
      operation.inFlight = true;
      operation.everSent = true;
      operation.attempts += 1;
    }
    const remainingMs = Math.max(1, deadlineMs - performance.now());
    const timeoutMs = Math.min(attemptMs(attempts), remainingMs);
    this.messagesSent += 1;
    const passing = copiesValues(message) ? new PassingReply(this.#runtime.messageMemory) : null;
    let reply: Uint8Array | null = null;
    let error: RekindleError | null = null;
    try {
      const place = passing === null ? {} : { place: passing.place };
      reply = await link.callBinary('EXECUTE', [body], { timeoutMs, ...place });
      this.#runtime.messageMemory.giveBack(body);
    } catch (thrown) {
      error = asRekindleError(thrown);
    }
    this.#lanes.ended(message);
    if (reply !== null) error = this.#deliver(operations, reply, passing);
    if (error !== null) this.#lose(operations, error);
    this.flushSoon();
  }

  /** Hands out the results; returns what was wrong with the reply, if anything. */
  #deliver(
    operations: readonly Operation[],
    reply: Uint8Array,
    passing: PassingReply | null,
  ): RekindleError | null {
    try {
      const reader = new ExecuteReplyReader(reply, passing?.placed === true);
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
    } finally {
      passing?.giveBack();
    }
  }

  #lose(operations: readonly Operation[], error: RekindleError): void {
    for (const operation of operations) {
      // Those that a broken reply did answer have been through `answered`.
      if (!operation.inFlight) continue;
      operation.inFlight = false;
      if (error.outcome === 'unknown') operation.doubt(this.serverId);
      if (!operation.ended) this.#runtime.lost(operation, error);
    }
  }
}

/**
 * The RPCs of a master. EXECUTE is one native call per message: the reply leaves at once if all
 * that it tells is durable and the read lease holds, else when replication has caught up
 * (ReplyQueue) or the lease is back. The lease is looked at after the native call, so an answer
 * that leaves was true when this master was certainly the owner; one that was given too early by
 * a master that was stopped in between stays here.
 *
 * Whatever refuses a message refuses it *before* the core executes it: a write that has been
 * appended is never said to be not applied. While the master is stopped (it may be a zombie)
 * every EXECUTE answers RETRY.
 */

import type { MasterCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import { RekindleError } from '../rpc/errors.js';
import { faultPoint } from '../rpc/fault-point.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import { type BinaryCall, REPLY_ROOM_BYTES, type RpcEndpoint } from '../rpc/transport.js';
import type { MigrationSource } from './migration-source.js';
import type { MigrationTarget } from './migration-target.js';
import type { OwnershipNotes } from './ownership-notes.js';
import type { RecoveryMaster } from './recovery-master.js';
import type { ReplicaManagerRuntime } from './replica-manager-runtime.js';
import { ReplyQueue, type WaitingCall } from './reply-queue.js';
import { RequestSampler } from './request-sampler.js';

/** Room for one value of the largest size beside 65,536 bare results: every message gets on. */
const replyBytesStart = 4 * 1024 * 1024;
/** A reply is one message: 16 MiB less its header. */
const replyBytesMax = 16 * 1024 * 1024 - 16;
const replyGrowthFactor = 2;
const expireIntervalMs = 50;
const stoppedRetryMs = 100;
const overloadRetryMs = 20;
/** How long reads wait for the lease before they are sent away. */
const leaseWaitMs = 500;
const leaseRetryMs = 50;

export interface MasterServiceOptions {
  core: MasterCore;
  replication: ReplicaManagerRuntime;
  recovery: RecoveryMaster;
  migrationSource: MigrationSource;
  migrationTarget: MigrationTarget;
  /** Which tablets the log says that this master has. */
  notes: OwnershipNotes;
  lease: { holds(): boolean; holdsAt(bootTimeMs: number): boolean };
  /** Throws if a leader of a later term has been heard of. */
  checkTerm: (term: number) => void;
  log: Log;
  queue?: ReplyQueue;
}

export class MasterService {
  readonly #options: MasterServiceOptions;
  readonly #queue: ReplyQueue;
  /** Durable, but executed when no lease held. */
  readonly #unleased = new ReplyQueue();
  readonly #results = new Float64Array(3);
  readonly #sampler = new RequestSampler(performance.now());
  #replyBuffer = withRoomBefore(replyBytesStart);
  #stopped = false;
  #closed = false;
  readonly #timer: NodeJS.Timeout;
  #messages = 0;
  #refused = 0;

  constructor(options: MasterServiceOptions) {
    this.#options = options;
    this.#queue = options.queue ?? new ReplyQueue();
    this.#timer = setInterval(() => this.#expire(), expireIntervalMs);
    this.#timer.unref();
  }

  register(endpoint: Pick<RpcEndpoint, 'handle' | 'handleBinary'>): void {
    const { core } = this.#options;
    endpoint.handleBinary('EXECUTE', (call) => this.execute(call));
    endpoint.handle('TAKE_TABLET_OWNERSHIP', (request, call) =>
      this.takeTablet(request, call.deadlineMs),
    );
    endpoint.handle('DROP_TABLET_OWNERSHIP', (request) => this.#dropTablet(request));
    endpoint.handle('MERGE_TABLET_OWNERSHIP', (request) => this.#mergeTablets(request));
    endpoint.handle('SPLIT_TABLET_OWNERSHIP', (request) => this.#splitTablet(request));
    this.#registerMigration(endpoint);
    endpoint.handle('RECOVER', (request) => this.#recover(request));
    endpoint.handle('IS_REPLICA_NEEDED', (request) => this.#isReplicaNeeded(request));
    endpoint.handle('GET_TABLET_LOADS', () => {
      const { memoryBytes = 0 } = core.stats();
      return { memoryBytes, tablets: this.#sampler.loads(core.tablets(), performance.now()) };
    });
    endpoint.handle('COUNT_REPLICAS', ({ backupServerId }) =>
      this.#options.replication.replicasOn(backupServerId),
    );
    endpoint.handle('REPORT_ROT', (request) => this.#loseRotten(request));
  }

  #registerMigration(endpoint: Pick<RpcEndpoint, 'handle' | 'handleBinary'>): void {
    const { migrationSource, migrationTarget } = this.#options;
    endpoint.handle('MIGRATE', (request) =>
      this.#unlessStopped(() => migrationTarget.start(request)),
    );
    endpoint.handle('START_MIGRATION', (request) =>
      this.#unlessStopped(() => migrationSource.start(request)),
    );
    endpoint.handleBinary('GET_MIGRATION_DATA', (call) => migrationSource.data(call));
    endpoint.handle('FREEZE_TABLET', (request) => migrationSource.freeze(request));
    endpoint.handle('END_MIGRATION', (request) => {
      migrationSource.end(request);
      migrationTarget.end(request);
      return {};
    });
  }

  #unlessStopped<T>(act: () => T): T {
    if (this.#stopped || this.#closed) throw this.#stoppedError();
    return act();
  }

  /** Nothing is executed any more until `resume`. What was executed may still be answered. */
  stop(): void {
    this.#stopped = true;
  }

  resume(): void {
    this.#stopped = false;
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#timer);
    const error = new RekindleError('SHUTTING_DOWN', 'the master is stopping', {
      outcome: 'unknown',
    });
    this.#queue.failAll(error);
    this.#unleased.failAll(error);
  }

  /** Called by replication when the durable position moved. */
  onDurable(position: number): void {
    // All of them were executed before this moment, at which the lease holds or not.
    if (this.#queue.length > 0 && this.#options.lease.holds()) this.#queue.release(position);
  }

  /** The lease holds again. */
  onLease(): void {
    if (!this.#options.lease.holds()) return;
    this.#unleased.release(Number.POSITIVE_INFINITY);
    this.#queue.release(this.#options.replication.durablePosition);
  }

  counters(): Record<string, number> {
    return {
      messages: this.#messages,
      messagesRefused: this.#refused,
      repliesWaiting: this.#queue.length,
      repliesWithoutLease: this.#unleased.length,
      replyBytesWaiting: this.#queue.bytes,
      stopped: this.#stopped ? 1 : 0,
    };
  }

  execute(call: BinaryCall): void {
    this.#messages += 1;
    const refusal = this.#refusal(call.body);
    if (refusal !== null) {
      this.#refused += 1;
      call.fail(refusal);
      return;
    }
    this.#sampler.note(call.body, call.receivedMs);
    const { core, lease, replication } = this.#options;
    const reply = this.#replyBufferFor(call.body.length);
    try {
      core.execute(call.body, reply, Date.now(), this.#results);
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (error.code === 'INTERNAL') {
        this.#options.log.error({ err: error }, 'a message could not be executed');
      }
      call.fail(error);
      return;
    }
    const bytes = this.#results[0]!;
    const position = this.#results[1]!;
    // The buffer is the next message's: what waits is copied.
    if (position > replication.durablePosition) {
      this.#queue.push(call, Buffer.from(reply.subarray(0, bytes)), position);
    } else if (lease.holdsAt(this.#results[2]!)) {
      call.replyInPlace(reply.subarray(0, bytes));
    } else {
      const waiting = core.isReadOnly(call.body) ? withLeaseBound(call) : call;
      this.#unleased.push(waiting, Buffer.from(reply.subarray(0, bytes)), position);
    }
    if (position > 0) replication.scheduleFlush();
  }

  #expire(): void {
    const nowMs = performance.now();
    this.#queue.expire(nowMs);
    this.#unleased.expire(nowMs);
  }

  async takeTablet(
    request: RequestOf<'TAKE_TABLET_OWNERSHIP'>,
    deadlineMs: number,
  ): Promise<ReplyOf<'TAKE_TABLET_OWNERSHIP'>> {
    const { core, notes, replication, checkTerm } = this.#options;
    checkTerm(request.term);
    if (this.#stopped || this.#closed) throw this.#stoppedError();
    const { tableId, startSlot, endSlot, name, ownershipId } = request;
    const range = { tableId, startSlot, endSlot };
    const owned = { generation: 0, after: null };
    try {
      core.openLog();
      core.takeTablet(range);
      // A new table has no entries that do not count.
      notes.claim([{ ...range, name, ctimeSegmentId: 0, ownershipId, ...owned }]);
    } catch (thrown) {
      throw asNativeError(thrown);
    }
    // An owner without a durable head would look, after a crash, like one that lost its log.
    const position = core.appendedPosition();
    replication.scheduleFlush();
    await replication.waitDurable(position, Math.max(1, deadlineMs - performance.now()));
    return {};
  }

  /** Answered when nothing of the tablet is left here, so that it may come back. */
  async #dropTablet(
    request: RequestOf<'DROP_TABLET_OWNERSHIP'>,
  ): Promise<ReplyOf<'DROP_TABLET_OWNERSHIP'>> {
    const { core, notes, replication } = this.#options;
    this.#options.checkTerm(request.term);
    const { tableId, startSlot, endSlot, before } = request;
    const range = { tableId, startSlot, endSlot };
    // A recovery claims what it brings before that is served.
    const since = notes
      .within(range)
      .some(({ ownershipId }) => ownershipId >= (before ?? Number.POSITIVE_INFINITY));
    if (since) return {};
    try {
      const erased = core.dropTablet(range);
      this.#options.migrationSource.dropped(request);
      await erased;
      // Not waited for: a drop needs no backups. Durable in a moment.
      notes.forget(range);
      replication.scheduleFlush();
    } catch (thrown) {
      throw asNativeError(thrown);
    }
    return {};
  }

  #mergeTablets({
    apply,
    term,
    ...range
  }: RequestOf<'MERGE_TABLET_OWNERSHIP'>): ReplyOf<'MERGE_TABLET_OWNERSHIP'> {
    const { core, checkTerm } = this.#options;
    checkTerm(term);
    try {
      const ctimeSegmentId = core.mergedCtime(range);
      if (apply) core.mergeTablets(range);
      return { ctimeSegmentId };
    } catch (thrown) {
      throw asNativeError(thrown);
    }
  }

  async #splitTablet({
    slot,
    term,
    ...range
  }: RequestOf<'SPLIT_TABLET_OWNERSHIP'>): Promise<ReplyOf<'SPLIT_TABLET_OWNERSHIP'>> {
    this.#options.checkTerm(term);
    if (this.#stopped || this.#closed) throw this.#stoppedError();
    try {
      await this.#options.core.splitTablet(range, slot);
      return {};
    } catch (thrown) {
      throw asNativeError(thrown);
    }
  }

  #recover(request: RequestOf<'RECOVER'>): ReplyOf<'RECOVER'> {
    this.#options.checkTerm(request.term);
    if (this.#stopped || this.#closed) throw this.#stoppedError();
    this.#options.recovery.start(request);
    return {};
  }

  #isReplicaNeeded(request: RequestOf<'IS_REPLICA_NEEDED'>): ReplyOf<'IS_REPLICA_NEEDED'> {
    const { backupServerId, segmentIds } = request;
    return { needed: this.#options.replication.neededReplicas(backupServerId, segmentIds) };
  }

  async #loseRotten(request: RequestOf<'REPORT_ROT'>): Promise<ReplyOf<'REPORT_ROT'>> {
    await faultPoint('rot-2');
    this.#options.replication.loseRotten(request.backupServerId, request.segmentIds);
    await faultPoint('rot-3');
    return {};
  }

  /** Why the message cannot be executed now; null if it can. */
  #refusal(body: Uint8Array): RekindleError | null {
    if (this.#stopped || this.#closed) return this.#stoppedError();
    const { core, replication } = this.#options;
    if (this.#queue.full || this.#unleased.full) {
      return new RekindleError('RETRY', 'too many replies wait for replication', {
        retryAfterMs: overloadRetryMs,
      });
    }
    if (!replication.canWrite() && !core.isReadOnly(body)) {
      return replication.shortageError(stoppedRetryMs);
    }
    return null;
  }

  #stoppedError(): RekindleError {
    return this.#closed
      ? new RekindleError('SHUTTING_DOWN', 'the master is stopping')
      : new RekindleError('RETRY', 'this master verifies that it is still a member', {
          retryAfterMs: stoppedRetryMs,
        });
  }

  /**
   * Grows towards the largest message. A reply that finds no room is cut by the core (the rest
   * answers RETRY), so a reading client that needs more gets it with its next message.
   */
  #replyBufferFor(requestBytes: number): Uint8Array {
    const used = this.#results[0] ?? 0;
    const wanted = Math.max(requestBytes, used) * replyGrowthFactor;
    if (wanted > this.#replyBuffer.length && this.#replyBuffer.length < replyBytesMax) {
      const grown = Math.max(wanted, this.#replyBuffer.length * replyGrowthFactor);
      this.#replyBuffer = withRoomBefore(Math.min(grown, replyBytesMax));
    }
    return this.#replyBuffer;
  }
}

/** Of so many bytes, to be replied with in place. */
function withRoomBefore(bytes: number): Uint8Array {
  return new Uint8Array(REPLY_ROOM_BYTES + bytes).subarray(REPLY_ROOM_BYTES);
}

/** Reads need not wait until their deadline: they may be repeated, perhaps at another master. */
function withLeaseBound(call: BinaryCall): WaitingCall {
  return {
    deadlineMs: Math.min(call.deadlineMs, performance.now() + leaseWaitMs),
    reply: (body) => call.reply(body),
    fail: (error) => {
      const lapsed = new RekindleError('RETRY', 'this master has no read lease at present', {
        retryAfterMs: leaseRetryMs,
        cause: error,
      });
      call.fail(error.code === 'TIMEOUT' ? lapsed : error);
    },
  };
}

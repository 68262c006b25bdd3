/**
 * The RPCs of a backup: replicas of other masters' segments, and their delivery in a recovery.
 *
 * A write is answered only when the core reports it durable in the chosen mode, and only masters
 * that the server list has up may write. START_READING_DATA fences the crashed master durably
 * *before* it lists replicas, so that no later write can be acknowledged behind the list. Each
 * answer to a write grants a read lease; a fence says how long the last one runs. Storage and
 * group commit are the core's.
 */

import type { BackupCore, RecoveryPiece } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import { RekindleError } from '../rpc/errors.js';
import { faultPoint } from '../rpc/fault-point.js';
import { loadU32, storeU32 } from '../rpc/frame.js';
import { IdTable } from '../rpc/id-table.js';
import type { ServerList } from '../rpc/messages.js';
import { STATUS, statusCode } from '../rpc/status.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { BinaryCall, RpcEndpoint } from '../rpc/transport.js';
import { LeaseGrants } from './lease-grants.js';

const headerBytes = 48;
const writesWaitingMax = 16_384;
const overloadRetryMs = 50;
const U32_MAX = 0xffff_ffff;
/** `BackupCore.write`: done already. */
const WRITE_DONE = -1;

export interface BackupServiceOptions {
  core: BackupCore;
  /** Throws if a leader of a later term has been heard of. */
  checkTerm: (term: number) => void;
  /** False for servers that have left. */
  mayBeMember: (serverId: number) => boolean;
  log: Log;
  /** Boot time in milliseconds. */
  clock: () => number;
}

interface WaitingWrite {
  call: BinaryCall;
  masterId: number;
}

export class BackupService {
  readonly #options: BackupServiceOptions;
  #upServerIds = new Set<number>();
  /** By token; bounded by `writesWaitingMax`. */
  readonly #writesWaiting = new IdTable<WaitingWrite>();
  readonly #leases: LeaseGrants;
  readonly #load = new Float64Array(3);
  readonly #reply = new Uint8Array(12);
  /** The piece that is being sent; `reply` copies it. */
  #piece = new Uint8Array(0);
  /** Recoveries that this backup keeps data for: id -> crashed server. */
  readonly #recoveries = new Map<number, number>();
  #closed = false;
  #writes = 0;
  #writesRefused = 0;

  constructor(options: BackupServiceOptions) {
    this.#options = options;
    this.#leases = new LeaseGrants(options.core.fenced(), options.clock());
    options.core.onDone((done) => this.#finishWrites(done));
  }

  register(endpoint: Pick<RpcEndpoint, 'handle' | 'handleBinary'>): void {
    endpoint.handleBinary('BACKUP_WRITE', (call) => this.write(call));
    endpoint.handle('BACKUP_FREE', (request) => this.#free(request));
    endpoint.handle('START_READING_DATA', (request) => this.startReadingData(request));
    endpoint.handle('START_PARTITIONS', (request) => this.#startPartitions(request));
    endpoint.handleBinary('GET_RECOVERY_DATA', (call) => this.#getRecoveryData(call));
    endpoint.handle('RECOVERY_COMPLETE', (request) => this.#recoveryComplete(request));
    endpoint.handle('RENEW_LEASE', (request) => this.renewLease(request));
  }

  applyServerList(list: ServerList): void {
    const up = list.servers.filter((server) => server.status === 'up');
    this.#upServerIds = new Set(up.map((server) => server.serverId));
    const known = new Set(list.servers.map((server) => server.serverId));
    this.#leases.applyServerList(this.#upServerIds, known);
    for (const [recoveryId, crashedServerId] of this.#recoveries) {
      // Released without us hearing of it: its data would stay in memory for ever.
      if (!known.has(crashedServerId)) this.#endRecovery(recoveryId);
    }
  }

  counters(): Record<string, number> {
    return {
      writes: this.#writes,
      writesRefused: this.#writesRefused,
      writesWaiting: this.#writesWaiting.size,
      recoveries: this.#recoveries.size,
    };
  }

  close(): void {
    this.#closed = true;
    const error = new RekindleError('SHUTTING_DOWN', 'the backup is stopping', {
      outcome: 'unknown',
    });
    for (const { call } of this.#writesWaiting.values()) call.fail(error);
    this.#writesWaiting.clear();
  }

  write(call: BinaryCall): void {
    this.#writes += 1;
    const refusal = this.#refusal(call.body);
    if (refusal !== null) {
      this.#writesRefused += 1;
      call.fail(refusal);
      return;
    }
    const token = this.#writesWaiting.nextId();
    let status: number;
    try {
      status = this.#options.core.write(call.body, token);
    } catch (thrown) {
      call.fail(asNativeError(thrown));
      return;
    }
    if (status === STATUS.OK.number) {
      this.#writesWaiting.set(token, { call, masterId: masterIdOf(call.body) });
      return;
    }
    if (status === WRITE_DONE) {
      const reply = this.#loadReply();
      this.#acknowledge({ call, masterId: masterIdOf(call.body) }, reply);
      return;
    }
    this.#writesRefused += 1;
    call.fail(this.#coreRefusal(status));
  }

  async startReadingData(
    request: RequestOf<'START_READING_DATA'>,
  ): Promise<ReplyOf<'START_READING_DATA'>> {
    const { clock, core, checkTerm, log } = this.#options;
    const { term, recoveryId, crashedServerId } = request;
    checkTerm(term);
    this.#leases.fence(crashedServerId);
    try {
      await faultPoint('lease-3');
      await core.fence(crashedServerId);
      const replicas = core.replicas().filter((replica) => replica.masterId === crashedServerId);
      const digests = await core.digests(crashedServerId);
      log.info({ recoveryId, crashedServerId, replicas: replicas.length }, 'master fenced');
      await faultPoint('lease-4');
      return {
        leaseRemainderMs: this.#leases.remainderMs(crashedServerId, clock()),
        // A replica without a certificate has no bytes yet: it must not look like a segment. What
        // has rotted is none any more.
        replicas: replicas
          .filter((replica) => replica.length > 0 && !replica.rotten)
          .map(({ segmentId, epoch, length, closed, primary, doubtful }) => ({
            segmentId,
            epoch,
            length,
            closed,
            primary,
            doubtful,
          })),
        digests,
      };
    } catch (thrown) {
      throw asNativeError(thrown);
    }
  }

  async renewLease(request: RequestOf<'RENEW_LEASE'>): Promise<ReplyOf<'RENEW_LEASE'>> {
    const leaseMs = this.#leases.grant(request.masterId, this.#options.clock());
    await faultPoint('lease-2');
    return { leaseMs };
  }

  #refusal(body: Uint8Array): RekindleError | null {
    if (this.#closed) return new RekindleError('SHUTTING_DOWN', 'the backup is stopping');
    if (body.length < headerBytes) {
      return new RekindleError('MALFORMED_REQUEST', 'BACKUP_WRITE is shorter than its header');
    }
    const masterId = masterIdOf(body);
    if (!this.#upServerIds.has(masterId)) return this.#strangerRefusal(masterId);
    if (this.#writesWaiting.size >= writesWaitingMax) {
      const text = 'too many writes wait for the disk';
      return new RekindleError('RETRY', text, { retryAfterMs: overloadRetryMs });
    }
    return null;
  }

  /** A master that has just joined is no zombie: the list that has it is on its way to here. */
  #strangerRefusal(masterId: number): RekindleError {
    if (!this.#options.mayBeMember(masterId)) {
      const text = `server ${masterId} is not up in this backup's server list`;
      return new RekindleError('CALLER_NOT_IN_CLUSTER', text);
    }
    const text = `server ${masterId} is not in this backup's server list yet`;
    return new RekindleError('RETRY', text, { retryAfterMs: overloadRetryMs });
  }

  #coreRefusal(status: number): RekindleError {
    const code = statusCode(status);
    if (status !== STATUS.NO_FREE_FRAME.number) {
      return new RekindleError(code, `write refused: ${code}`);
    }
    this.#options.core.load(this.#load);
    const diskFailed = this.#load[2] === 1;
    const text = diskFailed ? 'the disk has failed' : 'no frame is free';
    return new RekindleError(code, text, { details: { diskFailed } });
  }

  #finishWrites(done: Float64Array): void {
    const reply = this.#loadReply();
    for (let index = 0; index + 1 < done.length; index += 2) {
      const token = done[index] ?? 0;
      const status = done[index + 1] ?? 0;
      const waiting = this.#writesWaiting.get(token);
      // Absent only if the service was closed meanwhile.
      if (waiting === undefined) continue;
      this.#writesWaiting.delete(token);
      if (status === STATUS.OK.number) this.#acknowledge(waiting, reply);
      else {
        const error = new RekindleError(statusCode(status), 'the write did not reach the disk');
        waiting.call.fail(error);
      }
    }
  }

  /** The answer to a write, but for the lease: each `reply` copies it, so that one serves all. */
  #loadReply(): Uint8Array {
    this.#options.core.load(this.#load);
    const [freeFrames = 0, queuedBytes = 0] = this.#load;
    const reply = this.#reply;
    storeU32(reply, 0, Math.min(freeFrames, U32_MAX));
    storeU32(reply, 4, Math.min(Math.ceil(queuedBytes / 1024), U32_MAX));
    return reply;
  }

  #acknowledge({ call, masterId }: WaitingWrite, reply: Uint8Array): void {
    storeU32(reply, 8, this.#leases.grant(masterId, this.#options.clock()));
    call.reply(reply);
  }

  async #free(request: RequestOf<'BACKUP_FREE'>): Promise<ReplyOf<'BACKUP_FREE'>> {
    try {
      await this.#options.core.free(request.masterId, request.segmentIds);
    } catch (thrown) {
      throw asNativeError(thrown);
    }
    return {};
  }

  #startPartitions(request: RequestOf<'START_PARTITIONS'>): ReplyOf<'START_PARTITIONS'> {
    const { term, recoveryId, crashedServerId, partitions, segmentIds } = request;
    this.#options.checkTerm(term);
    // A newer recovery of the same master replaces the older one (the core drops its data).
    for (const [id, serverId] of this.#recoveries) {
      if (serverId === crashedServerId) this.#recoveries.delete(id);
    }
    try {
      this.#options.core.startPartitions(recoveryId, crashedServerId, partitions, segmentIds);
    } catch (thrown) {
      throw asNativeError(thrown);
    }
    this.#recoveries.set(recoveryId, crashedServerId);
    return {};
  }

  #getRecoveryData(call: BinaryCall): void {
    const request = parseRecoveryDataRequest(call.body);
    if (request === null) {
      call.fail(new RekindleError('MALFORMED_REQUEST', 'GET_RECOVERY_DATA wants four ids'));
      return;
    }
    const { recoveryId, segmentId, partitionId } = request;
    if (!this.#recoveries.has(recoveryId)) {
      const text = `recovery ${recoveryId} is not known here`;
      call.fail(new RekindleError('RECOVERY_UNKNOWN', text));
      return;
    }
    this.#options.core.recoveryData(recoveryId, segmentId, partitionId).then(
      (piece) => this.#replyPiece(call, piece),
      (thrown: unknown) => call.fail(asNativeError(thrown)),
    );
  }

  /** Through memory that is used again: new memory of this size makes V8 collect garbage. */
  #replyPiece(call: BinaryCall, piece: RecoveryPiece): void {
    const { bytes } = piece;
    if (this.#piece.length < bytes) this.#piece = new Uint8Array(bytes + bytes / 4);
    piece.take(this.#piece);
    call.reply(this.#piece.subarray(0, bytes));
  }

  #recoveryComplete(request: RequestOf<'RECOVERY_COMPLETE'>): ReplyOf<'RECOVERY_COMPLETE'> {
    this.#options.checkTerm(request.term);
    this.#endRecovery(request.recoveryId);
    return {};
  }

  #endRecovery(recoveryId: number): void {
    this.#recoveries.delete(recoveryId);
    try {
      this.#options.core.endRecovery(recoveryId);
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (error.code !== 'RECOVERY_UNKNOWN') throw error;
    }
  }
}

/** Of a BACKUP_WRITE whose header is complete. */
function masterIdOf(body: Uint8Array): number {
  return loadU32(body, 0) + loadU32(body, 4) * 2 ** 32;
}

/** The JSON of GET_RECOVERY_DATA, checked; null if it is not what messages.ts says. */
function parseRecoveryDataRequest(
  body: Uint8Array,
): { recoveryId: number; segmentId: number; partitionId: number } | null {
  let parsed: unknown;
  try {
    parsed = JSON.parse(Buffer.from(body).toString('utf8'));
  } catch (thrown) {
    if (thrown instanceof SyntaxError) return null;
    throw thrown;
  }
  if (typeof parsed !== 'object' || parsed === null) return null;
  const { recoveryId, segmentId, partitionId } = parsed as Record<string, unknown>;
  const isId = (value: unknown): value is number => Number.isSafeInteger(value);
  if (!isId(recoveryId) || !isId(segmentId) || !isId(partitionId)) return null;
  return { recoveryId, segmentId, partitionId };
}

/**
 * Does what the ReplicaManager decides: reads the core's log, sends BACKUP_WRITEs, stores recovery
 * info, frees replicas, and tells the core how far the log is durable.
 *
 * One flush per event-loop turn (`scheduleFlush`, setImmediate) moves everything that was appended
 * in that turn: this is the group commit. Segment bytes go to the socket as a view of the core's
 * memory, so no segment may be freed (`drain`) or unpinned while a write of it is under way.
 */
import { setTimeout as sleep, setImmediate as yieldTurn } from 'node:timers/promises';
import type { MasterCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import { asRekindleError, invariant, RekindleError } from '../rpc/errors.js';
import { storeU32, storeU64 } from '../rpc/frame.js';
import type { ServerList } from '../rpc/messages.js';
import type { BackupLoad } from './backup-selector.js';
import { shortageError } from './placement-shortage.js';
import type { LeaseGrantee } from './read-lease-runtime.js';
import { type ReplicaAddress, ReplicaFreer } from './replica-freer.js';
import {
  ReplicaManager as Manager,
  type ReplicaManager,
  type ReplicaManagerEffect,
  type ReplicaManagerEvent,
} from './replica-manager.js';
import { groupBytesMax, type SegmentWrite } from './replicated-segment.js';
import type { CoordinatorCaller, ServerDirectory } from './server-directory.js';

const headerBytes = 48;
const leaseOffset = 8;
const FLAG_OPEN = 1;
const FLAG_CLOSE = 2;
const FLAG_PRIMARY = 4;
const FLAG_CERTIFICATE = 8;

const tickMs = 20;
const retryDelayMs = 100;
const retryDelayMsMax = 1_000;
/** Waiters for positions and segments at a time; recoveries and tablet creations. */
const waitersMax = 10_000;

export interface ReplicaManagerRuntimeOptions {
  serverId: number;
  replicas: number;
  core: MasterCore;
  servers: ServerDirectory;
  coordinator: CoordinatorCaller;
  log: Log;
  random?: () => number;
  /** Hears who must grant, and of each grant that comes with an acknowledgement. */
  lease: LeaseGrantee;
  /** The durable position moved; called inside the flush. */
  onDurable: (position: number) => void;
  /** A flush is over: what it answered may leave. */
  onFlushed: () => void;
  /** A backup refused us as fenced or not a member. */
  onMembershipDoubt: (reason: string) => void;
}

interface Drain {
  resolve: () => void;
  reject: (error: RekindleError) => void;
}

interface Waiter {
  done: () => boolean;
  resolve: () => void;
  reject: (error: RekindleError) => void;
  deadlineMs: number;
}

/** The 48 bytes of docs/formats.md §3, BACKUP_WRITE. */
export function encodeBackupWriteHeader(
  masterId: number,
  write: SegmentWrite,
  primary: boolean,
): Uint8Array {
  // Plain stores: a Buffer that is filled with BigInts takes longer than all else of a small write.
  const header = new Uint8Array(headerBytes);
  storeU64(header, 0, masterId);
  storeU64(header, 8, write.segmentId);
  storeU64(header, 16, write.epoch);
  storeU32(header, 24, write.offset);
  storeU32(header, 28, write.end - write.offset);
  if (write.certified) {
    storeU32(header, 32, write.end);
    storeU32(header, 36, write.checksum);
  }
  const flags =
    (write.open ? FLAG_OPEN : 0) |
    (write.close ? FLAG_CLOSE : 0) |
    (primary ? FLAG_PRIMARY : 0) |
    (write.certified ? FLAG_CERTIFICATE : 0);
  storeU32(header, 40, flags);
  return header;
}

/** Of a reply to BACKUP_WRITE. One that ends early says nothing of the backup, grants nothing. */
function decodeReply(reply: Uint8Array): { load: BackupLoad | undefined; leaseMs: number } {
  const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength);
  const u32 = (offset: number): number => view.getUint32(offset, true);
  return {
    load: reply.length < leaseOffset ? undefined : { freeFrames: u32(0), queuedKib: u32(4) },
    leaseMs: reply.length < leaseOffset + 4 ? 0 : u32(leaseOffset),
  };
}

function stopping(): RekindleError {
  return new RekindleError('SHUTTING_DOWN', 'the master is stopping', { outcome: 'unknown' });
}

type WriteEnd = Extract<ReplicaManagerEvent, { kind: 'acked' | 'failed' }>;

export class ReplicaManagerRuntime {
  readonly #options: ReplicaManagerRuntimeOptions;
  readonly #manager: ReplicaManager;
  /** Filled by the core, reused: a hot call allocates nothing. */
  readonly #results = new Float64Array(4);
  readonly #freer: ReplicaFreer;
  readonly #sides = new Set<number>();
  /** Heads that may still grow; all but the last are closed or about to be. */
  #growingHeads: number[] = [];
  #headLast = 0;
  #flushScheduled = false;
  /** A group waits for more. */
  #groupTimer: NodeJS.Timeout | null = null;
  /** Writes that have ended in this turn. */
  #ended: WriteEnd[] = [];
  #stopped = false;
  readonly #timer: NodeJS.Timeout;
  #waiters: Waiter[] = [];
  /** Writes under way by segment. */
  readonly #inFlight = new Map<number, number>();
  /** Drains wait here until the last write of the segment has ended. */
  readonly #drains = new Map<number, Drain[]>();
  /** Unpinned as soon as their last write, to a backup that was lost, has ended. */
  readonly #unpins = new Set<number>();
  /** (segment, epoch) stores go one after the other, in order. */
  #stores: Promise<void> = Promise.resolve();
  #storedMinOpen = { segmentId: 0, epoch: 0 };
  #reportedStarved = false;

  constructor(options: ReplicaManagerRuntimeOptions) {
    this.#options = options;
    const results = this.#results;
    this.#manager = new Manager({
      serverId: options.serverId,
      replicas: options.replicas,
      random: options.random ?? Math.random,
      source: (segmentId, from, bytesMax) => {
        options.core.chunk(segmentId, from, bytesMax, results);
        const [end = 0, checksum = 0, segmentBytes = 0] = results;
        return { end, checksum, segmentBytes };
      },
    });
    const { log, serverId, servers } = options;
    this.#freer = new ReplicaFreer({ masterId: serverId, servers, log });
    this.#timer = setInterval(() => this.#tick(), tickMs);
    this.#timer.unref();
  }

  get durablePosition(): number {
    return this.#manager.durablePosition;
  }

  canWrite(): boolean {
    return this.#manager.canWrite(performance.now());
  }

  /** What a caller is told when `canWrite` says no. */
  shortageError(retryAfterMs: number): RekindleError {
    const shortage = this.#manager.shortage(performance.now());
    if (shortage !== null) return shortageError(shortage, retryAfterMs);
    // The backup that was missing has come meanwhile; the next flush takes it.
    return new RekindleError('RETRY', 'a replica is being placed', { retryAfterMs });
  }

  /** The scrub of a backup has found these damaged: they are written anew elsewhere. */
  loseRotten(backupServerId: number, segmentIds: readonly number[]): void {
    for (const segmentId of segmentIds) {
      this.#step([{ kind: 'rotten', segmentId, serverId: backupServerId }]);
    }
    this.scheduleFlush();
  }

  counters(): Record<string, number> {
    return { ...this.#manager.counters(), ...this.#freer.counters() };
  }

  replicasOn(backupServerId: number): { serverListVersion: number; replicas: number } {
    return this.#manager.replicasOn(backupServerId);
  }

  neededReplicas(backupServerId: number, segmentIds: readonly number[]): number[] {
    return this.#manager.neededReplicas(backupServerId, segmentIds);
  }

  applyServerList(list: ServerList): void {
    this.#step([{ kind: 'serverList', list }]);
    this.scheduleFlush();
  }

  /** Replicates at the end of this turn whatever was appended until then. */
  scheduleFlush(): void {
    if (this.#flushScheduled || this.#stopped) return;
    this.#flushScheduled = true;
    setImmediate(() => {
      this.#flushScheduled = false;
      if (!this.#stopped) this.#flush();
    });
  }

  /** Announces side segments (of a recovery, survivors) and replicates what they hold. */
  trackSides(segmentIds: readonly number[]): void {
    for (const segmentId of segmentIds) {
      if (this.#sides.has(segmentId) || this.#manager.segment(segmentId) !== undefined) continue;
      this.#options.core.segmentState(segmentId, this.#results);
      const openingBytes = this.#results[3] ?? 0;
      this.#sides.add(segmentId);
      this.#step([{ kind: 'sideOpened', segmentId, openingBytes }]);
    }
    this.scheduleFlush();
  }

  /** Resolves when all these segments are closed on all their backups. */
  waitReplicated(segmentIds: readonly number[], timeoutMs: number): Promise<void> {
    const done = () => segmentIds.every((id) => this.#manager.segment(id)?.closeCommitted ?? false);
    return this.#wait(done, timeoutMs, 'side segments are not replicated in time');
  }

  waitDurable(position: number, timeoutMs: number): Promise<void> {
    const done = () => this.#manager.durablePosition >= position;
    return this.#wait(done, timeoutMs, `position ${position} is not durable in time`);
  }

  /** A stale open copy of one of these segments may lie on a backup that was lost. */
  lostOpenReplica(segmentIds: readonly number[]): boolean {
    return segmentIds.some((id) => this.#manager.segment(id)?.lostOpenReplica ?? false);
  }

  /** Forbids all open replicas below the oldest open head; resolves when the coordinator has it. */
  async raiseMinOpenSegment(): Promise<void> {
    const head = this.#manager.firstOpenHead;
    invariant(head !== null, 'a log that was committed to has a head');
    // Epoch 0: whether older epochs of the head itself are forbidden is decided elsewhere.
    await this.#storeRecoveryInfo(head.segmentId, 0);
  }

  /**
   * Stops to replicate these segments and forgets them. Resolves, with the replicas to be freed,
   * when no byte of them is in use any more: then the core may free their memory.
   */
  async drain(segmentIds: readonly number[]): Promise<ReplicaAddress[]> {
    const replicas: ReplicaAddress[] = [];
    for (const segmentId of segmentIds) {
      this.#sides.delete(segmentId);
      this.#unpins.delete(segmentId);
      // Freed by the caller, when the core has let go of the segment.
      this.#step([{ kind: 'released', segmentId }], (effect) => {
        if (effect.kind === 'free' && effect.segmentId === segmentId) replicas.push(effect);
        else this.#perform(effect);
      });
    }
    for (const segmentId of segmentIds) {
      if (!this.#inFlight.has(segmentId)) continue;
      if (this.#stopped) throw stopping();
      await new Promise<void>((resolve, reject) => {
        const drains = this.#drains.get(segmentId) ?? [];
        drains.push({ resolve, reject });
        this.#drains.set(segmentId, drains);
      });
    }
    return replicas;
  }

  /** Tells the backups; resolves when they have answered, or are gone. */
  async free(replicas: readonly ReplicaAddress[]): Promise<void> {
    await this.#freer.free(replicas);
  }

  stop(): void {
    this.#stopped = true;
    clearInterval(this.#timer);
    if (this.#groupTimer !== null) clearTimeout(this.#groupTimer);
    this.#freer.stop();
    const error = stopping();
    for (const waiter of this.#waiters.splice(0)) waiter.reject(error);
    for (const drain of [...this.#drains.values()].flat()) drain.reject(error);
    this.#drains.clear();
  }

  #flush(): void {
    const { core } = this.#options;
    const results = this.#results;
    for (const segmentId of core.headsAfter(this.#headLast)) {
      core.segmentState(segmentId, results);
      this.#headLast = segmentId;
      this.#growingHeads.push(segmentId);
      const [, , position = 0, openingBytes = 0] = results;
      this.#step([{ kind: 'headOpened', segmentId, position, openingBytes }]);
    }
    const events: ReplicaManagerEvent[] = [];
    this.#growingHeads = this.#growingHeads.filter((id) => !this.#noteGrowth(id, events));
    for (const segmentId of this.#sides) {
      if (this.#noteGrowth(segmentId, events)) this.#sides.delete(segmentId);
    }
    // Behind the growth: the group that follows an acknowledgement is all that there is by now.
    events.push(...this.#ended.splice(0));
    this.#step(events);
    this.#options.onFlushed();
  }

  /** Adds what the manager has to hear of the segment; true if it will not grow any more. */
  #noteGrowth(segmentId: number, events: ReplicaManagerEvent[]): boolean {
    this.#options.core.segmentState(segmentId, this.#results);
    const appendedBytes = this.#results[0] ?? 0;
    const closed = this.#results[1] === 1;
    const known = this.#manager.segment(segmentId);
    invariant(known !== undefined, 'a growing segment is known to the manager');
    if (known.appendedBytes !== appendedBytes || known.closed !== closed) {
      events.push({ kind: 'extended', segmentId, appendedBytes, closed });
    }
    return closed;
  }

  #tick(): void {
    this.#step([{ kind: 'tick' }]);
    if (this.#ended.length > 0) this.scheduleFlush();
    const starved = this.#manager.counters().notEnoughBackups === 1;
    if (starved !== this.#reportedStarved) {
      this.#reportedStarved = starved;
      const fields = { replicas: this.#options.replicas };
      if (starved) {
        const why = this.shortageError(0).message;
        this.#options.log.warn({ ...fields, why }, 'not enough backups: writes are refused');
      } else this.#options.log.info(fields, 'enough backups again: writes are accepted');
    }
    this.#settleWaiters();
  }

  #step(events: readonly ReplicaManagerEvent[], perform = this.#performEach): void {
    const before = this.#manager.durablePosition;
    const effects = this.#manager.step(events, performance.now());
    // Before a close is sent: from then on the next head's backups must have granted as well.
    this.#options.lease.setHolders(this.#manager.leaseHolders);
    for (const effect of effects) perform(effect);
    const after = this.#manager.durablePosition;
    if (after > before) {
      this.#options.core.setDurable(after);
      this.#options.onDurable(after);
    }
    if (this.#waiters.length > 0) this.#settleWaiters();
  }

  readonly #performEach = (effect: ReplicaManagerEffect): void => this.#perform(effect);

  #perform(effect: ReplicaManagerEffect): void {
    switch (effect.kind) {
      case 'send':
        void this.#send(effect.write);
        return;
      case 'storeRecoveryInfo': {
        const { segmentId, epoch } = effect;
        this.#storeRecoveryInfo(segmentId, epoch).then(
          () => this.#step([{ kind: 'recoveryInfoStored', segmentId, epoch }]),
          // It is retried until it succeeds or the master stops; then nobody waits for it.
          (error: RekindleError) => this.#options.log.debug({ code: error.code }, error.message),
        );
        return;
      }
      case 'free':
        void this.#freeLost(effect);
        return;
      case 'unpin':
        this.#unpins.add(effect.segmentId);
        this.#unpin(effect.segmentId);
        return;
      case 'verifyMembership':
        this.#options.onMembershipDoubt(`a backup answered ${effect.code}`);
        return;
      case 'rollHead':
        this.#rollHead(effect.segmentId);
        return;
      case 'wait':
        this.#groupTimer ??= setTimeout(() => {
          this.#groupTimer = null;
          this.scheduleFlush();
        }, effect.ms);
        return;
    }
  }

  /** Asked for at each tick as long as that segment is the head: memory may be short. */
  #rollHead(segmentId: number): void {
    const { core, log } = this.#options;
    if (core.headsAfter(segmentId).length > 0) return;
    try {
      core.rollHead();
    } catch (thrown) {
      const { code, message } = asNativeError(thrown);
      if (code !== 'OUT_OF_MEMORY' && code !== 'RETRY') throw thrown;
      log.debug({ segmentId, code, message }, 'the head stays on a backup that is being drained');
      return;
    }
    this.scheduleFlush();
  }

  /** From its answer on the backup may be chosen for the segment again. Never rejects. */
  async #freeLost(replica: ReplicaAddress): Promise<void> {
    const answered = await this.#freer.free([replica]);
    if (!answered || this.#stopped) return;
    this.#step([{ kind: 'freed', segmentId: replica.segmentId, serverId: replica.serverId }]);
  }

  /** Never rejects: every outcome becomes an event. */
  async #send(write: SegmentWrite): Promise<void> {
    const { segmentId } = write;
    this.#inFlight.set(segmentId, (this.#inFlight.get(segmentId) ?? 0) + 1);
    let event: WriteEnd;
    try {
      event = { kind: 'acked', write, load: await this.#call(write) };
    } catch (thrown) {
      const { code, message, details } = asRekindleError(thrown);
      event = { kind: 'failed', write, code, diskFailed: details?.diskFailed === true };
      this.#options.log.debug(
        { segmentId, backup: write.serverId, code, message },
        'a write to a backup failed',
      );
    }
    this.#endWrite(segmentId);
    if (this.#stopped) return;
    this.#ended.push(event);
    // Until the last answer of a group nothing can be done: it takes the others along. If it does
    // not come soon, a tick does.
    const answers = this.#ended.filter((end) => end.write.segmentId === segmentId).length;
    const underWay = this.#manager.segment(segmentId)?.writesUnderWay ?? 0;
    const more = underWay > answers && write.end - write.offset < groupBytesMax;
    if (!more || event.kind === 'failed') this.scheduleFlush();
  }

  async #call(write: SegmentWrite): Promise<BackupLoad | undefined> {
    const link = this.#options.servers.linkTo(write.serverId);
    if (link === null) {
      throw new RekindleError('CONNECTION_LOST', `server ${write.serverId} is not in the list`);
    }
    const header = encodeBackupWriteHeader(this.#options.serverId, write, write.replicaIndex === 0);
    const { end, offset, segmentId } = write;
    const parts =
      end === offset ? [header] : [header, this.#options.core.segmentBytes(segmentId, offset, end)];
    const { lease } = this.#options;
    const sentAtMs = lease.now();
    const answered = link.callBinary('BACKUP_WRITE', parts);
    // The flush that called us ends this turn already: waiting for the link's would cost another.
    link.flush();
    const { load, leaseMs } = decodeReply(await answered);
    lease.granted(write.serverId, sentAtMs, leaseMs);
    return load;
  }

  #endWrite(segmentId: number): void {
    const left = (this.#inFlight.get(segmentId) ?? 0) - 1;
    if (left > 0) {
      this.#inFlight.set(segmentId, left);
      return;
    }
    this.#inFlight.delete(segmentId);
    this.#unpin(segmentId);
    const drains = this.#drains.get(segmentId) ?? [];
    this.#drains.delete(segmentId);
    for (const drain of drains) drain.resolve();
  }

  /**
   * The manager wants the segment unpinned. A write to a backup that was lost may still be under
   * way: then later. If another replica is lost meanwhile the segment stays pinned; the manager
   * says so again when that one is replaced.
   */
  #unpin(segmentId: number): void {
    if (this.#stopped || this.#inFlight.has(segmentId) || !this.#unpins.delete(segmentId)) return;
    if (this.#manager.segment(segmentId)?.synced === true) {
      this.#options.core.unpinSegment(segmentId);
    }
  }

  /** Retries until the coordinator has stored it or the master stops. */
  #storeRecoveryInfo(segmentId: number, epoch: number): Promise<void> {
    const { serverId, coordinator, log } = this.#options;
    const store = async (): Promise<void> => {
      for (let attempt = 0; ; attempt += 1) {
        if (this.#stopped) throw stopping();
        const stored = this.#storedMinOpen;
        // It only grows: what is forbidden stays forbidden.
        if (segmentId < stored.segmentId) return;
        if (segmentId === stored.segmentId && epoch <= stored.epoch) return;
        try {
          await coordinator.call('SET_MASTER_RECOVERY_INFO', { serverId, segmentId, epoch });
          this.#storedMinOpen = { segmentId, epoch };
          return;
        } catch (thrown) {
          const { code, message } = asRekindleError(thrown);
          const fields = { segmentId, epoch, code, message };
          if (attempt % 10 === 0) log.warn(fields, 'recovery info is not stored yet');
          if (code === 'CALLER_NOT_IN_CLUSTER') {
            this.#options.onMembershipDoubt('the coordinator refused recovery info');
          }
          await sleep(Math.min(retryDelayMs * (attempt + 1), retryDelayMsMax));
        }
      }
    };
    const stored = this.#stores.then(store);
    // The chain goes on after a failure; the failure itself belongs to the caller.
    this.#stores = stored.then(
      () => undefined,
      () => undefined,
    );
    return stored;
  }

  async #wait(done: () => boolean, timeoutMs: number, message: string): Promise<void> {
    if (done()) return;
    if (this.#stopped) throw stopping();
    if (this.#waiters.length >= waitersMax) {
      throw new RekindleError('RETRY', 'too many waiters for replication', { retryAfterMs: 100 });
    }
    await new Promise<void>((resolve, reject) => {
      const deadlineMs = performance.now() + timeoutMs;
      const onReject = (error: RekindleError): void => {
        const starved = !this.canWrite() && error.code === 'TIMEOUT';
        const why = starved ? this.shortageError(retryDelayMs) : error;
        reject(
          starved && why.code === 'NOT_ENOUGH_BACKUPS'
            ? new RekindleError(why.code, `${message}: ${why.message}`, { cause: why })
            : error,
        );
      };
      this.#waiters.push({ done, resolve, reject: onReject, deadlineMs });
    });
    await yieldTurn();
  }

  #settleWaiters(): void {
    const nowMs = performance.now();
    this.#waiters = this.#waiters.filter((waiter) => {
      if (waiter.done()) {
        waiter.resolve();
        return false;
      }
      if (nowMs < waiter.deadlineMs) return true;
      waiter.reject(new RekindleError('TIMEOUT', 'replication did not finish in time'));
      return false;
    });
  }
}

/** What brings side segments into the log: recoveries and cleaning passes use no more. */
export type SideReplication = Pick<
  ReplicaManagerRuntime,
  | 'trackSides'
  | 'waitReplicated'
  | 'waitDurable'
  | 'lostOpenReplica'
  | 'raiseMinOpenSegment'
  | 'drain'
  | 'free'
  | 'scheduleFlush'
>;

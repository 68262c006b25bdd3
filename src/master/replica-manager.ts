/**
 * All ReplicatedSegments of a master, as a pure state machine: places replicas, opens the gates
 * between neighbouring heads, bounds the writes under way and computes the durable position.
 *
 * The durable position never goes back: heads count in order, each up to what all R replicas hold,
 * and a later one only when its predecessor is closed everywhere. I/O is the runtime's
 * (replica-manager-runtime.ts).
 */
import { invariant } from '../rpc/errors.js';
import type { ServerList } from '../rpc/messages.js';
import type { StatusCode } from '../rpc/status.js';
import { type BackupLoad, BackupSelector } from './backup-selector.js';
import type { PlacementShortage } from './placement-shortage.js';
import {
  type ChunkSource,
  ReplicatedSegment,
  type SegmentEffect,
  type SegmentWrite,
} from './replicated-segment.js';

export interface ReplicaManagerOptions {
  serverId: number;
  replicas: number;
  /** In [0, 1); the only source of chance. */
  random: () => number;
  source: ChunkSource;
  /** BACKUP_WRITEs under way at once. */
  writesInFlightMax?: number;
}

export type ReplicaManagerEvent =
  | { kind: 'serverList'; list: ServerList }
  /** Heads are announced in the order of their ids; `position` is that of the first byte. */
  | { kind: 'headOpened'; segmentId: number; position: number; openingBytes: number }
  | { kind: 'sideOpened'; segmentId: number; openingBytes: number }
  | { kind: 'extended'; segmentId: number; appendedBytes: number; closed: boolean }
  /** `load`: what the backup reported with its answer. */
  | { kind: 'acked'; write: SegmentWrite; load?: BackupLoad | undefined }
  | { kind: 'failed'; write: SegmentWrite; code: StatusCode; diskFailed?: boolean }
  /** A backup has forgotten a replica that it had lost. */
  | { kind: 'freed'; segmentId: number; serverId: number }
  /** The scrub of a backup found that its closed replica is damaged. */
  | { kind: 'rotten'; segmentId: number; serverId: number }
  | { kind: 'recoveryInfoStored'; segmentId: number; epoch: number }
  /** The segment left the log, a head only when a durable digest lacks it; replicas are freed. */
  | { kind: 'released'; segmentId: number }
  | { kind: 'tick' };

export type ReplicaManagerEffect =
  | { kind: 'send'; write: SegmentWrite }
  | { kind: 'storeRecoveryInfo'; segmentId: number; epoch: number }
  | { kind: 'free'; segmentId: number; serverId: number }
  | { kind: 'unpin'; segmentId: number }
  /** A group waits for more: a step is due after this long, whatever else happens. */
  | { kind: 'wait'; ms: number }
  /** The head has a replica on a backup that is being drained; the next one would have none. */
  | { kind: 'rollHead'; segmentId: number }
  | { kind: 'verifyMembership'; code: StatusCode };

interface Head {
  segment: ReplicatedSegment;
  position: number;
  /** Was open on all R at some time: a close of the head before it may have been sent since. */
  openedOnce: boolean;
}

const writesInFlightMaxDefault = 24;
/** Sides and copies of closed segments begin no write beyond this share: heads find room. */
const backgroundShare = 2 / 3;
/** Segments that leave backups at once, and how many are looked at in one tick. */
const leavingMax = 4;
const leavingTriesMax = 32;

export class ReplicaManager {
  readonly #options: ReplicaManagerOptions;
  readonly #selector: BackupSelector;
  readonly #segments = new Map<number, ReplicatedSegment>();
  /**
   * Heads in log order: those that are not closed on all R, and the one before them, whose close
   * opens their gates (it stays here even when it was released).
   */
  readonly #heads: Head[] = [];
  /** Heads below this index (none or one) are closed on all R. */
  #firstOpenHead = 0;
  /** Segments that may have something to send, in the order of their first need. */
  readonly #active = new Set<ReplicatedSegment>();
  /** Segments with a replica on a backup that is being drained. */
  readonly #toLeave = new Set<ReplicatedSegment>();
  #listVersion = 0;
  #tokenLast = 0;
  #writesInFlight = 0;
  #durablePosition = 0;
  /** The last head that wants a backup and has none. */
  #starvedHead: ReplicatedSegment | null = null;
  #leaseHolders: readonly number[] | null = [];

  constructor(options: ReplicaManagerOptions) {
    this.#options = options;
    this.#selector = new BackupSelector(options.serverId, options.replicas, options.random);
  }

  get durablePosition(): number {
    return this.#durablePosition;
  }

  /** A new append can become durable with the backups that are there now. */
  canWrite(nowMs: number): boolean {
    if (this.#starvedHead !== null) return false;
    return this.#heads.length > 0 || this.#selector.canPlace(nowMs);
  }

  /** Why `canWrite` says no, if it still does. */
  shortage(nowMs: number): PlacementShortage | null {
    const { serverIds, excludedServerIds } = this.#starvedHead ?? {
      serverIds: [],
      excludedServerIds: new Set<number>(),
    };
    return this.#selector.shortage(serverIds, excludedServerIds, nowMs);
  }

  segment(segmentId: number): ReplicatedSegment | undefined {
    return this.#segments.get(segmentId);
  }

  /**
   * Which of the replicas that a backup found after its restart must be kept: those of segments
   * of the log that are not on R backups at present. The backup is a new incarnation, so none is
   * in use. Cleaned segments are unknown here, but only once a durable digest lacks them.
   */
  neededReplicas(backupServerId: number, segmentIds: readonly number[]): number[] {
    // Our list is older than that backup: it still counts replicas of its former incarnation.
    if (!this.#selector.isUp(backupServerId)) return [...segmentIds];
    return segmentIds.filter((segmentId) => {
      const segment = this.#segments.get(segmentId);
      if (segment === undefined) return false;
      return segment.serverIds.includes(backupServerId) || !segment.synced;
    });
  }

  /**
   * The oldest head that is not closed everywhere. All heads below it are, so no open replica
   * below it is needed by anyone.
   */
  get firstOpenHead(): { segmentId: number; epoch: number } | null {
    const head = this.#heads[this.#firstOpenHead]?.segment;
    return head === undefined ? null : { segmentId: head.segmentId, epoch: head.epoch };
  }

  /**
   * The backups without which a recovery cannot find a complete log: all of the oldest head that is
   * open, and of the next one once its opening was on all R, since a close of the older one may
   * have been sent. null while a lost open replica is not replaced: the lost one might be found
   * instead. The same array object until they change. docs/leases.md has the proof.
   */
  get leaseHolders(): readonly number[] | null {
    return this.#leaseHolders;
  }

  /** What this log has on a backup, or has not heard yet that it is freed there. */
  replicasOn(backupServerId: number): { serverListVersion: number; replicas: number } {
    let replicas = 0;
    for (const { excludedServerIds, serverIds } of this.#segments.values()) {
      const there = serverIds.includes(backupServerId) || excludedServerIds.has(backupServerId);
      replicas += there ? 1 : 0;
    }
    return { serverListVersion: this.#listVersion, replicas };
  }

  counters(): Record<string, number> {
    let recovering = 0;
    for (const segment of this.#active) recovering += segment.recovering ? 1 : 0;
    return {
      replicatedSegments: this.#segments.size,
      segmentsBehind: this.#active.size,
      segmentsRecovering: recovering,
      backupWritesInFlight: this.#writesInFlight,
      notEnoughBackups: this.#starvedHead === null ? 0 : 1,
      replicasOutsideCopysets: this.#selector.outsideCopysets,
    };
  }

  /** Applies events in order; what may be done now is decided once, behind the last. */
  step(events: readonly ReplicaManagerEvent[], nowMs: number): ReplicaManagerEffect[] {
    const effects: ReplicaManagerEffect[] = [];
    for (const event of events) this.#apply(event, nowMs, effects);
    this.#pump(nowMs, effects);
    this.#advanceDurablePosition();
    this.#followLeaseHolders();
    return effects;
  }

  #apply(event: ReplicaManagerEvent, nowMs: number, effects: ReplicaManagerEffect[]): void {
    switch (event.kind) {
      case 'serverList':
        this.#applyServerList(event.list, nowMs, effects);
        break;
      case 'headOpened':
        this.#openHead(event.segmentId, event.position, event.openingBytes);
        break;
      case 'sideOpened':
        this.#addSegment(event.segmentId, 'side', event.openingBytes);
        break;
      case 'extended':
        this.#extend(event, nowMs);
        break;
      case 'acked':
      case 'failed':
        this.#finishWrite(event, nowMs, effects);
        break;
      case 'freed':
        this.#segments.get(event.segmentId)?.step({ ...event, kind: 'backupFreed' }, nowMs);
        break;
      case 'rotten':
        this.#loseRotten(event.segmentId, event.serverId, nowMs, effects);
        break;
      case 'recoveryInfoStored':
        this.#storedRecoveryInfo(event.segmentId, event.epoch, nowMs);
        break;
      case 'released':
        this.#release(event.segmentId, effects);
        break;
      case 'tick':
        this.#leaveBackups(nowMs, effects);
        break;
    }
  }

  #followLeaseHolders(): void {
    const holders = this.#findLeaseHolders();
    const before = this.#leaseHolders;
    const same =
      before === holders ||
      (before?.length === holders?.length && before?.every((id, at) => id === holders?.[at]));
    if (!same) this.#leaseHolders = holders;
  }

  #findLeaseHolders(): number[] | null {
    if (this.#heads.length === 0) return [];
    // No backup is fenced when an operator gives up such a log: only the coordinator can vouch.
    if (this.#options.replicas === 0) return null;
    const first = this.#heads[this.#firstOpenHead];
    if (first === undefined) return null;
    const next = this.#heads[this.#firstOpenHead + 1];
    const holders = new Set<number>();
    for (const head of next?.openedOnce === true ? [first, next] : [first]) {
      if (head.segment.recovering || head.segment.unassigned) return null;
      for (const serverId of head.segment.serverIds) holders.add(serverId);
    }
    return [...holders];
  }

  #applyServerList(list: ServerList, nowMs: number, effects: ReplicaManagerEffect[]): void {
    this.#selector.applyServerList(list);
    this.#listVersion = list.version;
    this.#toLeave.clear();
    for (const segment of this.#segments.values()) {
      if (this.#drainingBackupOf(segment) !== undefined) this.#toLeave.add(segment);
      for (const serverId of segment.serverIds) {
        if (this.#selector.isUp(serverId)) continue;
        const before = segment.writesInFlight;
        this.#collect(segment.step({ kind: 'backupLost', serverId }, nowMs), nowMs, effects);
        this.#writesInFlight += segment.writesInFlight - before;
        this.#active.add(segment);
      }
    }
  }

  #addSegment(segmentId: number, kind: 'head' | 'side', openingBytes: number): ReplicatedSegment {
    invariant(!this.#segments.has(segmentId), 'a segment is announced once');
    const segment = new ReplicatedSegment({
      segmentId,
      kind,
      replicas: this.#options.replicas,
      openingBytes,
      source: this.#options.source,
      nextToken: () => ++this.#tokenLast,
    });
    this.#segments.set(segmentId, segment);
    this.#active.add(segment);
    return segment;
  }

  #openHead(segmentId: number, position: number, openingBytes: number): void {
    const last = this.#heads.at(-1);
    invariant(
      last === undefined || last.segment.segmentId < segmentId,
      'heads are announced in the order of their ids',
    );
    const segment = this.#addSegment(segmentId, 'head', openingBytes);
    this.#heads.push({ segment, position, openedOnce: false });
  }

  #extend(event: Extract<ReplicaManagerEvent, { kind: 'extended' }>, nowMs: number): void {
    const segment = this.#segments.get(event.segmentId);
    invariant(segment !== undefined, 'only an announced segment grows');
    segment.step(
      { kind: 'extended', appendedBytes: event.appendedBytes, closed: event.closed },
      nowMs,
    );
    this.#active.add(segment);
  }

  #finishWrite(
    event: Extract<ReplicaManagerEvent, { kind: 'acked' | 'failed' }>,
    nowMs: number,
    effects: ReplicaManagerEffect[],
  ): void {
    const { segmentId, serverId, replicaIndex, token } = event.write;
    if (event.kind === 'acked') {
      if (event.load !== undefined) this.#selector.noteLoad(serverId, event.load, nowMs);
    } else if (event.diskFailed === true) {
      this.#selector.noteDiskFailed(serverId);
    }
    const segment = this.#segments.get(segmentId);
    // The segment was released while the write was under way.
    if (segment === undefined) return;
    const before = segment.writesInFlight;
    const result = segment.step(
      event.kind === 'acked'
        ? { kind: 'acked', replicaIndex, token }
        : { kind: 'failed', replicaIndex, token, code: event.code },
      nowMs,
    );
    this.#writesInFlight += segment.writesInFlight - before;
    if (result.some(({ kind }) => kind === 'free')) this.#selector.noteFailed(serverId, nowMs);
    this.#collect(result, nowMs, effects);
    this.#active.add(segment);
  }

  /** Of a segment that left the log, or that has no replica there, it is freed all the same. */
  #loseRotten(
    segmentId: number,
    serverId: number,
    nowMs: number,
    effects: ReplicaManagerEffect[],
  ): void {
    const segment = this.#segments.get(segmentId);
    if (segment === undefined) {
      effects.push({ kind: 'free', segmentId, serverId });
      return;
    }
    const before = segment.writesInFlight;
    this.#collect(segment.step({ kind: 'replicaRotten', serverId }, nowMs), nowMs, effects);
    this.#writesInFlight += segment.writesInFlight - before;
    this.#active.add(segment);
  }

  #storedRecoveryInfo(segmentId: number, epoch: number, nowMs: number): void {
    const segment = this.#segments.get(segmentId);
    if (segment === undefined) return;
    segment.step({ kind: 'recoveryInfoStored', epoch }, nowMs);
    this.#active.add(segment);
  }

  #release(segmentId: number, effects: ReplicaManagerEffect[]): void {
    const segment = this.#segments.get(segmentId);
    if (segment === undefined) return;
    invariant(
      segment.kind === 'side' || segment.closeCommitted,
      'a head is closed on all its backups before a later digest can be durable',
    );
    this.#writesInFlight -= segment.writesInFlight;
    for (const serverId of new Set([...segment.serverIds, ...segment.leavingServerIds])) {
      effects.push({ kind: 'free', segmentId, serverId });
    }
    this.#segments.delete(segmentId);
    this.#toLeave.delete(segment);
    this.#active.delete(segment);
  }

  /** Lets all active segments do what they can: heads first, oldest first. */
  #pump(nowMs: number, effects: ReplicaManagerEffect[]): void {
    this.#starvedHead = null;
    for (let index = this.#firstOpenHead; index < this.#heads.length; index += 1) {
      const head = this.#heads[index];
      invariant(head !== undefined, 'index below the number of heads');
      this.#openGates(index, nowMs);
      this.#pumpSegment(head.segment, nowMs, effects);
      if (head.segment.unassigned) this.#starvedHead = head.segment;
      if (head.segment.closeCommitted && index === this.#firstOpenHead) this.#firstOpenHead += 1;
    }
    for (const segment of this.#active) {
      // Heads that are still open had their turn above; what is left are sides and re-replication.
      if (segment.kind === 'head' && !segment.closeCommitted) continue;
      this.#pumpSegment(segment, nowMs, effects);
      if (segment.synced) this.#active.delete(segment);
    }
    // Heads that are closed everywhere leave the list: all but the newest, which is a gate.
    if (this.#firstOpenHead > 1) {
      this.#heads.splice(0, this.#firstOpenHead - 1);
      this.#firstOpenHead = 1;
    }
  }

  #openGates(index: number, nowMs: number): void {
    const segment = this.#heads[index]?.segment;
    const preceding = this.#heads[index - 1]?.segment;
    const following = this.#heads[index + 1];
    invariant(segment !== undefined, 'index below the number of heads');
    const opened = (s: ReplicatedSegment): boolean => s.closeCommitted || s.openCommitted;
    const value = preceding === undefined || opened(preceding);
    segment.step({ kind: 'precedingOpenCommitted', value }, nowMs);
    if (preceding === undefined || preceding.closeCommitted) {
      segment.step({ kind: 'precedingCloseCommitted' }, nowMs);
    }
    const followed = following !== undefined && opened(following.segment);
    if (followed) following.openedOnce = true;
    segment.step({ kind: 'followingOpenCommitted', value: followed }, nowMs);
  }

  #pumpSegment(segment: ReplicatedSegment, nowMs: number, effects: ReplicaManagerEffect[]): void {
    const inFlightMax = this.#options.writesInFlightMax ?? writesInFlightMaxDefault;
    const isOpenHead = segment.kind === 'head' && !segment.closeCommitted;
    const budgetMax = isOpenHead ? inFlightMax : Math.ceil(inFlightMax * backgroundShare);
    // Twice: the first pass may only place replicas, which can then be written to.
    for (let pass = 0; pass < 2; pass += 1) {
      const results = segment.pump(nowMs, budgetMax - this.#writesInFlight);
      if (!this.#collect(results, nowMs, effects)) return;
    }
  }

  /** Returns true if a replica was placed. */
  #collect(
    results: readonly SegmentEffect[],
    nowMs: number,
    effects: ReplicaManagerEffect[],
  ): boolean {
    let placed = false;
    for (const effect of results) {
      switch (effect.kind) {
        case 'chooseBackup':
          placed = this.#place(effect.segmentId, effect.replicaIndex, nowMs) || placed;
          break;
        case 'backupFull':
          this.#selector.noteFull(effect.serverId, nowMs);
          break;
        case 'send':
          this.#writesInFlight += 1;
          effects.push(effect);
          break;
        default:
          effects.push(effect);
      }
    }
    return placed;
  }

  #place(segmentId: number, replicaIndex: number, nowMs: number): boolean {
    const segment = this.#segments.get(segmentId);
    invariant(segment !== undefined, 'a replica is placed for a known segment');
    const serverId = this.#selector.choose(segment.serverIds, segment.excludedServerIds, nowMs);
    if (serverId === null) return false;
    segment.step({ kind: 'assigned', replicaIndex, serverId }, nowMs);
    if (this.#selector.isDraining(serverId)) this.#toLeave.add(segment);
    return true;
  }

  #drainingBackupOf({ serverIds }: ReplicatedSegment): number | undefined {
    return serverIds.find((serverId) => this.#selector.isDraining(serverId));
  }

  /**
   * Moves replicas of closed segments away from backups that are being drained, a few at a time; a
   * head is closed for it. What can go nowhere else stays, and is tried again.
   */
  #leaveBackups(nowMs: number, effects: ReplicaManagerEffect[]): void {
    let leaving = 0;
    for (const segment of this.#active) leaving += segment.leavingServerIds.size > 0 ? 1 : 0;
    let tries = 0;
    for (const segment of [...this.#toLeave]) {
      if (leaving >= leavingMax || tries >= leavingTriesMax) break;
      const serverId = this.#drainingBackupOf(segment);
      if (serverId === undefined) this.#toLeave.delete(segment);
      if (serverId === undefined || !segment.synced) continue;
      tries += 1;
      leaving += this.#leave(segment, serverId, nowMs) ? 1 : 0;
    }
    const head = this.#heads.at(-1)?.segment;
    if (head === undefined || head.closed || !head.openCommitted) return;
    if (this.#drainingBackupOf(head) === undefined || !this.#selector.canLeave(nowMs)) return;
    effects.push({ kind: 'rollHead', segmentId: head.segmentId });
  }

  /** False: no other backup can have it; others are looked at first the next time. */
  #leave(segment: ReplicatedSegment, serverId: number, nowMs: number): boolean {
    const { excludedServerIds, serverIds } = segment;
    const replicaIndex = serverIds.indexOf(serverId);
    const others = serverIds.filter((each) => each !== serverId);
    const excluded = new Set([...excludedServerIds, serverId]);
    const next = this.#selector.chooseStaying(others, excluded, nowMs);
    this.#toLeave.delete(segment);
    if (next === null) {
      this.#toLeave.add(segment);
      return false;
    }
    segment.step({ kind: 'backupLeaves', serverId }, nowMs);
    segment.step({ kind: 'assigned', replicaIndex, serverId: next }, nowMs);
    this.#active.add(segment);
    if (this.#drainingBackupOf(segment) !== undefined) this.#toLeave.add(segment);
    return true;
  }

  #advanceDurablePosition(): void {
    for (let index = Math.max(0, this.#firstOpenHead - 1); index < this.#heads.length; index += 1) {
      const head = this.#heads[index];
      invariant(head !== undefined, 'index below the number of heads');
      const reached = head.position + head.segment.durableBytes;
      if (head.segment.durableBytes > 0 && reached > this.#durablePosition) {
        this.#durablePosition = reached;
      }
      if (!head.segment.closeCommitted) return;
    }
  }
}

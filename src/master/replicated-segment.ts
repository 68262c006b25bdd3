/**
 * One segment of a master's log on its R backups, as a pure state machine.
 *
 * Keeps the ordering of docs/formats.md §2 between segments: the opening of s+1 is on all backups
 * before a close of s is sent, and nothing beyond the opening of s+1 is sent before s is closed on
 * all of its own (originals: I1-I4). At most one write per replica is under way. Loss of a replica
 * that may still be open starts a new epoch, and nothing of the segment counts as durable until
 * every replica holds the segment in that epoch *and* the coordinator forbids the older ones.
 *
 * A segment is pinned in the core's memory until it is closed on all R; then the core may compact
 * it, and a replica that is lost later is written from what the segment is by then: from its first
 * byte, from one content, since reading that byte pins the segment again. So replicas of a segment
 * may differ in bytes, but each is whole.
 *
 * Choosing backups, sending and timers are the ReplicaManager's and its runtime's.
 */
import { invariant } from '../rpc/errors.js';
import type { StatusCode } from '../rpc/status.js';

/** Largest number of segment bytes in one BACKUP_WRITE. */
export const writeBytesMax = 1024 * 1024;
/**
 * Fewer bytes of a head wait until all its replicas have acknowledged the write before, so that
 * one group serves all R and what comes meanwhile is the next one. Nothing becomes durable later
 * for it: the slowest replica decides anyway. More bytes do not wait: each link is kept busy.
 */
export const groupBytesMax = 64 * 1024;
/**
 * How long a group waits for more if others wrote while the last one was under way, and it is still
 * smaller than that one: then clients come at their own pace, and what is halved is the number of
 * messages. Who writes alone never waits.
 */
export const groupWaitMs = 1;
/** A timer may run so much early. */
const timerSlackMs = 0.5;
const waitsInVainMax = 6;
const resendDelayMs = 50;
const resendDelayMsMax = 1_000;

/** Reads the next certified piece; must not change anything that a caller can see. */
export type ChunkSource = (
  segmentId: number,
  from: number,
  bytesMax: number,
) => { end: number; checksum: number; segmentBytes: number };

export interface SegmentWrite {
  segmentId: number;
  replicaIndex: number;
  serverId: number;
  token: number;
  epoch: number;
  offset: number;
  end: number;
  checksum: number;
  open: boolean;
  close: boolean;
  certified: boolean;
}

export type SegmentEvent =
  | { kind: 'extended'; appendedBytes: number; closed: boolean }
  | { kind: 'assigned'; replicaIndex: number; serverId: number }
  | { kind: 'acked'; replicaIndex: number; token: number }
  | { kind: 'failed'; replicaIndex: number; token: number; code: StatusCode }
  | { kind: 'backupLost'; serverId: number }
  /** The backup lives, its replica is good, but another one is to have it. */
  | { kind: 'backupLeaves'; serverId: number }
  /** The backup lives but its replica is worth nothing. */
  | { kind: 'replicaRotten'; serverId: number }
  /** A backup that lost the segment has forgotten what it held of it. */
  | { kind: 'backupFreed'; serverId: number }
  | { kind: 'precedingOpenCommitted'; value: boolean }
  | { kind: 'precedingCloseCommitted' }
  | { kind: 'followingOpenCommitted'; value: boolean }
  | { kind: 'recoveryInfoStored'; epoch: number };

export type SegmentEffect =
  | { kind: 'chooseBackup'; segmentId: number; replicaIndex: number }
  | { kind: 'send'; write: SegmentWrite }
  | { kind: 'storeRecoveryInfo'; segmentId: number; epoch: number }
  /** The backup lives but its replica is given up. */
  | { kind: 'free'; segmentId: number; serverId: number }
  /** The backup has no frame for us at present. */
  | { kind: 'backupFull'; serverId: number }
  /** No replica is being written any more: the core may compact the segment. */
  | { kind: 'unpin'; segmentId: number }
  /** A group waits for more: pump again after this long. */
  | { kind: 'wait'; ms: number }
  /** A backup does not take us for a member. */
  | { kind: 'verifyMembership'; code: StatusCode };

/** `certifiedBytes <= ackedBytes <= appendedBytes`; `closed` implies all three equal. */
interface Replica {
  serverId: number | null;
  /** A write has been sent: the backup may hold something, whatever it answered. */
  touched: boolean;
  opened: boolean;
  ackedBytes: number;
  /** Of [0, ackedBytes). */
  ackedChecksum: number;
  certifiedBytes: number;
  epochCertified: number;
  /** A close was sent: it is only ever repeated, since it may have arrived. */
  closeSent: boolean;
  closed: boolean;
  /**
   * A replacement stays invisible (no certificate) up to here, lest a short copy be taken for
   * the segment. 0 for a first replica.
   */
  certifyFromBytes: number;
  inFlight: SegmentWrite | null;
  failuresInRow: number;
  sendNotBeforeMs: number;
}

function newReplica(certifyFromBytes: number): Replica {
  return {
    serverId: null,
    touched: false,
    opened: false,
    ackedBytes: 0,
    ackedChecksum: 0,
    certifiedBytes: 0,
    epochCertified: -1,
    closeSent: false,
    closed: false,
    certifyFromBytes,
    inFlight: null,
    failuresInRow: 0,
    sendNotBeforeMs: 0,
  };
}

/** Outcomes after which the same write goes to the same backup again. */
const resendCodes: ReadonlySet<StatusCode> = new Set<StatusCode>([
  'TIMEOUT',
  'CONNECTION_LOST',
  'SHUTTING_DOWN',
  'RETRY',
  'WRONG_SERVER',
  'ABORTED',
  'CALLER_NOT_IN_CLUSTER',
  'FENCED',
]);

export interface ReplicatedSegmentOptions {
  segmentId: number;
  kind: 'head' | 'side';
  replicas: number;
  openingBytes: number;
  source: ChunkSource;
  /** Gives tokens that are unique among all segments of the manager. */
  nextToken: () => number;
}

export class ReplicatedSegment {
  readonly segmentId: number;
  readonly kind: 'head' | 'side';
  readonly openingBytes: number;
  /**
   * Backups that lost this segment and have not answered yet that they have forgotten it: a write
   * could continue the stale copy there.
   */
  readonly excludedServerIds = new Set<number>();
  /** Backups that are left: theirs are freed as soon as R others are closed again. */
  readonly leavingServerIds = new Set<number>();
  /** A replica that may have been open, with a certificate, was lost at some time. */
  lostOpenReplica = false;
  epoch = 0;
  /** What the log counts; a compaction does not change it. */
  appendedBytes: number;
  closed = false;

  readonly #replicas: Replica[];
  readonly #source: ChunkSource;
  readonly #nextToken: () => number;
  #precedingOpenCommitted: boolean;
  #precedingCloseCommitted: boolean;
  #followingOpenCommitted = false;
  #closeCommitted = false;
  /** Set from the loss of an open replica until the coordinator has stored (id, epoch). */
  #recovering = false;
  #recoverTargetBytes = 0;
  #epochBeingStored = -1;
  /** Bytes of a complete replica that is written now: fewer than appended after a compaction. */
  #contentBytes: number;
  /** Of the last group, and until when a smaller one waits. */
  #groupBytes = 0;
  #groupWaitsUntilMs = Number.NEGATIVE_INFINITY;
  /** What there was to send when the wait began. */
  #groupWaitsFromBytes = 0;
  /** Waits in a row in which nothing came: who wrote more before does not write now. */
  #waitsInVain = 0;
  #waitsToSkip = 0;
  #pinned = true;

  constructor(options: ReplicatedSegmentOptions) {
    invariant(options.replicas >= 0, 'the replication factor is not negative');
    this.segmentId = options.segmentId;
    this.kind = options.kind;
    this.openingBytes = options.openingBytes;
    this.appendedBytes = options.openingBytes;
    this.#contentBytes = options.openingBytes;
    this.#source = options.source;
    this.#nextToken = options.nextToken;
    this.#replicas = Array.from({ length: options.replicas }, () => newReplica(0));
    this.#precedingOpenCommitted = options.kind === 'side';
    this.#precedingCloseCommitted = options.kind === 'side';
  }

  /** The opening is certified on all R. Turns false again while a lost replica is replaced. */
  get openCommitted(): boolean {
    return this.#replicas.every((r) => r.opened && r.certifiedBytes >= this.openingBytes);
  }

  /** All R were closed, and no older open copy can be mistaken for the segment. Never undone. */
  get closeCommitted(): boolean {
    return this.#closeCommitted;
  }

  get recovering(): boolean {
    return this.#recovering;
  }

  /** Bytes that are on all R and may be relied on. Not monotone; the manager's position is. */
  get durableBytes(): number {
    if (this.#closeCommitted) return this.appendedBytes;
    if (this.#recovering || !this.#precedingCloseCommitted) return 0;
    let bytes = this.appendedBytes;
    for (const replica of this.#replicas) bytes = Math.min(bytes, replica.certifiedBytes);
    return bytes;
  }

  /** What backups may hold at present; nothing behind it can have been acknowledged. */
  get #limitBytes(): number {
    return this.#precedingCloseCommitted ? this.#contentBytes : this.openingBytes;
  }

  /** Closed on R backups right now: nothing is left to do until a backup is lost. */
  get synced(): boolean {
    return this.#closeCommitted && this.#replicas.every((r) => r.closed);
  }

  get serverIds(): number[] {
    return this.#replicas.flatMap((r) => (r.serverId === null ? [] : [r.serverId]));
  }

  get unassigned(): boolean {
    return this.#replicas.some((r) => r.serverId === null);
  }

  get writesInFlight(): number {
    return this.#replicas.reduce((n, r) => n + (r.inFlight === null ? 0 : 1), 0);
  }

  /** Applies an event. Sends are pulled by `pump`, so that the owner can bound them. */
  step(event: SegmentEvent, nowMs: number): SegmentEffect[] {
    switch (event.kind) {
      case 'extended':
        this.#extend(event.appendedBytes, event.closed);
        return [];
      case 'assigned':
        this.#assign(event.replicaIndex, event.serverId);
        return [];
      case 'acked':
        this.#ack(event.replicaIndex, event.token);
        this.#endGroup(nowMs);
        return [];
      case 'failed':
        return this.#fail(event.replicaIndex, event.token, event.code, nowMs);
      case 'backupLost':
        this.#replicas.forEach((replica, index) => {
          if (replica.serverId === event.serverId) this.#loseReplica(index);
        });
        return [];
      case 'backupLeaves':
        this.#leave(event.serverId);
        return [];
      case 'replicaRotten': {
        this.leavingServerIds.delete(event.serverId);
        const index = this.#replicas.findIndex((r) => r.serverId === event.serverId);
        if (index >= 0) this.#loseReplica(index);
        return [{ kind: 'free', segmentId: this.segmentId, serverId: event.serverId }];
      }
      case 'backupFreed':
        this.excludedServerIds.delete(event.serverId);
        return [];
      case 'precedingOpenCommitted':
        if (this.kind === 'head') this.#precedingOpenCommitted = event.value;
        return [];
      case 'precedingCloseCommitted':
        this.#precedingCloseCommitted = true;
        this.#updateCloseCommitted();
        return [];
      case 'followingOpenCommitted':
        this.#followingOpenCommitted = event.value;
        return [];
      case 'recoveryInfoStored':
        if (event.epoch === this.epoch) this.#recovering = false;
        this.#updateCloseCommitted();
        return [];
    }
  }

  /** What can be done now, with at most `budget` sends. */
  pump(nowMs: number, budget: number): SegmentEffect[] {
    const effects: SegmentEffect[] = [];
    this.#replicas.forEach((replica, index) => {
      if (replica.serverId === null) {
        effects.push({ kind: 'chooseBackup', segmentId: this.segmentId, replicaIndex: index });
        return;
      }
      if (budget <= 0 || replica.inFlight !== null || nowMs < replica.sendNotBeforeMs) return;
      const write = this.#nextWrite(replica, replica.serverId, index, nowMs);
      if (write === null) return;
      replica.inFlight = write;
      replica.touched = true;
      replica.closeSent ||= write.close;
      budget -= 1;
      effects.push({ kind: 'send', write });
    });
    if (nowMs < this.#groupWaitsUntilMs) {
      effects.push({ kind: 'wait', ms: this.#groupWaitsUntilMs - nowMs });
    }
    if (this.#mustStoreRecoveryInfo()) {
      this.#epochBeingStored = this.epoch;
      effects.push({ kind: 'storeRecoveryInfo', segmentId: this.segmentId, epoch: this.epoch });
    }
    if (this.#pinned && this.synced) {
      this.#pinned = false;
      effects.push({ kind: 'unpin', segmentId: this.segmentId });
    }
    if (this.leavingServerIds.size > 0 && this.synced) {
      for (const serverId of this.leavingServerIds) {
        effects.push({ kind: 'free', segmentId: this.segmentId, serverId });
      }
      this.leavingServerIds.clear();
    }
    return effects;
  }

  #extend(appendedBytes: number, closed: boolean): void {
    invariant(appendedBytes >= this.appendedBytes, 'a segment only grows');
    invariant(!this.closed || (closed && appendedBytes === this.appendedBytes), 'closed is final');
    if (!this.closed) this.#contentBytes = appendedBytes;
    this.appendedBytes = appendedBytes;
    this.closed = closed;
    this.#updateCloseCommitted();
  }

  #assign(replicaIndex: number, serverId: number): void {
    const replica = this.#replica(replicaIndex);
    invariant(replica.serverId === null, 'a replica has one backup');
    invariant(!this.serverIds.includes(serverId), 'replicas of a segment are on distinct backups');
    replica.serverId = serverId;
  }

  #ack(replicaIndex: number, token: number): void {
    const replica = this.#replica(replicaIndex);
    const write = replica.inFlight;
    // An answer to a write of a replica that was given up meanwhile means nothing.
    if (write === null || write.token !== token) return;
    replica.inFlight = null;
    replica.failuresInRow = 0;
    replica.opened = true;
    invariant(write.end >= replica.ackedBytes, 'a replica only grows');
    replica.ackedBytes = write.end;
    replica.ackedChecksum = write.checksum;
    if (write.certified) {
      replica.certifiedBytes = Math.max(replica.certifiedBytes, write.end);
      replica.epochCertified = Math.max(replica.epochCertified, write.epoch);
    }
    if (write.close) replica.closed = true;
    this.#updateCloseCommitted();
  }

  #fail(replicaIndex: number, token: number, code: StatusCode, nowMs: number): SegmentEffect[] {
    const replica = this.#replica(replicaIndex);
    const write = replica.inFlight;
    if (write === null || write.token !== token) return [];
    if (code === 'REPLICA_CLOSED' && write.close) {
      // An earlier close of ours arrived although its answer did not: it carried all bytes.
      this.#ack(replicaIndex, token);
      return [];
    }
    replica.inFlight = null;
    if (resendCodes.has(code)) {
      replica.failuresInRow += 1;
      const delayMs = resendDelayMs * 2 ** Math.min(replica.failuresInRow - 1, 6);
      replica.sendNotBeforeMs = nowMs + Math.min(delayMs, resendDelayMsMax);
      const doubted = code === 'CALLER_NOT_IN_CLUSTER' || code === 'FENCED';
      return doubted ? [{ kind: 'verifyMembership', code }] : [];
    }
    const { serverId } = write;
    if (code === 'NO_FREE_FRAME' && write.open && replica.failuresInRow === 0) {
      // A definite no to the only attempt: nothing of the segment can be there.
      this.#replicas[replicaIndex] = newReplica(replica.certifyFromBytes);
      return [{ kind: 'backupFull', serverId }];
    }
    this.#loseReplica(replicaIndex);
    return [{ kind: 'free', segmentId: this.segmentId, serverId }];
  }

  /**
   * Its copy stays whole until it is freed, and a recovery may read it; it is only not counted.
   * A segment that is not closed everywhere has no such copy.
   */
  #leave(serverId: number): void {
    invariant(this.synced, 'only a segment that is closed on R backups leaves one');
    const index = this.#replicas.findIndex((replica) => replica.serverId === serverId);
    this.#loseReplica(index);
    this.leavingServerIds.add(serverId);
  }

  #loseReplica(replicaIndex: number): void {
    const replica = this.#replica(replicaIndex);
    invariant(replica.serverId !== null, 'only a placed replica can be lost');
    this.excludedServerIds.add(replica.serverId);
    this.#replicas[replicaIndex] = newReplica(
      replica.touched ? this.#limitBytes : replica.certifyFromBytes,
    );
    // The copy of a segment that was closed everywhere has no certificate before it is closed.
    if (replica.closed || !replica.touched || this.#closeCommitted) return;
    this.lostOpenReplica = true;
    if (this.kind === 'side') return;
    this.epoch += 1;
    this.#recovering = true;
    this.#recoverTargetBytes = this.#limitBytes;
  }

  #nextWrite(
    replica: Replica,
    serverId: number,
    replicaIndex: number,
    nowMs: number,
  ): SegmentWrite | null {
    if (replica.closed) return null;
    const write = {
      segmentId: this.segmentId,
      replicaIndex,
      serverId,
      token: 0,
      epoch: this.epoch,
      offset: replica.ackedBytes,
      end: 0,
      checksum: 0,
      open: !replica.opened,
      close: false,
      certified: false,
    };
    if (!replica.opened) {
      if (!this.#precedingOpenCommitted) return null;
      if (replica.certifyFromBytes > 0) return { ...write, token: this.#nextToken() };
    }
    const bytesLeft = this.#limitBytes - replica.ackedBytes;
    invariant(bytesLeft >= 0, 'no more is acknowledged than may be sent');
    const mayClose =
      this.closed &&
      this.#precedingCloseCommitted &&
      (this.kind === 'side' ||
        this.#closeCommitted ||
        this.#followingOpenCommitted ||
        replica.closeSent);
    const epochStale = replica.opened && replica.epochCertified < this.epoch;
    if (bytesLeft === 0 && !mayClose && !epochStale) return null;
    const urgent = mayClose || epochStale || bytesLeft >= groupBytesMax;
    if (!urgent && (this.#isAhead(replica) || this.#groupWaits(bytesLeft, nowMs))) return null;
    // Nobody waits for a side before it is closed: few large writes instead of many small ones.
    if (this.kind === 'side' && !this.closed && bytesLeft < writeBytesMax) return null;
    // A head that waits for its predecessor ends at its opening: `from` 0 ends there by contract.
    const bytesMax = Math.min(bytesLeft, writeBytesMax);
    const { end, checksum } =
      bytesLeft === 0
        ? { end: replica.ackedBytes, checksum: replica.ackedChecksum }
        : this.#read(replica, bytesMax);
    const close = mayClose && end === this.#contentBytes;
    const certified = end >= replica.certifyFromBytes;
    if (bytesLeft === 0 && !close && !(epochStale && certified)) return null;
    this.#groupBytes = end - replica.ackedBytes;
    this.#endWait();
    return { ...write, token: this.#nextToken(), end, checksum, close, certified };
  }

  /** Of replicas that it still has: one to a backup that is gone may be under way for longer. */
  get writesUnderWay(): number {
    return this.#replicas.filter(({ inFlight }) => inFlight !== null).length;
  }

  /** Of another replica that has not answered yet. */
  #isAhead({ ackedBytes }: Replica): boolean {
    return this.#replicas.some((r) => r.inFlight !== null && r.ackedBytes < ackedBytes);
  }

  #groupWaits(bytes: number, nowMs: number): boolean {
    return bytes < this.#groupBytes && nowMs < this.#groupWaitsUntilMs - timerSlackMs;
  }

  /** The last answer of a group is there: what others wrote meanwhile may wait for more. */
  #endGroup(nowMs: number): void {
    if (this.kind === 'side' || this.#replicas.some((r) => r.inFlight !== null)) return;
    const behind = this.#replicas.some((r) => r.ackedBytes < this.#limitBytes);
    if (!behind) return;
    if (this.#waitsToSkip > 0) {
      this.#waitsToSkip--;
      return;
    }
    this.#groupWaitsUntilMs = nowMs + groupWaitMs;
    this.#groupWaitsFromBytes = this.#limitBytes;
  }

  /** After one in vain the next ones are left out: twice as many each time. */
  #endWait(): void {
    if (this.#groupWaitsUntilMs === Number.NEGATIVE_INFINITY) return;
    this.#groupWaitsUntilMs = Number.NEGATIVE_INFINITY;
    const inVain = this.#limitBytes === this.#groupWaitsFromBytes;
    this.#waitsInVain = inVain ? Math.min(this.#waitsInVain + 1, waitsInVainMax) : 0;
    this.#waitsToSkip = inVain ? 2 ** this.#waitsInVain : 0;
  }

  #read(replica: Replica, bytesMax: number): { end: number; checksum: number } {
    const from = replica.ackedBytes;
    const { end, checksum, segmentBytes } = this.#source(this.segmentId, from, bytesMax);
    if (from === 0) {
      this.#pinned = true;
      if (this.#closeCommitted) this.#takeContent(replica, segmentBytes);
    }
    invariant(end >= from && end <= this.#limitBytes, 'a chunk keeps within the limit');
    return { end, checksum };
  }

  /** The segment may have been compacted since its replicas were complete. */
  #takeContent(replica: Replica, segmentBytes: number): void {
    const begun = (r: Replica): boolean => r.ackedBytes > 0 || (r.inFlight?.end ?? 0) > 0;
    invariant(
      segmentBytes === this.#contentBytes ||
        (segmentBytes < this.#contentBytes && this.#replicas.every((r) => r.closed || !begun(r))),
      'a pinned segment keeps its content',
    );
    this.#contentBytes = segmentBytes;
    replica.certifyFromBytes = segmentBytes;
  }

  #mustStoreRecoveryInfo(): boolean {
    return (
      this.#recovering &&
      this.#epochBeingStored < this.epoch &&
      // Else open replicas of the predecessor, still needed, would be forbidden as well.
      this.#precedingCloseCommitted &&
      this.#replicas.every(
        (r) =>
          r.closed ||
          (r.epochCertified === this.epoch && r.certifiedBytes >= this.#recoverTargetBytes),
      )
    );
  }

  #updateCloseCommitted(): void {
    if (this.#closeCommitted || !this.closed || this.#recovering) return;
    const allClosed = this.#replicas.every((r) => r.closed);
    // With no replicas (R = 0) nothing is sent, but the order between segments still holds.
    this.#closeCommitted = allClosed && this.#precedingCloseCommitted;
  }

  #replica(replicaIndex: number): Replica {
    const replica = this.#replicas[replicaIndex];
    invariant(replica !== undefined, 'replica index below R');
    return replica;
  }
}

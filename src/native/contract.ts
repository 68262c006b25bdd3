/**
 * What the addon offers, as TypeScript sees it. `native/node` implements exactly this; nothing but
 * `src/native` imports the addon.
 *
 * Rules of the border: one call per message; ids, positions and versions are numbers below 2^53;
 * errors are `Error`s whose `code` is a decimal status number (`src/rpc/status.ts`); a `results`
 * array is filled by the callee so that a hot call allocates nothing.
 */
import type { RecoveryTablet, SlotRange, TabletStats } from '../rpc/messages.js';

export interface MasterOptions {
  serverId: number;
  /** Log memory, a multiple of 8 MiB, at least 64 MiB. The hash table is sized from it. */
  memoryBytes: number;
  /** Threads for replay; at least 1. */
  replayThreads: number;
  /**
   * False: there are no backups. Everything counts as durable once it is appended, and the cleaner
   * commits its passes by itself.
   */
  replicated: boolean;
  /**
   * Segments that the log may have on backups, as a multiple of those that fit into memory; at
   * least 1. Compaction frees memory but no replica, so the log may have more than memory holds.
   */
  diskExpansionFactor: number;
}

/** All live entries of `cleaned` are in `survivors` too: closed segments that no digest names. */
export interface CleaningPass {
  passId: number;
  survivors: number[];
  cleaned: number[];
}

/**
 * Positions: the log counts all bytes ever appended through its heads; an entry is durable when
 * the durable position has reached its end. Side segments have no positions.
 */
export interface MasterCore {
  /**
   * Makes the master own a tablet. Identical ownership is OK, an overlap `INVALID_ARGUMENT`;
   * `RETRY` until what a dropped tablet has left there is gone.
   */
  takeTablet(range: SlotRange): void;
  /**
   * Forgets the tablets that a range is made of, and their objects; none is OK. Nothing of them is
   * served when it returns; the promise is for the objects. Rejects with `RETRY` while an earlier
   * call is not through.
   */
  dropTablet(range: SlotRange): Promise<void>;
  /**
   * `ctimeSegmentId` of the tablet that would come of those that make up a range. Throws `RETRY`
   * if they cannot be one at present, `INVALID_ARGUMENT` if the range is not made of them.
   */
  mergedCtime(range: SlotRange): number;
  /** Makes one of them; one that is one already is OK. `RETRY` as above, and if it is busy. */
  mergeTablets(range: SlotRange): void;
  /**
   * Makes two of a tablet: the upper one begins at `slot`. Reads and writes go on while the objects
   * of each are counted. OK if the range is cut there already. Rejects with `RETRY` while another
   * is split, or this one is not served or is given away.
   */
  splitTablet(range: SlotRange, slot: number): Promise<void>;
  tablets(): TabletStats[];
  /**
   * The log says from now on that `key` is `value`; an empty value: nothing of `key`. Each head
   * repeats all notes. In force where the log is durable up to `appendedPosition`.
   */
  note(key: string, value: string): void;

  /**
   * Executes one EXECUTE body (docs/formats.md §3) and writes the reply body to `reply`.
   * results[0] = bytes of the reply; results[1] = position that must be durable before the reply
   * may leave (0: at once); results[2] = `bootTimeMs` when all was read. Throws
   * `MALFORMED_REQUEST` if the body as a whole cannot be parsed; then nothing was executed.
   * Operations that find no room in `reply` answer RETRY.
   */
  execute(body: Uint8Array, reply: Uint8Array, nowMs: number, results: Float64Array): void;
  /**
   * True if the EXECUTE body holds reads only; executes nothing. False for a body that cannot be
   * parsed.
   */
  isReadOnly(body: Uint8Array): boolean;

  /** Opens the first head; idempotent. */
  openLog(): void;
  /** Closes the head and opens the next. Returns the new head's segment id. */
  rollHead(): number;
  /** Ids of head segments opened after `segmentId` (0: all), ascending. */
  headsAfter(segmentId: number): number[];
  /**
   * results: [0] appended bytes, [1] 1 if nothing will be appended any more, [2] position of its
   * first byte, [3] bytes of its opening.
   */
  segmentState(segmentId: number, results: Float64Array): void;
  /**
   * The next piece to replicate from offset `from`: results[0] = its end (an end of an atomic
   * append, at most `bytesMax` further where possible), results[1] = checksum of [0, end),
   * results[2] = bytes of the segment as it is now: of a closed one its final length, until a
   * compaction makes it shorter. `from` = 0 ends at the end of the opening, and pins the segment:
   * it stays what it is until the next `unpinSegment`.
   */
  chunk(segmentId: number, from: number, bytesMax: number, results: Float64Array): void;
  /**
   * The bytes [from, end) of the segment, without a copy: one piece of `chunk`, since a compacted
   * segment is not contiguous. Valid until the segment is unpinned or freed.
   */
  segmentBytes(segmentId: number, from: number, end: number): Uint8Array;
  /**
   * Nothing of this segment is being replicated any more: it is closed on all R backups. The core
   * may compact it in memory from now on. Every segment is pinned from its opening.
   */
  unpinSegment(segmentId: number): void;
  /** Position after the newest append. */
  appendedPosition(): number;
  /** Everything below `position` is on all its backups. */
  setDurable(position: number): void;
  /** Segment ids of the log, ascending, as the newest digest lists them. */
  logSegments(): number[];

  /**
   * Called on the JavaScript thread when a pass of the cleaner has moved all live entries. What
   * follows is docs/replication.md §6: `commitCleaning`, then `endCleaning`, in the order of the
   * passes.
   */
  onCleaningPass(callback: (pass: CleaningPass) => void): void;
  /**
   * The survivors are closed on all R backups: from the next head on the digest names them and
   * leaves the cleaned ones out. Returns the position that must be durable before `endCleaning`; 0
   * if that head is not open yet: call again when it is, or with `force` to open it now.
   */
  commitCleaning(passId: number, force: boolean): number;
  /**
   * That position is durable and JavaScript uses no byte of the cleaned segments any more. Their
   * memory is reused as soon as no reader is left.
   */
  endCleaning(passId: number): void;

  /**
   * Prepares tablets (not ready, hence not served) for the replay of one partition. Throws `RETRY`
   * until what a dropped tablet has left there is gone.
   */
  startRecovery(tablets: RecoveryTablet[]): RecoveryCore;
  /** Starts to give a tablet away; `RETRY` while another is on its way. */
  startMigration(tablet: SlotRange): MigrationCore;
  /**
   * Takes over what clients were answered by the former owner of a tablet (the bytes behind the
   * header of `MigrationCore.results`). All of it must be durable here.
   */
  importResults(bytes: Uint8Array, nowMs: number): void;
  /** `memoryShort` is 1 while writes are refused, or about to be, until the cleaner gets on. */
  stats(): Record<string, number>;
  /** Ends worker threads and gives the memory back. Further calls throw. */
  close(): void;
}

export interface RecoveryCore {
  /** First segment of this master's log that can hold entries of the recovered tablets. */
  readonly ctimeSegmentId: number;
  /**
   * Replays one recovery segment on a worker thread; `bytes` must not change until then. Any
   * order, any number at a time. Rejects with `CHECKSUM_MISMATCH` (nothing of it was applied) or
   * `OUT_OF_MEMORY`.
   */
  replay(bytes: Uint8Array, checksum: number): Promise<{ objects: number; bytes: number }>;
  /** Side segments so far, ascending; `chunk`, `segmentBytes`, `segmentState` work on them. */
  sideSegments(): number[];
  /** Nothing more is replayed: drops dead weight, closes all side segments. */
  finishReplay(): Promise<void>;
  /**
   * Adds the side segments (all replicated) to the log and rolls the head, which must be durable
   * before ownership may be claimed. Returns its position.
   */
  commit(): number;
  /**
   * Undoes `commit`: the next head does not name the side segments. They and their replicas must
   * stay until that head is durable; then `abort` frees them.
   */
  withdraw(): void;
  /** The coordinator has committed the ownership: serve. */
  activate(): void;
  /** Takes everything back; in the end side segments are freed (returns their ids). */
  abort(): Promise<number[]>;
}

/**
 * A tablet that is given away (docs/migration.md). Pieces begin with {u32 length, u32 checksum,
 * u64 next, u64 next offset, u64 left}: a recovery segment of `length` bytes follows, and `next`
 * says where to go on.
 */
export interface MigrationCore {
  /** For `scan`. */
  readonly buckets: number;
  /** Where the first delta starts. */
  readonly markSegmentId: number;
  readonly markOffset: number;
  /** Live objects of the buckets [from, end), or of some of the first; left: buckets. */
  scan(from: number, end: number): Promise<Uint8Array>;
  /**
   * What was appended for the tablet behind a place; earlier places cannot be asked for any more.
   * left: bytes of log; 0 only when writes are refused and nothing follows.
   */
  delta(segmentId: number, offset: number): Promise<Uint8Array>;
  /** Writes of the tablet answer RETRY from now on. */
  freeze(): void;
  /** What clients above this id were answered, some at a time; left: clients. After `freeze`. */
  results(afterClientId: number): Uint8Array;
  /** Nothing of the tablet is served from now on. After `freeze`. */
  release(): void;
  /** The tablet is served again if it is still here; nothing is copied any more. Idempotent. */
  end(): void;
}

export interface BackupOptions {
  directory: string;
  /** Most frames the file may have. */
  framesMax: number;
  /** `fsync`: a write is done when flushed; `replicated`: when it is in memory. */
  durability: 'fsync' | 'replicated';
  flushIntervalMs: number;
  /** Compress closed replicas where it pays. */
  compress: boolean;
  /** Split pieces of dead masters' logs that are kept for recovery masters, at most. */
  pieceCacheBytes: number;
  /** Closed replicas are read again and verified at this rate; 0: never. */
  scrubBytesPerSecond: number;
  /** For tests: `write@N`, `sync@N` (all after N more fail), `read`; empty: none. */
  fault: string;
}

export interface BackupReplica {
  masterId: number;
  segmentId: number;
  epoch: number;
  length: number;
  closed: boolean;
  primary: boolean;
  /** Found on disk at start, written by an earlier process. */
  fromRestart: boolean;
  /** Open, of an earlier process, and bytes that it acknowledged may be missing. */
  doubtful: boolean;
  /** The scrub found that its bytes on disk are not those of its certificate. */
  rotten: boolean;
}

export interface BackupDigest {
  segmentId: number;
  epoch: number;
  segmentIds: number[];
  tabletStats: TabletStats[];
}

/** A piece {u32 length, u32 checksum, bytes} in the core's memory. */
export interface RecoveryPiece {
  /** Its length; 0 once it is taken. */
  readonly bytes: number;
  /** Copies all of it to the start of `target`, once, and lets go of it. */
  take(target: Uint8Array): void;
}

export interface BackupCore {
  /** From the superblock; null for a new directory. */
  identity(): { clusterId: string; serverId: number } | null;
  /** Writes the superblock durably. */
  setIdentity(clusterId: string, serverId: number): Promise<void>;
  replicas(): BackupReplica[];
  /**
   * Takes one BACKUP_WRITE body (docs/formats.md §3); copies what it keeps. Returns 0 when it is
   * queued: `onDone` will get `token`; -1 when it is done already, and `onDone` will not; else a
   * status number, and nothing was changed.
   */
  write(body: Uint8Array, token: number): number;
  /** Called with [token, status, token, status, …] as writes become durable in the chosen mode. */
  onDone(callback: (done: Float64Array) => void): void;
  /**
   * results: [0] free frames (a frame that may still be created counts), [1] queued bytes, [2] 1 if
   * the disk has failed: nothing is written any more, replicas are read as far as they can be.
   */
  load(results: Float64Array): void;
  /**
   * Rejects with `DISK_ERROR` if bytes may be left on disk: all are forgotten here nevertheless,
   * but a restart may find those again.
   */
  free(masterId: number, segmentIds: number[]): Promise<void>;
  /** Durable before it resolves: no write of this master is accepted any more. */
  fence(masterId: number): Promise<void>;
  /** Masters that are fenced, by earlier processes too. */
  fenced(): number[];
  /** Forgets a fence (the master's log is released). */
  unfence(masterId: number): Promise<void>;
  /** Digests found in the replicas of a master's heads that are still open. */
  digests(masterId: number): Promise<BackupDigest[]>;
  /** Starts to read and split the given segments, then keeps the pieces until `endRecovery`. */
  startPartitions(
    recoveryId: number,
    masterId: number,
    partitions: { partitionId: number; tablets: RecoveryTablet[] }[],
    segmentIds: number[],
  ): void;
  /** Split on demand if need be. */
  recoveryData(recoveryId: number, segmentId: number, partitionId: number): Promise<RecoveryPiece>;
  endRecovery(recoveryId: number): void;
  stats(): Record<string, number>;
  /** Flushes, ends the threads. */
  close(): Promise<void>;
}

export interface Addon {
  MasterCore: new (options: MasterOptions) => MasterCore;
  /** Opens or creates the storage; scans all frames. */
  openBackup(options: BackupOptions): Promise<BackupCore>;
  /**
   * Milliseconds since the machine started, with a fraction, suspended time included: the clock of
   * read leases (docs/leases.md).
   */
  bootTimeMs(): number;
  /** CRC-32C in native code. */
  crc32c(bytes: Uint8Array): number;
  /** The key hash as [low, high]. */
  keyHash(tableId: number, key: Uint8Array): [number, number];
}

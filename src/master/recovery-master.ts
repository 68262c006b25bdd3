/**
 * Recovers partitions of crashed masters (phases 4-7 of docs/recovery.md on this side): fetches
 * the pieces from backups, replays them, makes the side segments durable, commits, and asks the
 * coordinator for the ownership. Several recoveries may run at once; the partitions of one take
 * turns until their copies are made, so that the first is served long before the last.
 *
 * Order that matters: what was replayed is in the durable log (`side-log.ts`) before the ownership
 * is claimed; tablets are served only after a definite yes; after a no it leaves the log again.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { MasterCore, RecoveryCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import type { TabletClaim } from '../ops/log-notes.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';
import { claimOwnership, type OwnershipVerdict } from './ownership-claim.js';
import type { OwnershipNotes } from './ownership-notes.js';
import { type Fetch, RecoveryScoreboard } from './recovery-scoreboard.js';
import type { SideReplication } from './replica-manager-runtime.js';
import type { CoordinatorCaller, ServerDirectory } from './server-directory.js';
import {
  awaitMemory,
  commitSides,
  copySides,
  type SideLogOptions,
  startSides,
  takeBack,
} from './side-log.js';

const fetchesMax = 4;
const notReadyDelayMs = 10;
const unreachableDelayMs = 200;
/** A fetch is slow, and another backup is asked too, after so many times the usual, at least … */
const hedgeFactor = 4;
const hedgeMsMin = 250;
/** How long a piece waits for the cleaner to make room. */
const memoryWaitMs = 5_000;
/** A backup that says "not ready" for so long does not get on. */
const stalledMs = 60_000;
const recoveriesMax = 64;
const pieceHeaderBytes = 8;

type RecoverRequest = RequestOf<'RECOVER'>;
type Finished = RequestOf<'RECOVERY_MASTER_FINISHED'>;

export interface RecoveryMasterOptions {
  serverId: number;
  notes: OwnershipNotes;
  core: Pick<MasterCore, 'startRecovery' | 'rollHead' | 'appendedPosition' | 'openLog' | 'stats'>;
  replication: SideReplication;
  servers: ServerDirectory;
  coordinator: CoordinatorCaller;
  log: Log;
}

interface Figures {
  objects: number;
  bytes: number;
  readMs: number;
  replayMs: number;
  durableMs: number;
}

interface Task {
  request: RecoverRequest;
  startedMs: number;
  cancelled: boolean;
  finished: Promise<void>;
}

/** What the workers of one replay share. */
interface Replay {
  scoreboard: RecoveryScoreboard;
  figures: Figures;
  sideLog: SideLogOptions;
  progressMs: number;
  /** The cleaner has been waited for in vain. */
  roomAwaited: boolean;
  failure: RekindleError | null;
  /** Fetches under way, to be given up: `segmentId/serverId`. */
  aborts: Map<string, AbortController>;
  /** Of the fetches that delivered. */
  fetchMs: number;
  fetches: number;
}

/**
 * The memory of one piece at a time, used again for the next: a recovery moves gigabytes, and
 * each fresh buffer would cost the kernel its clearing and the garbage collector its freeing.
 */
class PieceMemory {
  #bytes = new Uint8Array(0);

  take(bytes: number): Uint8Array {
    if (this.#bytes.length < bytes) this.#bytes = new Uint8Array(bytes + bytes / 4);
    return this.#bytes.subarray(0, bytes);
  }
}

export class RecoveryMaster {
  readonly #options: RecoveryMasterOptions;
  /** By `recoveryId/partitionId`: the newest generation only. */
  readonly #tasks = new Map<string, Task>();
  /** By recovery: ends when the last one in the queue ends. */
  readonly #turns = new Map<number, Promise<void>>();
  #stopped = false;

  constructor(options: RecoveryMasterOptions) {
    this.#options = options;
  }

  get running(): number {
    return this.#tasks.size;
  }

  /** Answers at once; the outcome goes to the coordinator. A repeated request is no new one. */
  start(request: RecoverRequest): void {
    const key = `${request.recoveryId}/${request.partition.partitionId}`;
    const older = this.#tasks.get(key);
    if (older !== undefined && older.request.generation >= request.generation) return;
    if (this.#tasks.size >= recoveriesMax) {
      throw new RekindleError('RETRY', 'too many recoveries run here', { retryAfterMs: 500 });
    }
    // Older generations and recoveries that hold these tablets are void, and must have let go of
    // them, with all that they had replayed, before anything of the tablets comes here again.
    const holding = [...this.#tasks.values()].filter((other) => overlaps(other.request, request));
    if (holding.some((other) => other.request.recoveryId > request.recoveryId)) return;
    for (const other of holding) other.cancelled = true;
    const startedMs = performance.now();
    const task: Task = { request, startedMs, cancelled: false, finished: Promise.resolve() };
    this.#tasks.set(key, task);
    task.finished = Promise.all(holding.map(({ finished }) => finished))
      .then(() => this.#run(task))
      .catch((thrown: unknown) => {
        const error = asRekindleError(thrown);
        // The replication was stopped while it still sent segments that are taken back.
        if (error.code === 'SHUTTING_DOWN') return;
        this.#options.log.error({ err: error }, 'a recovery ended abnormally');
      })
      .finally(() => {
        if (this.#tasks.get(key) === task) this.#tasks.delete(key);
      });
  }

  /** Cancels all and waits until they have let go of the core. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all([...this.#tasks.values()].map((task) => task.finished));
  }

  async #run(task: Task): Promise<void> {
    const { core, notes, replication } = this.#options;
    const { recoveryId, partition, crashedServerId } = task.request;
    const log = this.#options.log.with({ recoveryId, partitionId: partition.partitionId });
    const figures: Figures = { objects: 0, bytes: 0, readMs: 0, replayMs: 0, durableMs: 0 };
    const sideLog = this.#sideLog(task, log);
    const endTurn = await this.#awaitTurn(recoveryId);
    let recovery: RecoveryCore;
    try {
      core.openLog();
      recovery = await startSides(core, partition.tablets, sideLog);
    } catch (thrown) {
      const error = asNativeError(thrown);
      log.error({ code: error.code, message: error.message }, 'a recovery cannot start');
      endTurn();
      await this.#report(task, figures, 0, error);
      return;
    }
    log.info({ crashedServerId, segments: task.request.segments.length }, 'recovery started');
    let committed = false;
    let failure: RekindleError | null = null;
    try {
      await this.#replay(task, recovery, figures, sideLog);
      await copySides(recovery, sideLog);
      endTurn();
      await commitSides(recovery, sideLog, () => {
        committed = true;
        // Before the coordinator is asked: when it says yes, the dead master's log may go.
        notes.claim(claimsOf(task.request, recovery.ctimeSegmentId));
      });
      figures.durableMs = performance.now() - task.startedMs;
    } catch (thrown) {
      failure = asNativeError(thrown);
      log.warn({ code: failure.code, message: failure.message }, 'recovery failed');
    } finally {
      endTurn();
    }
    const verdict = await this.#report(task, figures, recovery.ctimeSegmentId, failure);
    // Without a verdict the coordinator may count on the side segments: nothing is taken back.
    if (verdict === 'unknown') return;
    if (verdict === 'owner' && failure === null) {
      recovery.activate();
      replication.scheduleFlush();
      log.info({ ...figures }, 'recovery finished: tablets are served');
      return;
    }
    await takeBack(recovery, sideLog, committed);
    if (failure === null) log.info({}, 'the partition belongs to somebody else: dropped');
  }

  /** Resolves when the partitions of this recovery that came before have ended their turns. */
  async #awaitTurn(recoveryId: number): Promise<() => void> {
    const before = this.#turns.get(recoveryId);
    let end = (): void => undefined;
    const turn = new Promise<void>((resolve) => {
      end = resolve;
    }).then(() => {
      if (this.#turns.get(recoveryId) === turn) this.#turns.delete(recoveryId);
    });
    this.#turns.set(recoveryId, turn);
    await before;
    return end;
  }

  /** Phases 4 and 5. */
  async #replay(
    task: Task,
    recovery: RecoveryCore,
    figures: Figures,
    sideLog: SideLogOptions,
  ): Promise<void> {
    this.#checkWanted(task);
    const replay: Replay = {
      scoreboard: new RecoveryScoreboard(task.request.segments),
      figures,
      sideLog,
      progressMs: performance.now(),
      roomAwaited: false,
      failure: null,
      aborts: new Map(),
      fetchMs: 0,
      fetches: 0,
    };
    // Every worker ends before this does: replay threads must not touch a recovery given up.
    const workers = Array.from({ length: fetchesMax }, () =>
      this.#work(task, replay, recovery).catch((thrown: unknown) => {
        replay.failure ??= asNativeError(thrown);
        for (const abort of replay.aborts.values()) abort.abort();
      }),
    );
    await Promise.all(workers);
    if (replay.failure !== null) throw replay.failure;
  }

  async #work(task: Task, replay: Replay, recovery: RecoveryCore): Promise<void> {
    const { scoreboard, figures } = replay;
    const { startedMs } = task;
    const memory = new PieceMemory();
    while (replay.failure === null) {
      this.#checkWanted(task);
      const nowMs = performance.now();
      const next = scoreboard.next(nowMs, hedgeAfterMs(replay));
      if (next.kind === 'done') return;
      if (next.kind === 'failed') {
        const { segmentId, damagedOn } = next;
        const text = `no replica of segment ${segmentId} can be read`;
        throw new RekindleError('CHECKSUM_MISMATCH', text, {
          details: { segmentId, servers: damagedOn },
        });
      }
      if (next.kind !== 'fetch') {
        if (nowMs - replay.progressMs > stalledMs) {
          throw new RekindleError('TIMEOUT', 'backups do not deliver');
        }
        await sleep(notReadyDelayMs);
        continue;
      }
      const piece = await this.#fetch(task, replay, next, memory);
      if (piece === null || !scoreboard.claim(next)) continue;
      figures.readMs = performance.now() - startedMs;
      replay.fetchMs += performance.now() - nowMs;
      replay.fetches += 1;
      if (await this.#apply(replay, next, recovery, piece)) {
        replay.progressMs = performance.now();
        figures.replayMs = performance.now() - startedMs;
      }
    }
  }

  /** One piece, or null after noting on the scoreboard why there is none. */
  async #fetch(
    task: Task,
    { scoreboard, aborts }: Replay,
    fetch: Fetch,
    memory: PieceMemory,
  ): Promise<Uint8Array | null> {
    const { recoveryId, crashedServerId, partition } = task.request;
    const { segmentId, serverId } = fetch;
    const link = this.#options.servers.linkTo(serverId);
    if (link === null) {
      scoreboard.replicaFailed(fetch, false);
      return null;
    }
    const { partitionId } = partition;
    const request = { recoveryId, crashedServerId, segmentId, partitionId };
    const abort = new AbortController();
    const key = `${segmentId}/${serverId}`;
    aborts.set(key, abort);
    try {
      const body = Buffer.from(JSON.stringify(request));
      const place = (bytes: number): Uint8Array => memory.take(bytes);
      const options = { place, signal: abort.signal };
      return await link.callBinary('GET_RECOVERY_DATA', [body], options);
    } catch (thrown) {
      const { code, message } = asRekindleError(thrown);
      const nowMs = performance.now();
      if (code === 'ABORTED') {
        scoreboard.abandoned(fetch);
        return null;
      }
      if (code === 'SEGMENT_NOT_READY' || code === 'RETRY') {
        scoreboard.notReady(fetch, nowMs + notReadyDelayMs);
        return null;
      }
      this.#options.log.warn({ segmentId, serverId, code, message }, 'a replica cannot be read');
      // A backup that has not heard of the recovery yet is as good as one that was out of reach.
      const unreachable =
        code === 'TIMEOUT' || code === 'CONNECTION_LOST' || code === 'RECOVERY_UNKNOWN';
      if (unreachable) scoreboard.backupUnreachable(fetch, nowMs + unreachableDelayMs);
      else {
        const damaged = code === 'CHECKSUM_MISMATCH' || code === 'DISK_ERROR';
        scoreboard.replicaFailed(fetch, damaged);
      }
      return null;
    } finally {
      aborts.delete(key);
    }
  }

  /** Replays a piece; false if the piece was bad and another replica must be tried. */
  async #apply(
    replay: Replay,
    fetch: Fetch,
    recovery: RecoveryCore,
    piece: Uint8Array,
  ): Promise<boolean> {
    const { scoreboard, figures, aborts } = replay;
    const { log, replication } = this.#options;
    const view = new DataView(piece.buffer, piece.byteOffset, piece.byteLength);
    const length = piece.length < pieceHeaderBytes ? -1 : view.getUint32(0, true);
    if (length !== piece.length - pieceHeaderBytes) {
      log.error({ ...fetch }, 'a piece has not the length it names');
      scoreboard.claimedBad(fetch);
      return false;
    }
    try {
      if (length > 0) {
        // Waited for in vain once, what takes the memory is this recovery: the core sifts then.
        if (!replay.roomAwaited) {
          replay.roomAwaited = !(await awaitMemory(replay.sideLog, memoryWaitMs));
        }
        const bytes = piece.subarray(pieceHeaderBytes);
        const replayed = await recovery.replay(bytes, view.getUint32(4, true));
        figures.objects += replayed.objects;
        figures.bytes += replayed.bytes;
      }
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (error.code !== 'CHECKSUM_MISMATCH') throw error;
      log.error({ ...fetch }, 'a piece has a bad checksum');
      scoreboard.claimedBad(fetch);
      return false;
    }
    for (const serverId of scoreboard.succeeded(fetch.segmentId)) {
      aborts.get(`${fetch.segmentId}/${serverId}`)?.abort();
    }
    replication.trackSides(recovery.sideSegments());
    return true;
  }

  /** Phase 7. */
  #report(
    task: Task,
    figures: Figures,
    ctimeSegmentId: number,
    failure: RekindleError | null,
  ): Promise<OwnershipVerdict> {
    const { coordinator, serverId, log } = this.#options;
    const { recoveryId, partition, generation } = task.request;
    const request = {
      recoveryId,
      partitionId: partition.partitionId,
      generation,
      serverId,
      ok: failure === null,
      error: failure === null ? null : `${failure.code}: ${failure.message}`,
      ctimeSegmentId,
      ...figures,
      ...unreadableOf(failure),
    };
    return claimOwnership({
      ask: () => coordinator.call('RECOVERY_MASTER_FINISHED', request),
      // The coordinator has begun a newer generation, so it refuses this one for good.
      cancelled: () => task.cancelled,
      stopped: () => this.#stopped,
      log,
    });
  }

  #sideLog(task: Task, log: Log): SideLogOptions {
    const { core, notes, replication } = this.#options;
    const checkWanted = (): void => this.#checkWanted(task);
    const forget = (): void => {
      for (const tablet of task.request.partition.tablets) notes.forget(tablet);
    };
    return { core, replication, log, checkWanted, forget, stopped: () => this.#stopped };
  }

  #checkWanted(task: Task): void {
    if (task.cancelled || this.#stopped) {
      throw new RekindleError('ABORTED', 'the recovery is not wanted any more');
    }
  }
}

/** What this master has when it is through. Of several attempts the latest counts. */
function claimsOf(request: RecoverRequest, ctimeSegmentId: number): TabletClaim[] {
  const { recoveryId: ownershipId, generation, partition, tables } = request;
  const names = new Map(tables.map(({ tableId, name }) => [tableId, name]));
  return partition.tablets.flatMap(({ tableId, startSlot, endSlot }): TabletClaim[] => {
    const name = names.get(tableId);
    if (name === undefined) return [];
    const range = { tableId, startSlot, endSlot };
    return [{ ...range, name, ctimeSegmentId, ownershipId, generation, after: null }];
  });
}

/** How long a fetch may take before another backup is asked for the same. */
function hedgeAfterMs({ fetches, fetchMs }: Replay): number {
  return Math.max(hedgeMsMin, fetches === 0 ? 0 : (hedgeFactor * fetchMs) / fetches);
}

function overlaps(one: RecoverRequest, other: RecoverRequest): boolean {
  return one.partition.tablets.some((a) =>
    other.partition.tablets.some(
      (b) => a.tableId === b.tableId && a.startSlot <= b.endSlot && b.startSlot <= a.endSlot,
    ),
  );
}

/** Which replicas the coordinator should not count on, if that is why it failed. */
function unreadableOf(failure: RekindleError | null): Pick<Finished, 'unreadable'> {
  const { segmentId, servers } = failure?.details ?? {};
  if (typeof segmentId !== 'number' || !Array.isArray(servers)) return {};
  return { unreadable: { segmentId, servers } };
}

/**
 * Fetches a tablet from its owner and takes it over (docs/migration.md, steps 3 to 9). The pieces
 * are adopted into side segments like those of a recovery.
 *
 * Order that matters: writes are refused at the source before the last delta is asked for; what
 * clients were answered is here, and all is durable here, before the source refuses reads; it
 * refuses reads before the ownership is asked for; the tablet is served only after a definite yes.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { MasterCore, RecoveryCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import type { TabletClaim } from '../ops/log-notes.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import { faultPoint } from '../rpc/fault-point.js';
import type { MigrationDataKind, Ownership, SlotRange } from '../rpc/messages.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { RpcLink } from '../rpc/transport.js';
import { EndedMigrations } from './ended-migrations.js';
import { claimOwnership, type OwnershipVerdict } from './ownership-claim.js';
import type { OwnershipNotes } from './ownership-notes.js';
import { Pace } from './pace.js';
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

const scanLanes = 4;
/** What is left may be sent while writes wait. */
const lastDeltaBytes = 128 * 1024;
/** More rounds do not help against a source that is written faster than it is read. */
const deltaRoundsMax = 400;
const deltaPauseMs = 20;
const retryMs = 10;
const retriesMax = 500;
const reportMs = 100;
const memoryWaitMs = 5_000;
const headerBytes = 32;
const tasksMax = 16;
const burstBytes = 4 * 1024 * 1024;
const restMsMax = 100;

type MigrateRequest = RequestOf<'MIGRATE'>;

export interface MigrationTargetOptions {
  serverId: number;
  notes: OwnershipNotes;
  core: Pick<
    MasterCore,
    'startRecovery' | 'rollHead' | 'appendedPosition' | 'openLog' | 'stats' | 'importResults'
  >;
  replication: SideReplication;
  servers: ServerDirectory;
  coordinator: CoordinatorCaller;
  /** Throws if a leader of a later term has been heard of. */
  checkTerm: (term: number) => void;
  /** Of all tablets that come, while they are written at their sources; 0: as fast as they can. */
  bytesPerSecond: number;
  log: Log;
}

interface Task {
  request: MigrateRequest;
  cancelled: boolean;
  objects: number;
  bytes: number;
}

/** What a piece says in front of its entries. */
interface Piece {
  next: number;
  nextOffset: number;
  left: number;
  checksum: number;
  bytes: Uint8Array;
}

/** A fetch in progress. */
interface Fetch {
  task: Task;
  link: RpcLink;
  recovery: RecoveryCore;
  sideLog: SideLogOptions;
}

interface Place {
  segmentId: number;
  offset: number;
  left: number;
}

export class MigrationTarget {
  readonly #options: MigrationTargetOptions;
  readonly #tasks = new Map<number, Task>();
  readonly #running = new Set<Promise<void>>();
  readonly #ended = new EndedMigrations();
  readonly #pace: Pace;
  #stopped = false;

  constructor(options: MigrationTargetOptions) {
    this.#options = options;
    this.#pace = new Pace(options.bytesPerSecond, burstBytes);
  }

  get running(): number {
    return this.#tasks.size;
  }

  /** Answers at once; the outcome goes to the coordinator. A repeated request is no new one. */
  start(request: MigrateRequest): ReplyOf<'MIGRATE'> {
    this.#options.checkTerm(request.term);
    const { migrationId } = request;
    const known = this.#tasks.get(migrationId);
    if (known !== undefined) return { objects: known.objects, bytes: known.bytes };
    if (this.#ended.has(migrationId)) {
      throw new RekindleError('RECOVERY_UNKNOWN', `migration ${migrationId} is over`);
    }
    if (this.#stopped || this.#tasks.size >= tasksMax) {
      throw new RekindleError('RETRY', 'too many tablets are coming', { retryAfterMs: 500 });
    }
    const task: Task = { request, cancelled: false, objects: 0, bytes: 0 };
    this.#tasks.set(migrationId, task);
    const run = this.#run(task)
      .catch((thrown: unknown) => {
        const error = asRekindleError(thrown);
        if (error.code === 'SHUTTING_DOWN') return;
        this.#options.log.error({ err: error, migrationId }, 'a migration ended abnormally');
      })
      .finally(() => {
        this.#tasks.delete(migrationId);
        this.#ended.add(migrationId);
        this.#running.delete(run);
      });
    this.#running.add(run);
    return { objects: 0, bytes: 0 };
  }

  /** The coordinator has given it up. `RETRY` until all that came is gone. */
  end({ migrationId, term }: RequestOf<'END_MIGRATION'>): void {
    this.#options.checkTerm(term);
    const task = this.#tasks.get(migrationId);
    if (task === undefined) {
      this.#ended.add(migrationId);
      return;
    }
    task.cancelled = true;
    throw new RekindleError('RETRY', `migration ${migrationId} is being undone`, {
      retryAfterMs: reportMs,
    });
  }

  /** Cancels all and waits until they have let go of the core. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await Promise.all(this.#running);
  }

  async #run(task: Task): Promise<void> {
    const { core, notes, replication } = this.#options;
    const { migrationId, sourceServerId, tableId, startSlot, endSlot } = task.request;
    const log = this.#options.log.with({ migrationId, sourceServerId });
    const sideLog: SideLogOptions = {
      core,
      replication,
      log,
      checkWanted: () => this.#checkWanted(task),
      forget: () => notes.forget(task.request),
      stopped: () => this.#stopped,
    };
    let recovery: RecoveryCore;
    try {
      core.openLog();
      // Its creation point is this master's own; the one that it had elsewhere does not count here.
      const tablet = { tableId, startSlot, endSlot, ctimeSegmentId: 0 };
      recovery = await startSides(core, [tablet], sideLog);
    } catch (thrown) {
      await this.#report(task, 0, asNativeError(thrown));
      return;
    }
    let committed = false;
    let failure: RekindleError | null = null;
    try {
      const link = this.#options.servers.linkTo(sourceServerId);
      if (link === null) throw new RekindleError('CONNECTION_LOST', 'the source is not up');
      const fetch: Fetch = { task, link, recovery, sideLog };
      const ownerships = await this.#copy(fetch);
      await copySides(recovery, sideLog);
      await commitSides(recovery, sideLog, () => {
        committed = true;
        notes.claim(comingClaims(task.request, recovery.ctimeSegmentId, ownerships));
      });
      await link.call('FREEZE_TABLET', { migrationId, reads: true });
      await faultPoint('migrate-4');
    } catch (thrown) {
      failure = asNativeError(thrown);
      log.warn({ code: failure.code, message: failure.message }, 'a migration failed');
    }
    const verdict = await this.#report(task, recovery.ctimeSegmentId, failure);
    // Without a verdict the coordinator may count on the side segments: nothing is taken back.
    if (verdict === 'unknown') return;
    if (verdict === 'owner' && failure === null) {
      // Before anything is written here that the source has not.
      if (!(await this.#noteOwned(task, recovery.ctimeSegmentId))) return;
      recovery.activate();
      replication.scheduleFlush();
      log.info({ objects: task.objects, bytes: task.bytes }, 'a tablet has come');
      return;
    }
    await takeBack(recovery, sideLog, committed);
  }

  /** Waits for memory if there is none for the note; false if this master stops before. */
  async #noteOwned({ request }: Task, ctimeSegmentId: number): Promise<boolean> {
    const claim = ownClaim(request, ctimeSegmentId);
    for (; !this.#stopped; await sleep(retryMs)) {
      try {
        this.#options.notes.claim([claim]);
        return true;
      } catch (thrown) {
        const error = asNativeError(thrown);
        if (error.code !== 'OUT_OF_MEMORY') throw error;
      }
    }
    return false;
  }

  /**
   * Everything that the source has, up to the moment from which on it refuses writes. Resolves with
   * how the source has it.
   */
  async #copy(fetch: Fetch): Promise<readonly (SlotRange & Ownership)[]> {
    const { link, task } = fetch;
    const { migrationId, tableId, startSlot, endSlot, term } = task.request;
    const start = { migrationId, tableId, startSlot, endSlot, term };
    const { buckets, segmentId, offset, ownerships } = await this.#patiently(task, () =>
      link.call('START_MIGRATION', start),
    );
    let place: Place = { segmentId, offset, left: Number.POSITIVE_INFINITY };
    const lanes = Array.from({ length: scanLanes }, (_, lane) => {
      const from = Math.floor((lane * buckets) / scanLanes);
      return this.#scan(fetch, from, Math.floor(((lane + 1) * buckets) / scanLanes));
    });
    const scans = Promise.allSettled(lanes);
    let scanned = false;
    const ended = scans.then(() => {
      scanned = true;
    });
    const follow = async (): Promise<void> => {
      // As it comes, so that the source need not keep it.
      for (; !scanned; place = await this.#delta(fetch, place)) await sleep(deltaPauseMs);
    };
    // All of them end before this does: none may touch a recovery that was given up.
    const [followed] = await Promise.allSettled([follow(), ended]);
    for (const result of [followed, ...(await scans)]) {
      if (result.status === 'rejected') throw result.reason;
    }
    for (let round = 0; place.left > lastDeltaBytes && round < deltaRoundsMax; round++) {
      place = await this.#delta(fetch, place);
    }
    await faultPoint('migrate-3');
    await link.call('FREEZE_TABLET', { migrationId, reads: false });
    do place = await this.#delta(fetch, place);
    while (place.left > 0);
    await this.#takeResults(fetch);
    return ownerships;
  }

  async #scan(fetch: Fetch, from: number, end: number): Promise<void> {
    for (let next = from; next < end; ) {
      const piece = await this.#piece(fetch, 'scan', next, end);
      await this.#apply(fetch, piece);
      next = piece.next;
      // Deltas do not wait: the source keeps what it writes until they have been asked for.
      await this.#rest(fetch.task, this.#pace.spend(piece.bytes.length, performance.now()));
    }
  }

  async #delta(fetch: Fetch, { segmentId, offset }: Place): Promise<Place> {
    const piece = await this.#piece(fetch, 'delta', segmentId, offset);
    await this.#apply(fetch, piece);
    return { segmentId: piece.next, offset: piece.nextOffset, left: piece.left };
  }

  /** Of all clients: nobody knows of which tablet an answer was. */
  async #takeResults(fetch: Fetch): Promise<void> {
    let after = 0;
    for (let left = 1; left > 0; ) {
      const piece = await this.#piece(fetch, 'results', after, 0);
      this.#options.core.importResults(piece.bytes, Date.now());
      after = piece.next;
      left = piece.left;
    }
  }

  async #piece(
    { task, link }: Fetch,
    kind: MigrationDataKind,
    from: number,
    end: number,
  ): Promise<Piece> {
    const request = { migrationId: task.request.migrationId, kind, from, end };
    const body = Buffer.from(JSON.stringify(request));
    const reply = await this.#patiently(task, () => link.callBinary('GET_MIGRATION_DATA', [body]));
    const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength);
    const whole = reply.length >= headerBytes;
    if (!whole || view.getUint32(0, true) !== reply.length - headerBytes) {
      throw new RekindleError('CHECKSUM_MISMATCH', 'a piece has not the length that it names');
    }
    return {
      checksum: view.getUint32(4, true),
      next: Number(view.getBigUint64(8, true)),
      nextOffset: Number(view.getBigUint64(16, true)),
      left: Number(view.getBigUint64(24, true)),
      bytes: reply.subarray(headerBytes),
    };
  }

  async #apply({ task, recovery, sideLog }: Fetch, { bytes, checksum }: Piece): Promise<void> {
    if (bytes.length === 0) return;
    await awaitMemory(sideLog, memoryWaitMs);
    const replayed = await recovery.replay(bytes, checksum);
    task.objects += replayed.objects;
    task.bytes += replayed.bytes;
    this.#options.replication.trackSides(recovery.sideSegments());
  }

  /** As long as the migration is wanted. */
  async #rest(task: Task, ms: number): Promise<void> {
    const endMs = performance.now() + ms;
    for (let leftMs = ms; leftMs > 0; leftMs = endMs - performance.now()) {
      this.#checkWanted(task);
      await sleep(Math.min(leftMs, restMsMax));
    }
  }

  /** Repeats what the source is too busy for. */
  async #patiently<T>(task: Task, call: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      this.#checkWanted(task);
      try {
        return await call();
      } catch (thrown) {
        const error = asRekindleError(thrown);
        if (error.code !== 'RETRY' || attempt === retriesMax) throw error;
      }
      await sleep(retryMs);
    }
  }

  #report(
    task: Task,
    ctimeSegmentId: number,
    failure: RekindleError | null,
  ): Promise<OwnershipVerdict> {
    const { coordinator, serverId, log } = this.#options;
    const { migrationId } = task.request;
    const { objects, bytes } = task;
    const request = {
      migrationId,
      serverId,
      ok: failure === null,
      error: failure === null ? null : `${failure.code}: ${failure.message}`,
      ctimeSegmentId,
      objects,
      bytes,
    };
    return claimOwnership({
      ask: () => coordinator.call('MIGRATION_FINISHED', request),
      // Given up by a commit, so no other can follow.
      cancelled: () => task.cancelled,
      stopped: () => this.#stopped,
      log,
    });
  }

  #checkWanted(task: Task): void {
    if (task.cancelled || this.#stopped) {
      throw new RekindleError('ABORTED', 'the migration is not wanted any more');
    }
  }
}

function ownClaim(request: MigrateRequest, ctimeSegmentId: number): TabletClaim {
  const { tableId, startSlot, endSlot, name, migrationId: ownershipId } = request;
  const range = { tableId, startSlot, endSlot };
  return { ...range, name, ctimeSegmentId, ownershipId, generation: 0, after: null };
}

/** It has all of it, and may or may not be given it. */
function comingClaims(
  request: MigrateRequest,
  ctimeSegmentId: number,
  ownerships: readonly (SlotRange & Ownership)[],
): TabletClaim[] {
  const claim = ownClaim(request, ctimeSegmentId);
  return ownerships.map(({ startSlot, endSlot, ...after }) => {
    const { ownershipId, generation } = after;
    return { ...claim, startSlot, endSlot, after: { ownershipId, generation } };
  });
}

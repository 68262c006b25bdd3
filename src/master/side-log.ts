/**
 * The way of adopted side segments into the log of this master, and out of it.
 *
 * Order that matters: all of them are closed on all backups before the commit; the head that names
 * them is durable before anybody counts on them; they go only when the newest durable digest does
 * not name them.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { MasterCore, RecoveryCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import type { RecoveryTablet } from '../rpc/messages.js';
import type { SideReplication } from './replica-manager-runtime.js';

const replicationTimeoutMs = 120_000;
const retryMs = 100;
const retryMsMax = 2_000;
const memoryPollMs = 10;
const erasurePollMs = 20;
/** Segments that replay threads may want at once, beyond the reserve. */
const segmentsAhead = 2;

export interface SideLogOptions {
  core: Pick<MasterCore, 'rollHead' | 'appendedPosition' | 'stats'>;
  replication: SideReplication;
  log: Log;
  /** Throws if it is not wanted any more. */
  checkWanted: () => void;
  /** The log does not say any more that this master has the tablets. */
  forget: () => void;
  stopped: () => boolean;
}

/**
 * Prepares tablets for what is to come. What an earlier ownership of them has left here goes first:
 * that takes a moment and needs nobody.
 */
export async function startSides(
  core: Pick<MasterCore, 'startRecovery'>,
  tablets: RecoveryTablet[],
  { checkWanted }: Pick<SideLogOptions, 'checkWanted'>,
): Promise<RecoveryCore> {
  for (;;) {
    try {
      return core.startRecovery(tablets);
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (error.code !== 'RETRY') throw error;
    }
    await sleep(erasurePollMs);
    checkWanted();
  }
}

/** Closes what was replayed on all its backups. */
export async function copySides(
  recovery: RecoveryCore,
  { replication, checkWanted }: SideLogOptions,
): Promise<void> {
  checkWanted();
  await recovery.finishReplay();
  const sides = recovery.sideSegments();
  replication.trackSides(sides);
  await replication.waitReplicated(sides, replicationTimeoutMs);
}

/**
 * Puts it into the log. `onCommitted`: from here on a digest may name it. What it appends lies
 * behind that digest, and is durable too when this resolves.
 */
export async function commitSides(
  recovery: RecoveryCore,
  { core, replication, checkWanted }: SideLogOptions,
  onCommitted: () => void,
): Promise<void> {
  checkWanted();
  recovery.commit();
  onCommitted();
  const position = core.appendedPosition();
  replication.scheduleFlush();
  await replication.waitDurable(position, replicationTimeoutMs);
  if (replication.lostOpenReplica(recovery.sideSegments())) {
    // Else a short open copy on the lost backup could be taken for the side segment later.
    await replication.raiseMinOpenSegment();
  }
}

/** Undoes all that there is of it; stays half-way only if the master stops. */
export async function takeBack(
  recovery: RecoveryCore,
  options: SideLogOptions,
  committed: boolean,
): Promise<void> {
  const { replication } = options;
  if (committed && !(await leaveLog(recovery, options))) return;
  // First the sockets let go of the bytes, then the core reuses them.
  const replicas = await replication.drain(recovery.sideSegments());
  await recovery.abort();
  void replication.free(replicas);
}

/**
 * A durable digest names the side segments. As long as it is the newest, they belong to the log:
 * without them this master could not be recovered, so until a head without them is durable they
 * stay replicated, whatever becomes of backups. False if the master stopped before.
 */
async function leaveLog(recovery: RecoveryCore, options: SideLogOptions): Promise<boolean> {
  const { core, forget, replication, log, stopped } = options;
  recovery.withdraw();
  for (let attempt = 0; !stopped(); attempt += 1) {
    try {
      // First: a head that names no side segments must not say that their tablets are here.
      forget();
      core.rollHead();
      replication.scheduleFlush();
      await replication.waitDurable(core.appendedPosition(), replicationTimeoutMs);
      return true;
    } catch (thrown) {
      const { code, message } = asNativeError(thrown);
      if (attempt % 10 === 0) log.warn({ code, message }, 'what was adopted stays for now');
      await sleep(Math.min(retryMs * (attempt + 1), retryMsMax));
    }
  }
  return false;
}

/**
 * A master that has run for a while keeps only a little memory free, and its cleaner makes more
 * when it is taken: not as fast as replay takes it. Waits for it, so long at most, and says whether
 * there is room. A master that is full of live objects is not waited for: what comes fails cleanly.
 */
export async function awaitMemory(options: SideLogOptions, waitMsMax: number): Promise<boolean> {
  const limitMs = performance.now() + waitMsMax;
  while (performance.now() < limitMs) {
    const { segmentsFree, segmentsReserved, memoryFull } = options.core.stats();
    const wanted = (segmentsReserved ?? 0) + segmentsAhead;
    if ((segmentsFree ?? wanted) >= wanted || memoryFull === 1) return true;
    options.checkWanted();
    await sleep(memoryPollMs);
  }
  return false;
}

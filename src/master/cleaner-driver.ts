/**
 * The replicated half of a cleaning pass. The core has copied the live entries of some segments
 * into survivors; here the log changes from the one to the other, on backups and in the digest.
 *
 * The steps, with the numbers of docs/replication.md §6 and of the fault points `clean-<n>`:
 * 1 announce the survivors, 2 they are closed on all R backups, 3 commit: a head that names them
 * and leaves the cleaned segments out, 4 that head is durable, 5 no write of a cleaned segment is
 * under way, 6 the core reuses their memory, 7 backups free their replicas.
 * A crash before 4 leaves the old segments, one after it the survivors; never neither.
 *
 * Passes commit and end in the order in which the core made them; several may enter the log with
 * the same head. A pass waits for missing backups
 * as long as it takes: only a stop of the master ends it early, and then nothing is freed.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { CleaningPass, MasterCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import { RekindleError } from '../rpc/errors.js';
import { type FaultPoint, faultPoint as processFaultPoint } from '../rpc/fault-point.js';
import type { SideReplication } from './replica-manager-runtime.js';

/** Passes whose survivors are replicated at once. */
const passesMax = 4;
/** Load opens the next head anyway; an idle log must not keep cleaned segments for ever. */
const headWaitMs = 100;
const headPollMs = 5;
/** The waits have no deadline: after so long they are logged and begin anew. */
const waitMs = 10_000;
const retryDelayMs = 100;

export interface CleanerDriverOptions {
  core: Pick<MasterCore, 'onCleaningPass' | 'commitCleaning' | 'endCleaning' | 'stats'>;
  replication: SideReplication;
  log: Log;
  faultPoint?: FaultPoint;
}

/** How far a pass has got, for the one behind it. Neither promise rejects. */
interface Progress {
  /** The core has been told to commit it, or it has failed. */
  committed: Promise<void>;
  ended: Promise<void>;
}

export class CleanerDriver {
  readonly #options: CleanerDriverOptions;
  readonly #faultPoint: FaultPoint;
  /** In the order of the core; bounded by its memory, which every pass holds a part of. */
  readonly #waiting: CleaningPass[] = [];
  #running = 0;
  /** Of the newest pass that has begun. */
  #last: Progress = { committed: Promise.resolve(), ended: Promise.resolve() };
  #stopped = false;
  #ended = 0;

  constructor(options: CleanerDriverOptions) {
    this.#options = options;
    this.#faultPoint = options.faultPoint ?? processFaultPoint;
    options.core.onCleaningPass((pass) => {
      if (this.#stopped) return;
      this.#waiting.push(pass);
      this.#startNext();
    });
  }

  counters(): Record<string, number> {
    return {
      cleanerPassesWaiting: this.#waiting.length,
      cleanerPassesReplicating: this.#running,
      cleanerPassesReplicated: this.#ended,
    };
  }

  /** Resolves, once replication has been stopped too, when no pass uses the core any more. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.#waiting.length = 0;
    await this.#last.ended;
  }

  #startNext(): void {
    while (this.#running < passesMax) {
      const pass = this.#waiting.shift();
      if (pass === undefined) return;
      this.#running += 1;
      this.#last = this.#start(pass, this.#last);
    }
  }

  #start(pass: CleaningPass, preceding: Progress): Progress {
    let onCommit = (): void => undefined;
    const committed = new Promise<void>((resolve) => {
      onCommit = resolve;
    });
    const ended = this.#run(pass, preceding, onCommit).finally(() => {
      onCommit();
      this.#running -= 1;
      this.#startNext();
    });
    return { committed, ended };
  }

  /** Never rejects. */
  async #run(pass: CleaningPass, preceding: Progress, onCommit: () => void): Promise<void> {
    const { passId, survivors, cleaned } = pass;
    const log = this.#options.log.with({ passId });
    const startMs = performance.now();
    try {
      await this.#clean(pass, preceding, onCommit, log);
      this.#ended += 1;
      const fields = { survivors: survivors.length, cleaned: cleaned.length };
      log.debug({ ...fields, ms: Math.round(performance.now() - startMs) }, 'segments cleaned');
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (!this.#stopped && error.code !== 'SHUTTING_DOWN') {
        log.error({ err: error }, 'a cleaning pass ended abnormally: its memory is not reused');
      }
      await preceding.ended;
    }
  }

  async #clean(
    { passId, survivors, cleaned }: CleaningPass,
    preceding: Progress,
    onCommit: () => void,
    log: Log,
  ): Promise<void> {
    const { core, replication } = this.#options;
    replication.trackSides(survivors);
    await this.#faultPoint('clean-1');
    await this.#persist(log, () => replication.waitReplicated(survivors, waitMs));
    await this.#faultPoint('clean-2');
    await preceding.committed;
    const position = await this.#commit(passId, onCommit, log);
    await this.#faultPoint('clean-3');
    replication.scheduleFlush();
    await this.#persist(log, () => replication.waitDurable(position, waitMs));
    if (replication.lostOpenReplica(survivors)) {
      // Else a short open copy on the lost backup could be taken for the survivor later.
      await replication.raiseMinOpenSegment();
    }
    await preceding.ended;
    await this.#faultPoint('clean-4');
    const replicas = await replication.drain(cleaned);
    await this.#faultPoint('clean-5');
    this.#checkRunning();
    core.endCleaning(passId);
    await this.#faultPoint('clean-6');
    void replication.free(replicas).then(() => this.#faultPoint('clean-7'));
  }

  /** Waits for a head that load opens, for a while; then opens one. */
  async #commit(passId: number, onCommit: () => void, log: Log): Promise<number> {
    const { core } = this.#options;
    const forceAtMs = performance.now() + headWaitMs;
    let position = 0;
    await this.#persist(log, async () => {
      for (;;) {
        this.#checkRunning();
        const force = performance.now() >= forceAtMs || core.stats().memoryShort === 1;
        position = core.commitCleaning(passId, force);
        onCommit();
        if (position > 0) return;
        await sleep(headPollMs);
      }
    });
    return position;
  }

  /** Repeats `work` until it succeeds; rejects at a stop, or with what no wait heals. */
  async #persist(log: Log, work: () => Promise<void>): Promise<void> {
    for (let attempt = 0; ; attempt += 1) {
      this.#checkRunning();
      try {
        await work();
        return;
      } catch (thrown) {
        const error = asNativeError(thrown);
        const { code, message } = error;
        if (!error.retryable || code === 'SHUTTING_DOWN') throw error;
        if (attempt % 10 === 0) log.warn({ code, message }, 'a cleaning pass waits');
        await sleep(retryDelayMs);
      }
    }
  }

  #checkRunning(): void {
    if (this.#stopped) throw new RekindleError('SHUTTING_DOWN', 'the master is stopping');
  }
}

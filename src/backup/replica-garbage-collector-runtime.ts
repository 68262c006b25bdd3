/**
 * Runs the ReplicaGarbageCollector every few seconds: frees, unfences, asks masters, tells them
 * what has rotted. One pass at a time; what fails is tried again by the next pass.
 */

import type { BackupCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
import { faultPoint } from '../rpc/fault-point.js';
import type { ServerList } from '../rpc/messages.js';
import type { RpcLink } from '../rpc/transport.js';
import { ReplicaGarbageCollector } from './replica-garbage-collector.js';

const intervalMsDefault = 2_000;

export interface GarbageCollectorOptions {
  serverId: number;
  clusterId: string;
  core: BackupCore;
  /** Null if the server list does not have it up. */
  linkTo: (serverId: number) => RpcLink | null;
  log: Log;
  intervalMs?: number;
}

export class ReplicaGarbageCollectorRuntime {
  readonly #options: GarbageCollectorOptions;
  readonly #collector: ReplicaGarbageCollector;
  readonly #timer: NodeJS.Timeout;
  #pass: Promise<void> | null = null;
  #closed = false;

  constructor(options: GarbageCollectorOptions) {
    this.#options = options;
    this.#collector = new ReplicaGarbageCollector(options.clusterId);
    this.#timer = setInterval(() => this.#start(), options.intervalMs ?? intervalMsDefault);
    this.#timer.unref();
  }

  applyServerList(list: ServerList): void {
    this.#collector.applyServerList(list);
  }

  /** Waits for a pass that is under way. */
  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#timer);
    await this.#pass;
  }

  #start(): void {
    if (this.#pass !== null || this.#closed) return;
    this.#pass = this.#run()
      .catch((thrown: unknown) => {
        const { code, message } = asNativeError(thrown);
        this.#options.log.warn({ code, message }, 'replica garbage collection failed');
      })
      .finally(() => {
        this.#pass = null;
      });
  }

  async #run(): Promise<void> {
    const { core } = this.#options;
    const report = this.#collector.collect(core.replicas(), core.fenced());
    for (const { masterId, segmentIds } of report.removedMasters) {
      await this.#free(masterId, segmentIds, 'their master was removed');
      await core.unfence(masterId);
    }
    for (const { masterId, segmentIds } of report.questions) {
      await this.#attempt(() => this.#ask(masterId, segmentIds));
    }
    for (const { masterId, segmentIds } of report.rotten) {
      await this.#attempt(() => this.#reportRot(masterId, segmentIds));
    }
  }

  /** One master that does not answer keeps nothing from the others. */
  async #attempt(task: () => Promise<void>): Promise<void> {
    try {
      await task();
    } catch (thrown) {
      const { code, message } = asNativeError(thrown);
      this.#options.log.warn({ code, message }, 'a master did not answer about its replicas');
    }
  }

  /** What a failing disk does not free is forgotten all the same; a restart finds it again. */
  async #free(masterId: number, segmentIds: number[], why: string): Promise<void> {
    if (segmentIds.length === 0) return;
    const { core, log } = this.#options;
    const fields = { masterId, replicas: segmentIds.length, why };
    try {
      await core.free(masterId, segmentIds);
      log.info(fields, 'freed replicas');
    } catch (thrown) {
      const error = asNativeError(thrown);
      if (error.code !== 'DISK_ERROR') throw error;
      log.warn(fields, 'replicas are forgotten, but the disk did not free all of them');
    }
  }

  /** The master writes them anew elsewhere and frees them here; until then it is told again. */
  async #reportRot(masterId: number, segmentIds: number[]): Promise<void> {
    const { linkTo, log, serverId } = this.#options;
    const link = linkTo(masterId);
    if (link === null) return;
    await faultPoint('rot-1');
    await link.call('REPORT_ROT', { backupServerId: serverId, segmentIds });
    await faultPoint('rot-4');
    log.warn({ masterId, segmentIds: segmentIds.slice(0, 8) }, 'replicas have rotted');
  }

  async #ask(masterId: number, segmentIds: number[]): Promise<void> {
    const { core, linkTo, serverId } = this.#options;
    const link = linkTo(masterId);
    if (link === null) return;
    const { needed } = await link.call('IS_REPLICA_NEEDED', {
      backupServerId: serverId,
      segmentIds,
    });
    const keep = new Set(needed);
    // Meanwhile the master may have written one of them anew: that one is needed.
    const old = new Set<number>();
    for (const replica of core.replicas()) {
      if (replica.masterId === masterId && replica.fromRestart) old.add(replica.segmentId);
    }
    const freed = segmentIds.filter((id) => old.has(id) && !keep.has(id));
    if (this.#closed) return;
    await this.#free(masterId, freed, 'their master has replaced them');
  }
}

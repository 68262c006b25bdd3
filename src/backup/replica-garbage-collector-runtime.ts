/**
 * Runs the ReplicaGarbageCollector every few seconds: frees, unfences, asks masters. One pass at
 * a time; what fails is tried again by the next pass.
 */

import type { BackupCore } from '../native/contract.js';
import { asNativeError } from '../native/index.js';
import type { Log } from '../ops/log.js';
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
    const { core, log } = this.#options;
    const { removedMasters, questions } = this.#collector.collect(core.replicas(), core.fenced());
    for (const { masterId, segmentIds } of removedMasters) {
      if (segmentIds.length > 0) {
        await core.free(masterId, segmentIds);
        log.info({ masterId, replicas: segmentIds.length }, 'freed replicas of a removed master');
      }
      await core.unfence(masterId);
    }
    for (const { masterId, segmentIds } of questions) await this.#ask(masterId, segmentIds);
  }

  async #ask(masterId: number, segmentIds: number[]): Promise<void> {
    const { core, linkTo, log, serverId } = this.#options;
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
    if (freed.length === 0 || this.#closed) return;
    await core.free(masterId, freed);
    log.info({ masterId, replicas: freed.length }, 'freed replicas that their master replaced');
  }
}

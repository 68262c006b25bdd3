/**
 * BACKUP_FREE: tells backups which replicas of this master they may free.
 *
 * One message a backup is under way; what gathers meanwhile goes with the next. It is repeated
 * until the backup answers or the server list has it up no more: what a restarted backup finds on
 * its disk it asks about itself (IS_REPLICA_NEEDED). `DISK_ERROR` is an answer: the backup has
 * forgotten the replicas, and what is left of them on its disk is found at its restart. Whether a
 * replica may be freed was decided before.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Log } from '../ops/log.js';
import { asRekindleError } from '../rpc/errors.js';
import type { RpcLink } from '../rpc/transport.js';
import type { ServerDirectory } from './server-directory.js';

export interface ReplicaAddress {
  serverId: number;
  segmentId: number;
}

const messageSegmentsMax = 4_096;
/** A backup has no more frames than that for one master; beyond it the oldest are given up. */
const queuedMax = 65_536;
const retryDelayMs = 100;
const retryDelayMsMax = 2_000;

export interface ReplicaFreerOptions {
  masterId: number;
  servers: ServerDirectory;
  log: Log;
}

interface Queue {
  segmentIds: Set<number>;
  /** Empty again: true if the backup has answered about all that ever was in it. */
  ended: Promise<boolean>;
  dropped: boolean;
}

export class ReplicaFreer {
  readonly #options: ReplicaFreerOptions;
  /** Only of backups that have something to free. */
  readonly #queues = new Map<number, Queue>();
  #stopped = false;
  #messages = 0;
  #givenUp = 0;
  #diskErrors = 0;

  constructor(options: ReplicaFreerOptions) {
    this.#options = options;
  }

  /**
   * Resolves when all of them are forgotten by their backups (true) or some were given up (false);
   * nobody has to wait for it.
   */
  async free(replicas: readonly ReplicaAddress[]): Promise<boolean> {
    const queues = new Set<Queue>();
    for (const { serverId, segmentId } of replicas) {
      queues.add(this.#push(serverId, segmentId));
    }
    const ended = await Promise.all([...queues].map((queue) => queue.ended));
    return !ended.includes(false);
  }

  stop(): void {
    this.#stopped = true;
  }

  counters(): Record<string, number> {
    let waiting = 0;
    for (const { segmentIds } of this.#queues.values()) waiting += segmentIds.size;
    return {
      freesWaiting: waiting,
      freeMessages: this.#messages,
      freesGivenUp: this.#givenUp,
      freeDiskErrors: this.#diskErrors,
    };
  }

  #push(serverId: number, segmentId: number): Queue {
    let queue = this.#queues.get(serverId);
    if (queue === undefined) {
      queue = { segmentIds: new Set(), ended: Promise.resolve(true), dropped: false };
      this.#queues.set(serverId, queue);
      queue.segmentIds.add(segmentId);
      queue.ended = this.#work(serverId, queue);
      return queue;
    }
    queue.segmentIds.add(segmentId);
    if (queue.segmentIds.size > queuedMax) {
      const [oldest] = queue.segmentIds;
      if (oldest !== undefined) queue.segmentIds.delete(oldest);
      queue.dropped = true;
      this.#givenUp += 1;
    }
    return queue;
  }

  /** Never rejects. */
  async #work(serverId: number, queue: Queue): Promise<boolean> {
    const { log, servers } = this.#options;
    const { segmentIds } = queue;
    // What is freed in one turn goes in one message.
    await Promise.resolve();
    for (let failures = 0; segmentIds.size > 0 && !this.#stopped; ) {
      const link = servers.linkTo(serverId);
      if (link === null) {
        this.#givenUp += segmentIds.size;
        queue.dropped = true;
        break;
      }
      const message = [...segmentIds].slice(0, messageSegmentsMax);
      this.#messages += 1;
      try {
        await this.#send(link, message);
        for (const segmentId of message) segmentIds.delete(segmentId);
        failures = 0;
      } catch (thrown) {
        const { code, message: text } = asRekindleError(thrown);
        const fields = { serverId, replicas: segmentIds.size, code, message: text };
        if (failures % 10 === 9) log.warn(fields, 'replicas are not freed yet');
        failures += 1;
        await sleep(Math.min(retryDelayMs * failures, retryDelayMsMax), undefined, { ref: false });
      }
    }
    this.#queues.delete(serverId);
    return !queue.dropped && !this.#stopped;
  }

  async #send(link: RpcLink, segmentIds: number[]): Promise<void> {
    try {
      await link.call('BACKUP_FREE', { masterId: this.#options.masterId, segmentIds });
    } catch (thrown) {
      if (asRekindleError(thrown).code !== 'DISK_ERROR') throw thrown;
      this.#diskErrors += 1;
    }
  }
}

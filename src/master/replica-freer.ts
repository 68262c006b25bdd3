/**
 * BACKUP_FREE: tells backups which replicas of this master they may free.
 *
 * One message a backup is under way; what gathers meanwhile goes with the next. It is repeated
 * until the backup answers or the server list has it up no more: what a restarted backup finds on
 * its disk it asks about itself (IS_REPLICA_NEEDED). Whether a replica may be freed was decided
 * before.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Log } from '../ops/log.js';
import { asRekindleError } from '../rpc/errors.js';
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
  /** Empty again, or given up. */
  ended: Promise<void>;
}

export class ReplicaFreer {
  readonly #options: ReplicaFreerOptions;
  /** Only of backups that have something to free. */
  readonly #queues = new Map<number, Queue>();
  #stopped = false;
  #messages = 0;
  #givenUp = 0;

  constructor(options: ReplicaFreerOptions) {
    this.#options = options;
  }

  /** Resolves when all of them are freed or given up; nobody has to wait for it. */
  async free(replicas: readonly ReplicaAddress[]): Promise<void> {
    const queues = new Set<Queue>();
    for (const { serverId, segmentId } of replicas) {
      queues.add(this.#push(serverId, segmentId));
    }
    await Promise.all([...queues].map((queue) => queue.ended));
  }

  stop(): void {
    this.#stopped = true;
  }

  counters(): Record<string, number> {
    let waiting = 0;
    for (const { segmentIds } of this.#queues.values()) waiting += segmentIds.size;
    return { freesWaiting: waiting, freeMessages: this.#messages, freesGivenUp: this.#givenUp };
  }

  #push(serverId: number, segmentId: number): Queue {
    let queue = this.#queues.get(serverId);
    if (queue === undefined) {
      queue = { segmentIds: new Set(), ended: Promise.resolve() };
      this.#queues.set(serverId, queue);
      queue.segmentIds.add(segmentId);
      queue.ended = this.#work(serverId, queue);
      return queue;
    }
    queue.segmentIds.add(segmentId);
    if (queue.segmentIds.size > queuedMax) {
      const [oldest] = queue.segmentIds;
      if (oldest !== undefined) queue.segmentIds.delete(oldest);
      this.#givenUp += 1;
    }
    return queue;
  }

  /** Never rejects. */
  async #work(serverId: number, queue: Queue): Promise<void> {
    const { log, masterId, servers } = this.#options;
    const { segmentIds } = queue;
    // What is freed in one turn goes in one message.
    await Promise.resolve();
    for (let failures = 0; segmentIds.size > 0 && !this.#stopped; ) {
      const link = servers.linkTo(serverId);
      if (link === null) {
        this.#givenUp += segmentIds.size;
        break;
      }
      const message = [...segmentIds].slice(0, messageSegmentsMax);
      this.#messages += 1;
      try {
        await link.call('BACKUP_FREE', { masterId, segmentIds: message });
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
  }
}

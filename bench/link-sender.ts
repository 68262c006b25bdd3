/**
 * The sender of `rekindle bench link`: writes replicas of a log's segments over one link for some
 * time, and says what that was and what it took of both processes.
 */
import { type LinkLog, MASTER_ID } from './link-log.js';
import type { LinkReceiver } from './link-process.js';
import { processorMsOf, transferredBytesOf } from './process-usage.js';

/** Of one run, then of all rounds of a configuration. */
export interface Sums {
  seconds: number;
  messages: number;
  bytes: number;
  senderMs: number;
  receiverMs: number;
  /** Handed to the kernel by the sender, and read by it. */
  sentBytes: number;
  readBytes: number;
}

let replicaIdLast = 0;

/** Writes replica after replica, `inFlight` at a time, and frees them. */
export async function send(
  { link, pid }: LinkReceiver,
  log: LinkLog,
  inFlight: number,
  ms: number,
): Promise<Sums> {
  const counters = (): number[] => {
    const { readBytes, writtenBytes } = transferredBytesOf(process.pid);
    return [processorMsOf([process.pid]), processorMsOf([pid]), writtenBytes, readBytes];
  };
  const before = counters();
  const startMs = performance.now();
  const endMs = startMs + ms;
  let messages = 0;
  let bytes = 0;
  const loop = async (first: number): Promise<void> => {
    for (let turn = first; performance.now() < endMs; turn += inFlight) {
      const segment = log.segments[turn % log.segments.length];
      if (segment === undefined) return;
      replicaIdLast += 1;
      const replicaId = replicaIdLast;
      for (let index = 0; index < segment.pieces.length && performance.now() < endMs; index++) {
        const parts = log.message(segment, index, replicaId);
        await link.callBinary('BACKUP_WRITE', parts);
        messages += 1;
        bytes += parts[1]?.length ?? 0;
      }
      await link.call('BACKUP_FREE', { masterId: MASTER_ID, segmentIds: [replicaId] });
    }
  };
  await Promise.all(Array.from({ length: inFlight }, (_, first) => loop(first)));
  const seconds = (performance.now() - startMs) / 1000;
  const after = counters();
  const [senderMs = 0, receiverMs = 0, sentBytes = 0, readBytes = 0] = after.map(
    (value, index) => value - (before[index] ?? 0),
  );
  return { seconds, messages, bytes, senderMs, receiverMs, sentBytes, readBytes };
}

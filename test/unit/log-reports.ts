/** What backups report of a master's log, in short, for tests of the coordinator. */
import type { BackupReport } from '../../src/coordinator/log-discovery.js';

export type ReplicaShape = [
  segmentId: number,
  length: number,
  open?: 'open' | 'doubtful',
  epoch?: number,
];

/** `digest` names the segment whose open replica lists the given ids. */
export function report(
  replicas: ReplicaShape[],
  digest?: [number, number[], number?],
): BackupReport {
  return {
    leaseRemainderMs: 0,
    replicas: replicas.map(([segmentId, length, open, epoch = 0]) => ({
      segmentId,
      length,
      epoch,
      closed: open === undefined,
      primary: false,
      doubtful: open === 'doubtful',
    })),
    digests:
      digest === undefined
        ? []
        : [{ segmentId: digest[0], segmentIds: digest[1], epoch: digest[2] ?? 0, tabletStats: [] }],
  };
}

/**
 * What one recovery has done so far, for `status`, logs and benchmarks. Only observed times and
 * numbers; no decision depends on them. They start again when the coordinator restarts.
 */
import type { PartitionReport, RecoveryPhase, RecoveryReport } from '../rpc/messages.js';
import type { RequestOf } from '../rpc/table.js';
import type { PartitionRecord, RecoveryRecord } from './coordinator-state.js';

export const RECOVERY_PHASES: readonly RecoveryPhase[] = [
  'detect',
  'fence',
  'plan',
  'read',
  'replay',
  'durable',
  'ownership',
  'release',
];

type Finished = RequestOf<'RECOVERY_MASTER_FINISHED'>;

export class RecoveryProgress {
  private readonly finished = new Map<number, Finished>();
  private logFoundAtMs: number | null = null;
  private plannedAtMs: number | null = null;
  private ownedAtMs: number | null = null;
  private releasedAtMs: number | null = null;
  private segments = 0;
  private bytes = 0;
  private partitions: PartitionRecord[] = [];

  constructor(private readonly recovery: RecoveryRecord) {
    this.partitions = recovery.partitions ?? [];
  }

  logFound(segments: number, bytes: number, nowMs: number): void {
    this.logFoundAtMs ??= nowMs;
    this.segments = segments;
    this.bytes = bytes;
  }

  planned(nowMs: number): void {
    this.plannedAtMs ??= nowMs;
  }

  /** The committed partitions, kept for the report after the record is gone. */
  follow(partitions: PartitionRecord[] | null, nowMs: number): void {
    this.partitions = partitions ?? [];
    if (partitions?.every(({ state }) => state === 'done')) this.ownedAtMs ??= nowMs;
  }

  partitionFinished(finished: Finished): void {
    this.finished.set(finished.partitionId, finished);
  }

  released(nowMs: number): void {
    this.ownedAtMs ??= nowMs;
    this.releasedAtMs = nowMs;
  }

  report(
    { waitingFor, gap }: Pick<RecoveryReport, 'waitingFor' | 'gap'>,
    errorOf: (partitionId: number) => string | null,
    nowMs: number,
  ): RecoveryReport {
    const { recoveryId, crashedServerId, suspectedAtMs } = this.recovery;
    const done = [...this.finished.values()];
    return {
      recoveryId,
      crashedServerId,
      state: this.releasedAtMs === null ? 'running' : 'done',
      startedAtMs: suspectedAtMs,
      phases: this.phases(),
      partitions: this.partitions.map((partition) => this.partitionReport(partition, errorOf)),
      segments: this.segments,
      bytes: this.bytes,
      objects: done.reduce((sum, { objects }) => sum + objects, 0),
      totalMs: (this.releasedAtMs ?? nowMs) - suspectedAtMs,
      waitingFor,
      gap,
    };
  }

  private partitionReport(
    { partitionId, serverId, generation, state }: PartitionRecord,
    errorOf: (partitionId: number) => string | null,
  ): PartitionReport {
    const finished = this.finished.get(partitionId);
    const error = state === 'done' ? null : errorOf(partitionId);
    return {
      partitionId,
      serverId,
      generation,
      state: state !== 'done' && error !== null ? 'failed' : state,
      objects: finished?.objects ?? 0,
      bytes: finished?.bytes ?? 0,
      error,
      readMs: finished?.readMs ?? 0,
      replayMs: finished?.replayMs ?? 0,
      durableMs: finished?.durableMs ?? 0,
    };
  }

  /**
   * Phases 4 to 6 overlap: each is given the time by which its slowest partition ended later than
   * the phase before, so the sum of all is the total.
   */
  private phases(): RecoveryReport['phases'] {
    const { suspectedAtMs, crashedAtMs } = this.recovery;
    const ms: (number | null)[] = [crashedAtMs - suspectedAtMs];
    ms.push(difference(this.logFoundAtMs, crashedAtMs));
    ms.push(difference(this.plannedAtMs, this.logFoundAtMs));
    const owned = this.ownedAtMs !== null && this.plannedAtMs !== null;
    const longest = (of: (f: Finished) => number): number =>
      Math.max(0, ...[...this.finished.values()].map(of));
    const readMs = longest((f) => f.readMs);
    const replayMs = Math.max(
      readMs,
      longest((f) => f.replayMs),
    );
    const durableMs = Math.max(
      replayMs,
      longest((f) => f.durableMs),
    );
    ms.push(owned ? readMs : null);
    ms.push(owned ? replayMs - readMs : null);
    ms.push(owned ? durableMs - replayMs : null);
    const recoveringMs = difference(this.ownedAtMs, this.plannedAtMs);
    ms.push(recoveringMs === null ? null : Math.max(0, recoveringMs - durableMs));
    ms.push(difference(this.releasedAtMs, this.ownedAtMs));
    return RECOVERY_PHASES.flatMap((phase, i) => {
      const value = ms[i];
      return value === null || value === undefined ? [] : [{ phase, number: i + 1, ms: value }];
    });
  }
}

function difference(endMs: number | null, startMs: number | null): number | null {
  return endMs === null || startMs === null ? null : Math.max(0, endMs - startMs);
}

/**
 * The recovery of one crashed master as a pure machine: after every event it looks at what is
 * committed (the view) and at what it knows of backups and recovery masters, and says what to do
 * next. What survives a restart of the coordinator is in the view; the rest is found out again.
 *
 * Rules: no RECOVER before the log is proved complete and the plan is committed; no RECOVER whose
 * generation is not committed; a failure costs the partition that it hits and no other. I/O and
 * timers belong to `recovery-runner.ts`, the report to `recovery-report.ts`.
 */
import type { LogGap, RecoveryTablet, ReplicaHolder, ServerEntry } from '../rpc/messages.js';
import type { RequestOf } from '../rpc/table.js';
import type { PartitionRecord, RecoveryRecord } from './coordinator-state.js';
import {
  type BackupReport,
  type DiscoveredLog,
  discoverLog,
  type MinimumOpen,
} from './log-discovery.js';
import { gapText } from './log-gap.js';
import { chooseMaster, type MasterCandidate } from './recovery-assignment.js';
import { type PlannedPartition, planPartitions } from './recovery-plan.js';
import type { Assignment } from './recovery-record.js';

export interface RecoveryTimings {
  /** Pause before something that failed is tried again. */
  retryMs: number;
  /** How long a slow backup may hold up a log that is complete without it. */
  fenceGraceMs: number;
  /** Pause before a failed partition goes to another master; grows with the attempts. */
  partitionRetryMs: number;
  partitionRetryMaxMs: number;
  /** A RECOVER is repeated to its master after this time, in case the master has lost it. */
  recoverRepeatMs: number;
}

export const RECOVERY_TIMINGS: RecoveryTimings = {
  retryMs: 500,
  fenceGraceMs: 2_000,
  partitionRetryMs: 100,
  partitionRetryMaxMs: 5_000,
  recoverRepeatMs: 10_000,
};

/** What is committed, as far as this recovery is concerned. */
export interface RecoveryView {
  term: number;
  record: RecoveryRecord;
  upServers: readonly ServerEntry[];
  /** Tablets that the crashed server still owns, in tables that exist. */
  tablets: readonly RecoveryTablet[];
  minimumOpen: MinimumOpen;
  /** Partitions of other recoveries by the master that works on them. */
  busy: ReadonlyMap<number, number>;
  /** Who may hold what these backups, which have answered, do not. */
  holders: (answered: ReadonlySet<number>) => ReplicaHolder[];
}

export type RecoveryEvent =
  /** The view may have changed, or time has passed. */
  | { kind: 'look' }
  | { kind: 'fenced'; serverId: number; report: BackupReport }
  | { kind: 'fence-failed'; serverId: number; error: string }
  | { kind: 'partitions-started'; serverId: number; round: number }
  | { kind: 'partitions-failed'; serverId: number; round: number }
  /** A commit that an effect asked for has ended; the view shows whether it worked. */
  | { kind: 'committed' }
  | { kind: 'recover-sent'; partitionId: number; generation: number }
  | { kind: 'recover-lost'; partitionId: number; generation: number }
  | {
      kind: 'partition-failed';
      partitionId: number;
      generation: number;
      error: string;
      outOfMemory?: boolean;
      unreadable?: RequestOf<'RECOVERY_MASTER_FINISHED'>['unreadable'] | undefined;
    }
  /** What a master said of its memory; null if it did not answer. */
  | { kind: 'load'; serverId: number; freeBytes: number | null };

export type RecoveryEffect =
  | { kind: 'fence'; serverId: number }
  | { kind: 'ask-load'; serverId: number }
  | { kind: 'commit-plan'; partitions: PlannedPartition[] }
  | { kind: 'start-partitions'; serverId: number; round: number; segmentIds: number[] }
  | { kind: 'commit-assignments'; assignments: Assignment[] }
  /** Partitions of nothing but dropped tables are done. */
  | { kind: 'commit-skip' }
  | { kind: 'recover'; serverId: number; request: RecoverOrder }
  | { kind: 'release' }
  | { kind: 'wake'; atMs: number };

/** The names of its tables are the sender's to add. */
export type RecoverOrder = Omit<RequestOf<'RECOVER'>, 'tables'>;

/** Failures of one partition after which backups hear of the partitions again. */
const ATTEMPTS_BEFORE_ANNOUNCING = 3;

interface BackupState {
  fence: 'ask' | 'asked' | 'answered';
  /** Of the newest answer; kept while the backup is asked again. */
  report: BackupReport | null;
  retryAtMs: number;
  /** START_PARTITIONS of the present round. */
  partitions: 'ask' | 'asked' | 'started';
  partitionsRetryAtMs: number;
}

interface PartitionState {
  /** Generation whose RECOVER is under way or was accepted. */
  sentGeneration: number;
  sentAtMs: number;
  /** Generation that failed, and when another may be chosen. */
  failedGeneration: number;
  retryAtMs: number;
  attempts: number;
  error: string | null;
  /** Failures by the master that had it, and those that had no memory for it. */
  failures: Map<number, number>;
  outOfMemory: Set<number>;
}

export class Recovery {
  private readonly backups = new Map<number, BackupState>();
  private readonly partitions = new Map<number, PartitionState>();
  /** Free memory of masters; null: asked, not known. */
  private readonly freeBytes = new Map<number, number | null>();
  /** Replicas that recovery masters found damaged: segment id -> backups. */
  private readonly damaged = new Map<number, Set<number>>();
  private log: DiscoveredLog | null = null;
  private firstCompleteAtMs: number | null = null;
  private commitPending = false;
  /** Asked for once: nothing is left to be decided after it. */
  private releaseAsked = false;
  /** Grows when the partitions are announced again, under the same ids. */
  private round = 1;
  /** Generations up to these were given out by an earlier coordinator process. */
  private readonly inherited = new Map<number, number>();

  /** Why it does not go on; null while it does. */
  waitingFor: string | null = null;
  /** What of the log is missing, and who may have it; null if nothing is known to be. */
  gap: (LogGap & { holders: ReplicaHolder[] }) | null = null;

  constructor(
    record: RecoveryRecord,
    private readonly timings: RecoveryTimings = RECOVERY_TIMINGS,
  ) {
    for (const { partitionId, generation, state } of record.partitions ?? []) {
      if (state === 'running') this.inherited.set(partitionId, generation);
    }
  }

  get discovered(): DiscoveredLog | null {
    return this.log;
  }

  /** Backups that are up and have not listed their replicas. */
  get unanswered(): number[] {
    const backups = [...this.backups].filter(([, { fence }]) => fence !== 'answered');
    return backups.map(([serverId]) => serverId);
  }

  partitionError(partitionId: number): string | null {
    return this.partitions.get(partitionId)?.error ?? null;
  }

  step(event: RecoveryEvent, view: RecoveryView, nowMs: number): RecoveryEffect[] {
    this.take(event, view, nowMs);
    this.followServers(view);
    const effects: RecoveryEffect[] = [];
    this.advance(view, nowMs, effects);
    return effects;
  }

  private take(event: RecoveryEvent, view: RecoveryView, nowMs: number): void {
    if (event.kind === 'fenced' || event.kind === 'fence-failed') {
      const backup = this.backups.get(event.serverId);
      if (backup === undefined) return;
      backup.fence = event.kind === 'fenced' ? 'answered' : 'ask';
      if (event.kind === 'fenced') backup.report = event.report;
      else backup.retryAtMs = nowMs + this.timings.retryMs;
    } else if (event.kind === 'partitions-started' || event.kind === 'partitions-failed') {
      const backup = this.backups.get(event.serverId);
      if (backup === undefined || event.round !== this.round) return;
      backup.partitions = event.kind === 'partitions-started' ? 'started' : 'ask';
      backup.partitionsRetryAtMs = nowMs + this.timings.retryMs;
    } else if (event.kind === 'committed') {
      this.commitPending = false;
    } else if (event.kind === 'recover-sent' || event.kind === 'recover-lost') {
      const partition = this.partition(event.partitionId);
      if (partition.sentGeneration !== event.generation) return;
      const pauseMs =
        event.kind === 'recover-sent' ? this.timings.recoverRepeatMs : this.timings.retryMs;
      partition.sentAtMs = nowMs + pauseMs - this.timings.recoverRepeatMs;
    } else if (event.kind === 'partition-failed') {
      this.partitionFailed(event, view, nowMs);
    } else if (event.kind === 'load') {
      this.freeBytes.set(event.serverId, event.freeBytes);
    }
  }

  /**
   * The partition gets a new generation later, and the log is listed again before that: replicas
   * that could not be read may be gone, others may have come. Backups that know the partitions go
   * on with them; only if that does not help are they told again.
   */
  private partitionFailed(
    event: Extract<RecoveryEvent, { kind: 'partition-failed' }>,
    view: RecoveryView,
    nowMs: number,
  ): void {
    const partition = this.partition(event.partitionId);
    if (event.generation <= partition.failedGeneration) return;
    partition.failedGeneration = event.generation;
    partition.error = event.error;
    this.blame(event, partition, view);
    const { partitionRetryMs, partitionRetryMaxMs } = this.timings;
    const pauseMs = Math.min(partitionRetryMaxMs, partitionRetryMs * 2 ** partition.attempts);
    partition.retryAtMs = nowMs + pauseMs;
    partition.attempts = Math.min(partition.attempts + 1, 16);
    this.log = null;
    this.firstCompleteAtMs = null;
    const announceAgain = partition.attempts >= ATTEMPTS_BEFORE_ANNOUNCING;
    if (announceAgain) this.round++;
    for (const backup of this.backups.values()) {
      if (backup.fence === 'answered') backup.fence = 'ask';
      backup.retryAtMs = nowMs;
      if (announceAgain) backup.partitions = 'ask';
      backup.partitionsRetryAtMs = nowMs;
    }
  }

  /** Remembers what the failure says of the master and of replicas. */
  private blame(
    { partitionId, outOfMemory, unreadable }: Extract<RecoveryEvent, { kind: 'partition-failed' }>,
    partition: PartitionState,
    { record }: RecoveryView,
  ): void {
    const serverId = record.partitions?.find((p) => p.partitionId === partitionId)?.serverId ?? 0;
    partition.failures.set(serverId, (partition.failures.get(serverId) ?? 0) + 1);
    if (outOfMemory === true) partition.outOfMemory.add(serverId);
    if (unreadable !== undefined) {
      const known = this.damaged.get(unreadable.segmentId) ?? new Set();
      this.damaged.set(unreadable.segmentId, new Set([...known, ...unreadable.servers]));
    }
    // What masters have left may have changed much since they were asked.
    this.freeBytes.clear();
  }

  private partition(partitionId: number): PartitionState {
    let partition = this.partitions.get(partitionId);
    if (partition === undefined) {
      partition = {
        sentGeneration: 0,
        sentAtMs: 0,
        failedGeneration: 0,
        retryAtMs: 0,
        attempts: 0,
        error: null,
        failures: new Map(),
        outOfMemory: new Set(),
      };
      this.partitions.set(partitionId, partition);
    }
    return partition;
  }

  /** Backups that died are forgotten with their replicas; those that joined are asked too. */
  private followServers({ upServers }: RecoveryView): void {
    const up = new Set<number>();
    for (const { serverId, backup } of upServers) {
      if (!backup) continue;
      up.add(serverId);
      if (this.backups.has(serverId)) continue;
      this.backups.set(serverId, {
        fence: 'ask',
        report: null,
        retryAtMs: 0,
        partitions: 'ask',
        partitionsRetryAtMs: 0,
      });
    }
    for (const serverId of this.backups.keys())
      if (!up.has(serverId)) this.backups.delete(serverId);
  }

  private advance(view: RecoveryView, nowMs: number, effects: RecoveryEffect[]): void {
    const { partitions } = view.record;
    const over =
      partitions === null ? view.tablets.length === 0 : partitions.every((p) => p.state === 'done');
    if (over) {
      this.waitingFor = null;
      this.gap = null;
      if (!this.releaseAsked) effects.push({ kind: 'release' });
      this.releaseAsked = true;
      return;
    }
    if (partitions !== null) this.skip(view, partitions, effects);
    this.fence(nowMs, effects);
    this.askLoads(view, effects);
    if (!this.findLog(view, nowMs, effects)) return;
    if (partitions === null) {
      this.plan(view, effects);
      return;
    }
    this.startPartitions(nowMs, effects);
    this.assign(view, partitions, nowMs, effects);
    this.recover(view, partitions, nowMs, effects);
  }

  /** A dropped table is not waited for: its log may never be complete again. */
  private skip(
    { tablets }: RecoveryView,
    partitions: readonly PartitionRecord[],
    effects: RecoveryEffect[],
  ): void {
    const wanted = new Set(tablets.map(({ tableId }) => tableId));
    const empty = partitions.some(
      (partition) =>
        partition.state !== 'done' && !partition.tablets.some((t) => wanted.has(t.tableId)),
    );
    if (!empty || this.commitPending) return;
    this.commitPending = true;
    effects.push({ kind: 'commit-skip' });
  }

  private fence(nowMs: number, effects: RecoveryEffect[]): void {
    for (const [serverId, backup] of this.backups) {
      if (backup.fence !== 'ask') continue;
      if (backup.retryAtMs > nowMs) {
        effects.push({ kind: 'wake', atMs: backup.retryAtMs });
        continue;
      }
      backup.fence = 'asked';
      effects.push({ kind: 'fence', serverId });
    }
  }

  /** Nothing waits for the answers: who has not said what memory it has may have enough. */
  private askLoads({ upServers }: RecoveryView, effects: RecoveryEffect[]): void {
    for (const { serverId, master } of upServers) {
      if (!master || this.freeBytes.has(serverId)) continue;
      this.freeBytes.set(serverId, null);
      effects.push({ kind: 'ask-load', serverId });
    }
  }

  /** Phase 2. A log that was found stays found: later backups add replicas to it. */
  private findLog(view: RecoveryView, nowMs: number, effects: RecoveryEffect[]): boolean {
    const reports = new Map<number, BackupReport>();
    let slow = 0;
    for (const [serverId, { report, fence }] of this.backups) {
      if (report !== null && fence === 'answered') reports.set(serverId, report);
      else if (fence === 'asked') slow++;
    }
    const { damaged } = this;
    const { minimumOpen, record } = view;
    const discovery = discoverLog({ reports, minimumOpen, damaged, lost: record.lost });
    this.gap = null;
    if (!discovery.complete) {
      const holders = view.holders(new Set(reports.keys()));
      this.gap = { ...discovery.gap, holders };
      // Replicas of a log that was complete may be lost later: then recovery masters that run
      // go on with what they have, and new ones wait.
      this.log = null;
      this.firstCompleteAtMs = null;
      this.waitingFor = gapText(discovery.gap, reports.size, holders);
      effects.push({ kind: 'wake', atMs: nowMs + this.timings.retryMs });
      return false;
    }
    this.firstCompleteAtMs ??= nowMs;
    const graceEndsMs = this.firstCompleteAtMs + this.timings.fenceGraceMs;
    if (this.log === null && slow > 0 && nowMs < graceEndsMs) {
      this.waitingFor = `${slow} more backups to answer`;
      effects.push({ kind: 'wake', atMs: graceEndsMs });
      return false;
    }
    this.log = discovery.log;
    this.waitingFor = null;
    return true;
  }

  /** Phase 3. */
  private plan(view: RecoveryView, effects: RecoveryEffect[]): void {
    const masters = view.upServers.filter(({ master }) => master);
    if (masters.length === 0) this.waitingFor = 'a master to recover on';
    if (masters.length === 0 || this.commitPending || this.log === null) return;
    this.commitPending = true;
    const free = masters.map(({ serverId }) => this.freeBytes.get(serverId) ?? null);
    effects.push({
      kind: 'commit-plan',
      partitions: planPartitions(view.tablets, this.log.tabletStats, free),
    });
  }

  /** Phase 4: backups learn the partitions and start to read and split. */
  private startPartitions(nowMs: number, effects: RecoveryEffect[]): void {
    for (const [serverId, backup] of this.backups) {
      if (backup.fence !== 'answered' || backup.partitions !== 'ask') continue;
      if (backup.partitionsRetryAtMs > nowMs) {
        effects.push({ kind: 'wake', atMs: backup.partitionsRetryAtMs });
        continue;
      }
      backup.partitions = 'asked';
      const segments = this.log?.segments ?? [];
      const segmentIds = segments
        .filter(({ backups }) => backups[0] === serverId)
        .map(({ segmentId }) => segmentId);
      effects.push({ kind: 'start-partitions', serverId, round: this.round, segmentIds });
    }
  }

  private assign(
    view: RecoveryView,
    partitions: readonly PartitionRecord[],
    nowMs: number,
    effects: RecoveryEffect[],
  ): void {
    if (this.commitPending) return;
    const candidates = this.candidates(view);
    const open: PartitionRecord[] = [];
    for (const partition of partitions) {
      if (partition.state === 'done') continue;
      const retryAtMs = this.needsMaster(partition, candidates);
      if (retryAtMs === null) {
        const master = candidates.get(partition.serverId ?? 0);
        if (master !== undefined) give(master, partition);
      } else if (retryAtMs > nowMs) effects.push({ kind: 'wake', atMs: retryAtMs });
      else open.push(partition);
    }
    if (open.length === 0) return;
    if (candidates.size === 0) {
      this.waitingFor = 'a master to recover on';
      return;
    }
    const pool = withoutDraining(candidates, view);
    const assignments: Assignment[] = [];
    for (const partition of open.sort((a, b) => b.bytes - a.bytes)) {
      const { partitionId, generation, bytes } = partition;
      const history = this.partition(partitionId);
      // All have tried in vain: memory may have come free.
      if (history.outOfMemory.size >= pool.length) history.outOfMemory.clear();
      const turn = view.record.recoveryId;
      const chosen = chooseMaster(pool, bytes, history, turn);
      if (chosen === null) continue;
      give(chosen, partition);
      assignments.push({ partitionId, afterGeneration: generation, serverId: chosen.serverId });
    }
    this.commitPending = true;
    effects.push({ kind: 'commit-assignments', assignments });
  }

  private candidates({ upServers, busy }: RecoveryView): Map<number, MasterCandidate> {
    const masters = upServers.filter(({ master }) => master);
    return new Map(
      masters.map(({ serverId }) => {
        const freeBytes = this.freeBytes.get(serverId) ?? null;
        const partitions = busy.get(serverId) ?? 0;
        return [serverId, { serverId, freeBytes, partitions, bytes: 0 }];
      }),
    );
  }

  /** When a partition may get a (new) recovery master; null if it has a good one. */
  private needsMaster(
    partition: PartitionRecord,
    up: ReadonlyMap<number, MasterCandidate>,
  ): number | null {
    const { partitionId, generation, serverId, state } = partition;
    if (state === 'waiting' || serverId === null || !up.has(serverId)) return 0;
    if (this.inherited.get(partitionId) === generation) return 0;
    const { failedGeneration, retryAtMs } = this.partition(partitionId);
    return failedGeneration === generation ? retryAtMs : null;
  }

  /** Phases 5 and 6 begin: the recovery masters are sent off. */
  private recover(
    view: RecoveryView,
    partitions: readonly PartitionRecord[],
    nowMs: number,
    effects: RecoveryEffect[],
  ): void {
    const segments = this.readySegments();
    if (segments === null) {
      effects.push({ kind: 'wake', atMs: nowMs + this.timings.retryMs });
      return;
    }
    const up = new Set(view.upServers.map(({ serverId }) => serverId));
    for (const { partitionId, tablets, serverId, generation, state } of partitions) {
      if (state !== 'running' || serverId === null || !up.has(serverId)) continue;
      if (this.inherited.get(partitionId) === generation) continue;
      const partition = this.partition(partitionId);
      if (partition.failedGeneration === generation) continue;
      const repeatAtMs = partition.sentAtMs + this.timings.recoverRepeatMs;
      if (partition.sentGeneration === generation && repeatAtMs > nowMs) {
        effects.push({ kind: 'wake', atMs: repeatAtMs });
        continue;
      }
      partition.sentGeneration = generation;
      partition.sentAtMs = nowMs;
      const { recoveryId, crashedServerId } = view.record;
      const request = {
        term: view.term,
        recoveryId,
        generation,
        crashedServerId,
        partition: { partitionId, tablets },
        segments,
      };
      effects.push({ kind: 'recover', serverId, request });
    }
  }

  /**
   * The segments with the backups that know the partitions. null while a backup has yet to
   * answer, or if a segment has none: a recovery master would only fail on it.
   */
  private readySegments(): RequestOf<'RECOVER'>['segments'] | null {
    if (this.log === null) return null;
    for (const { partitions } of this.backups.values()) if (partitions === 'asked') return null;
    const segments = this.log.segments.map(({ segmentId, length, backups }) => ({
      segmentId,
      length,
      backups: backups.filter((id) => this.backups.get(id)?.partitions === 'started'),
    }));
    return segments.every(({ backups }) => backups.length > 0) ? segments : null;
  }
}

/** A server that is being emptied takes a partition only if nobody else is there. */
function withoutDraining(
  candidates: ReadonlyMap<number, MasterCandidate>,
  { upServers }: RecoveryView,
): MasterCandidate[] {
  const draining = new Set(upServers.flatMap((s) => (s.draining ? [s.serverId] : [])));
  const staying = [...candidates.values()].filter(({ serverId }) => !draining.has(serverId));
  return staying.length > 0 ? staying : [...candidates.values()];
}

/** The master works on this partition, or is to. */
function give(master: MasterCandidate, { bytes }: PartitionRecord): void {
  master.partitions++;
  master.bytes += bytes;
}

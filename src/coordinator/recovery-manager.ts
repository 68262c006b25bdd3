/**
 * Runs a `Recovery` machine for every recovery in the committed state, all of them in parallel, and
 * performs their effects. It owns the calls, the timers and the reports; every decision is the
 * machine's or that of a commit.
 */
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { RecoveryReport } from '../rpc/messages.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import { acceptedBefore, decideAcceptLoss, type LossEvidence } from './accepted-loss.js';
import type { CoordinatorContext } from './context.js';
import type { RecoveryRecord, ServerRecord } from './coordinator-state.js';
import { holdersOf } from './log-gap.js';
import type { LeaseEnd, ReadLeases } from './read-leases.js';
import {
  RECOVERY_TIMINGS,
  Recovery,
  type RecoveryEffect,
  type RecoveryEvent,
  type RecoveryView,
} from './recovery.js';
import { decideAssign, decidePlan, decideSkip } from './recovery-record.js';
import { RecoveryProgress } from './recovery-report.js';
import { decideRelease } from './server-list.js';
import { decideOwnership } from './tables.js';

const REPORTS_MAX = 20;
const COMPLETE_ATTEMPTS_MAX = 3;
/** A master that does not say at once what memory it has is taken to have enough. */
const LOAD_TIMEOUT_MS = 500;
const SEGMENT_BYTES = 8 * 1024 * 1024;
/** The share of log memory that live objects can fill before cleaning gets nowhere. */
const USABLE_SHARE = 0.9;

interface Run {
  readonly recoveryId: number;
  readonly crashedServerId: number;
  readonly machine: Recovery;
  readonly progress: RecoveryProgress;
  /** Until then the crashed master may answer reads. */
  readonly leaseEnd: LeaseEnd;
  wakeAtMs: number;
  cancelWake: () => void;
}

export class RecoveryManager {
  private readonly runs = new Map<number, Run>();
  private readonly doneReports: RecoveryReport[] = [];

  constructor(
    private readonly context: CoordinatorContext,
    private readonly leases: ReadLeases,
    private readonly timings = RECOVERY_TIMINGS,
  ) {}

  /** The committed state has changed. */
  kick(): void {
    for (const record of this.context.state.recoveries.values()) {
      if (!this.runs.has(record.recoveryId)) this.begin(record);
    }
    for (const run of [...this.runs.values()]) this.step(run, { kind: 'look' });
  }

  /** Running recoveries, then the newest finished ones. */
  reports(): RecoveryReport[] {
    const running = [...this.runs.values()].map((run) => this.report(run));
    return [...running, ...this.doneReports];
  }

  /** RECOVERY_MASTER_FINISHED: phase 7 of one partition, or its failure. */
  async finished(
    request: RequestOf<'RECOVERY_MASTER_FINISHED'>,
  ): Promise<ReplyOf<'RECOVERY_MASTER_FINISHED'>> {
    const run = this.runs.get(request.recoveryId);
    if (!request.ok) {
      if (run) this.failed(run, request);
      return { committed: false };
    }
    if (run) await this.leaseEnds(run);
    await this.context.faultPoint('recover-own-1');
    const committed = await this.context.commit((state) => decideOwnership(state, request));
    if (committed) run?.progress.partitionFinished(request);
    await this.context.faultPoint('recover-own-2');
    if (committed && run) {
      this.context.log('info', 'a recovery master took over its partition', {
        ...this.fields(request.recoveryId),
        partitionId: request.partitionId,
        serverId: request.serverId,
        objects: request.objects,
        bytes: request.bytes,
      });
    }
    return { committed };
  }

  /** No tablet has a new owner while the old one may answer reads. */
  private async leaseEnds({ leaseEnd }: Run): Promise<void> {
    for (;;) {
      const leftMs = leaseEnd.atMs - this.context.clock.monotonicMs();
      if (leftMs <= 0) break;
      await new Promise<void>((resolve) => this.context.after(Math.ceil(leftMs), resolve));
    }
    await this.context.faultPoint('lease-5');
  }

  /**
   * ACCEPT_LOSS. What is missing is looked up at the commit's turn, so that nothing is given up
   * that a backup has brought meanwhile.
   */
  async acceptLoss(request: RequestOf<'ACCEPT_LOSS'>): Promise<ReplyOf<'ACCEPT_LOSS'>> {
    await this.context.faultPoint('loss-1');
    const known = acceptedBefore(this.context.state, request);
    const loss = await this.context.commit((state) => {
      const evidence = this.lossEvidence(state.recoveryOf(request.serverId)?.recoveryId);
      return decideAcceptLoss(state, request, evidence, this.context.now());
    });
    if (known === null)
      this.context.log('warn', 'an operator gave up a part of a log', { ...loss });
    await this.context.faultPoint('loss-2');
    return { loss };
  }

  private lossEvidence(recoveryId: number | undefined): LossEvidence {
    const machine = recoveryId === undefined ? undefined : this.runs.get(recoveryId)?.machine;
    if (machine === undefined) return { gap: null, unanswered: [] };
    return { gap: machine.gap, unanswered: machine.unanswered };
  }

  /** Only the newest generation of a partition that is not done can fail. */
  private failed(run: Run, request: RequestOf<'RECOVERY_MASTER_FINISHED'>): void {
    const { recoveryId, partitionId, generation, serverId } = request;
    const error = request.error ?? 'unknown error';
    const partitions = this.context.state.recoveries.get(recoveryId)?.partitions ?? [];
    const current = partitions.some(
      (partition) =>
        partition.partitionId === partitionId &&
        partition.generation === generation &&
        partition.serverId === serverId &&
        partition.state === 'running',
    );
    const fields = { ...this.fields(recoveryId), partitionId, generation, serverId, error };
    this.context.log(current ? 'warn' : 'info', 'a recovery master failed', fields);
    if (!current) return;
    const { unreadable } = request;
    const outOfMemory = error.startsWith('OUT_OF_MEMORY');
    const failure = { partitionId, generation, error, outOfMemory, unreadable };
    this.step(run, { kind: 'partition-failed', ...failure });
  }

  private fields(recoveryId: number): Record<string, unknown> {
    return { recoveryId, crashedServerId: this.runs.get(recoveryId)?.crashedServerId };
  }

  private begin(record: RecoveryRecord): void {
    const run: Run = {
      recoveryId: record.recoveryId,
      crashedServerId: record.crashedServerId,
      machine: new Recovery(record, this.timings),
      progress: new RecoveryProgress(record),
      leaseEnd: this.leases.begin(record.crashedServerId),
      wakeAtMs: Number.POSITIVE_INFINITY,
      cancelWake: () => undefined,
    };
    this.runs.set(run.recoveryId, run);
    this.context.log('info', 'recovery begins', this.fields(run.recoveryId));
  }

  private report(run: Run): RecoveryReport {
    const { machine, progress } = run;
    const errorOf = (partitionId: number): string | null => machine.partitionError(partitionId);
    return progress.report(machine, errorOf, this.context.now());
  }

  private step(run: Run, event: RecoveryEvent): void {
    const { state } = this.context;
    const record = state.recoveries.get(run.recoveryId);
    const crashed = state.servers.get(run.crashedServerId);
    if (record === undefined || crashed === undefined) return;
    const nowMs = this.context.now();
    const waitedFor = run.machine.waitingFor;
    const effects = run.machine.step(event, this.view(record, crashed), nowMs);
    this.observe(run, record, waitedFor, nowMs);
    for (const effect of effects) this.perform(run, effect);
  }

  private view(record: RecoveryRecord, crashed: ServerRecord): RecoveryView {
    const { state } = this.context;
    const busy = new Map<number, number>();
    for (const { recoveryId, partitions } of state.recoveries.values()) {
      if (recoveryId === record.recoveryId) continue;
      for (const { serverId, state: partitionState } of partitions ?? []) {
        if (serverId === null || partitionState !== 'running') continue;
        busy.set(serverId, (busy.get(serverId) ?? 0) + 1);
      }
    }
    return {
      term: state.cluster.term,
      record,
      upServers: state.upServers(),
      tablets: state
        .tabletsOf(crashed.serverId)
        .map(({ tableId, startSlot, endSlot, ctimeSegmentId }) => ({
          tableId,
          startSlot,
          endSlot,
          ctimeSegmentId,
        })),
      minimumOpen: { segmentId: crashed.minOpenSegmentId, epoch: crashed.minOpenEpoch },
      busy,
      holders: (answered) => holdersOf(state, crashed.serverId, answered),
    };
  }

  private observe(run: Run, record: RecoveryRecord, waitedFor: string | null, nowMs: number): void {
    const { machine, progress } = run;
    const log = machine.discovered;
    if (log !== null) progress.logFound(log.segments.length, log.bytes, nowMs);
    if (record.partitions !== null) progress.planned(nowMs);
    progress.follow(record.partitions, nowMs);
    if (machine.waitingFor !== null && machine.waitingFor !== waitedFor) {
      const fields = { ...this.fields(run.recoveryId), waitingFor: machine.waitingFor };
      this.context.log('info', 'recovery waits', fields);
    }
  }

  private perform(run: Run, effect: RecoveryEffect): void {
    if (effect.kind === 'wake') {
      this.wake(run, effect.atMs);
      return;
    }
    this.context.background(this.work(run, effect), `recovery ${run.recoveryId}`);
  }

  private work(run: Run, effect: Exclude<RecoveryEffect, { kind: 'wake' }>): Promise<void> {
    switch (effect.kind) {
      case 'fence':
        return this.fence(run, effect.serverId);
      case 'start-partitions':
        return this.startPartitions(run, effect);
      case 'ask-load':
        return this.askLoad(run, effect.serverId);
      case 'recover':
        return this.recover(run, effect);
      case 'release':
        return this.release(run);
      default:
        return this.commit(run, effect);
    }
  }

  private wake(run: Run, atMs: number): void {
    if (run.wakeAtMs <= atMs) return;
    run.cancelWake();
    run.wakeAtMs = atMs;
    run.cancelWake = this.context.after(Math.max(1, atMs - this.context.now()), () => {
      run.wakeAtMs = Number.POSITIVE_INFINITY;
      this.step(run, { kind: 'look' });
    });
  }

  private async fence(run: Run, serverId: number): Promise<void> {
    const { recoveryId, crashedServerId } = run;
    const { term } = this.context.state.cluster;
    try {
      const request = { term, recoveryId, crashedServerId };
      run.leaseEnd.asked(serverId, this.context.clock.monotonicMs());
      const report = await this.context.call(serverId, 'START_READING_DATA', request);
      run.leaseEnd.answered(serverId, report.leaseRemainderMs, this.context.clock.monotonicMs());
      await this.context.faultPoint('recover-fence-1');
      this.step(run, { kind: 'fenced', serverId, report });
    } catch (error) {
      const { message } = asRekindleError(error);
      const fields = { ...this.fields(recoveryId), serverId, error: message };
      this.context.log('info', 'a backup did not list its replicas', fields);
      this.step(run, { kind: 'fence-failed', serverId, error: message });
    }
  }

  private async askLoad(run: Run, serverId: number): Promise<void> {
    let freeBytes: number | null = null;
    try {
      const options = { timeoutMs: LOAD_TIMEOUT_MS };
      const { master } = await this.context.call(serverId, 'GET_SERVER_STATS', {}, options);
      freeBytes = freeBytesOf(master ?? {});
    } catch (error) {
      const fields = { ...this.fields(run.recoveryId), serverId, error: String(error) };
      this.context.log('info', 'a master did not say what memory it has', fields);
    }
    this.step(run, { kind: 'load', serverId, freeBytes });
  }

  private async startPartitions(
    run: Run,
    { serverId, round, segmentIds }: Extract<RecoveryEffect, { kind: 'start-partitions' }>,
  ): Promise<void> {
    const { recoveryId, crashedServerId } = run;
    const record = this.context.state.recoveries.get(recoveryId);
    const partitions = (record?.partitions ?? []).map(({ partitionId, tablets }) => ({
      partitionId,
      tablets,
    }));
    const { term } = this.context.state.cluster;
    const request = { term, recoveryId, crashedServerId, partitions, segmentIds };
    let kind: 'partitions-started' | 'partitions-failed' = 'partitions-started';
    try {
      await this.context.call(serverId, 'START_PARTITIONS', request);
    } catch (error) {
      const fields = { ...this.fields(recoveryId), serverId, error: String(error) };
      this.context.log('info', 'a backup did not start the partitions', fields);
      kind = 'partitions-failed';
    }
    this.step(run, { kind, serverId, round });
  }

  private async recover(
    run: Run,
    { serverId, request }: Extract<RecoveryEffect, { kind: 'recover' }>,
  ): Promise<void> {
    const { partition, generation } = request;
    const { partitionId } = partition;
    const tableIds = [...new Set(partition.tablets.map(({ tableId }) => tableId))];
    // Of a table that is gone nothing will be this master's.
    const tables = tableIds.flatMap((tableId) => {
      const name = this.context.state.tables.get(tableId)?.name;
      return name === undefined ? [] : [{ tableId, name }];
    });
    try {
      await this.context.call(serverId, 'RECOVER', { ...request, tables });
      await this.context.faultPoint('recover-sent-1');
      this.step(run, { kind: 'recover-sent', partitionId, generation });
    } catch (error) {
      const known = asRekindleError(error);
      const fields = { ...this.fields(run.recoveryId), serverId, partitionId, error: `${known}` };
      this.context.log('info', 'a recovery master did not accept its partition', fields);
      const event: RecoveryEvent = known.retryable
        ? { kind: 'recover-lost', partitionId, generation }
        : { kind: 'partition-failed', partitionId, generation, error: `${known}` };
      this.step(run, event);
    }
  }

  private async commit(
    run: Run,
    effect: Extract<RecoveryEffect, { kind: `commit-${string}` }>,
  ): Promise<void> {
    const { recoveryId } = run;
    if (effect.kind === 'commit-plan') {
      await this.context.faultPoint('recover-plan-1');
      await this.context.commit((state) => decidePlan(state, recoveryId, effect.partitions));
      await this.context.faultPoint('recover-plan-2');
    } else if (effect.kind === 'commit-skip') {
      await this.context.commit((state) => decideSkip(state, recoveryId));
    } else {
      const { assignments } = effect;
      await this.context.commit((state) => decideAssign(state, recoveryId, assignments));
      await this.context.faultPoint('recover-plan-3');
    }
    this.step(run, { kind: 'committed' });
  }

  /** Phase 8. */
  private async release(run: Run): Promise<void> {
    const { recoveryId, crashedServerId } = run;
    await this.context.faultPoint('recover-release-1');
    const released = await this.context.commit((state) => decideRelease(state, recoveryId));
    if (!released) {
      // The machine asks when every partition is done and nothing is owned, and asks once.
      throw new RekindleError(
        'INTERNAL',
        `recovery ${recoveryId} is done, but server ${crashedServerId} still owns tablets`,
      );
    }
    await this.context.faultPoint('recover-release-2');
    run.cancelWake();
    run.progress.released(this.context.now());
    const report = this.report(run);
    this.runs.delete(recoveryId);
    this.doneReports.unshift(report);
    this.doneReports.length = Math.min(this.doneReports.length, REPORTS_MAX);
    const { totalMs, objects, bytes, segments, phases } = report;
    const times = Object.fromEntries(phases.map(({ phase, ms }) => [phase, ms]));
    const fields = {
      recoveryId,
      crashedServerId,
      totalMs,
      objects,
      bytes,
      segments,
      phases: times,
    };
    this.context.log('info', 'recovery is done', fields);
    for (const { serverId, backup } of this.context.state.upServers()) {
      if (!backup || report.partitions.length === 0) continue;
      this.context.background(
        this.complete(serverId, recoveryId, crashedServerId),
        'ending a recovery on a backup',
      );
    }
  }

  /** Memory of a backup only: what it frees on disk follows from the server list. */
  private async complete(
    serverId: number,
    recoveryId: number,
    crashedServerId: number,
  ): Promise<void> {
    for (let attempt = 1; attempt <= COMPLETE_ATTEMPTS_MAX; attempt++) {
      try {
        const { term } = this.context.state.cluster;
        const request = { term, recoveryId, crashedServerId };
        await this.context.call(serverId, 'RECOVERY_COMPLETE', request);
        return;
      } catch (error) {
        if (!this.context.state.isUp(serverId)) return;
        const fields = { recoveryId, serverId, attempt, error: String(error) };
        this.context.log('info', 'a backup did not hear of the end of a recovery', fields);
      }
    }
  }
}

/** What a master can take in, once its cleaner has done its work; null: it does not say. */
function freeBytesOf({
  memoryBytes,
  liveBytes,
  segmentsReserved = 0,
}: Record<string, number>): number | null {
  if (memoryBytes === undefined || liveBytes === undefined) return null;
  const usable = USABLE_SHARE * (memoryBytes - segmentsReserved * SEGMENT_BYTES);
  return Math.max(0, usable - liveBytes);
}

/**
 * One recovery without a cluster, for tests: the machine over a real coordinator state, with
 * backups and masters that answer when the test says so.
 */
import assert from 'node:assert/strict';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import { CoordinatorState, type Decision } from '../../src/coordinator/coordinator-state.js';
import { holdersOf } from '../../src/coordinator/log-gap.js';
import {
  Recovery,
  type RecoveryEffect,
  type RecoveryEvent,
} from '../../src/coordinator/recovery.js';
import { decideAssign, decidePlan, decideSkip } from '../../src/coordinator/recovery-record.js';
import { decideCrash, decideEnlist, decideRelease } from '../../src/coordinator/server-list.js';
import { decideCreated, decideCreateTable, decideOwnership } from '../../src/coordinator/tables.js';
import { report } from './log-reports.js';

export const MIB = 1024 * 1024;
export const NONE = { segmentId: 0, epoch: 0 };

/**
 * A cluster of five servers, one of which has crashed, with backups and masters that answer when
 * the test says so. Effects wait in `pending`; commits go through the real decisions.
 */
export class Scene {
  readonly state = new CoordinatorState();
  readonly pending: Exclude<RecoveryEffect, { kind: 'wake' }>[] = [];
  /** Masters that were asked what memory they have and have not said it. */
  readonly asked: number[] = [];
  machine: Recovery;
  nowMs = 0;
  released = false;
  /** Asked for by the present machine. */
  private releases = 0;
  private servers = 0;

  constructor(readonly owners = 4) {
    this.apply(decideStart(this.state, { replicas: 2 }, 'c'));
    for (let n = 0; n < owners + 1; n++) this.join();
    const create = { operationId: 'o', name: 't', span: 2 };
    const tableId = this.apply(decideCreateTable(this.state, create));
    const taken = this.state.tables.get(tableId)?.tablets.map(({ serverId }) => serverId) ?? [];
    this.apply(decideCreated(this.state, tableId, taken));
    this.apply(decideCrash(this.state, 1, 0, 0));
    this.machine = this.newMachine();
  }

  apply<T>({ writes, result }: Decision<T>): T {
    this.state.apply(structuredClone(writes));
    return result;
  }

  join(): number {
    const n = ++this.servers;
    const request = {
      nonce: `n${n}`,
      replacesId: null,
      clusterId: null,
      address: `h:${n}`,
      host: `host-${n}`,
      rack: null,
      master: true,
      backup: true,
      memoryBytes: 0,
    };
    return this.apply(decideEnlist(this.state, request, this.nowMs)).serverId;
  }

  newMachine(): Recovery {
    const record = this.state.recoveryOf(1);
    assert.ok(record);
    return new Recovery(record);
  }

  /** As after a restart: nothing is left but the committed state. */
  restart(): void {
    this.pending.length = 0;
    this.asked.length = 0;
    this.releases = 0;
    this.machine = this.newMachine();
    this.step({ kind: 'look' });
  }

  step(event: RecoveryEvent): void {
    const record = this.state.recoveryOf(1);
    if (record === undefined) return;
    const tablets = this.state.tabletsOf(1);
    const view = {
      term: 1,
      record,
      upServers: this.state.upServers(),
      tablets,
      minimumOpen: NONE,
      busy: new Map<number, number>(),
      holders: (answered: ReadonlySet<number>) => holdersOf(this.state, 1, answered),
    };
    for (const effect of this.machine.step(event, view, this.nowMs)) {
      if (effect.kind === 'release') assert.equal(++this.releases, 1, 'released once');
      if (effect.kind === 'ask-load') this.asked.push(effect.serverId);
      else if (effect.kind !== 'wake') this.pending.push(effect);
    }
  }

  tellLoads(freeBytesOf: (serverId: number) => number | null): void {
    for (const serverId of this.asked.splice(0)) {
      this.step({ kind: 'load', serverId, freeBytes: freeBytesOf(serverId) });
    }
  }

  kill(serverId: number): void {
    this.apply(decideCrash(this.state, serverId, this.nowMs, this.nowMs));
    this.step({ kind: 'look' });
  }

  take(kind: RecoveryEffect['kind']): RecoveryEffect[] {
    const taken = this.pending.filter((effect) => effect.kind === kind);
    for (const effect of taken) this.pending.splice(this.pending.indexOf(effect as never), 1);
    return taken;
  }

  isUp(serverId: number): boolean {
    return this.state.isUp(serverId);
  }

  /** Performs one effect; every backup holds the whole log unless `reportOf` says otherwise. */
  perform(effect: RecoveryEffect, reportOf = (_: number) => WHOLE_LOG): void {
    if (effect.kind === 'fence') {
      const { serverId } = effect;
      this.step({ kind: 'fenced', serverId, report: reportOf(serverId) });
    } else if (effect.kind === 'start-partitions') {
      const { serverId, round } = effect;
      this.step({ kind: 'partitions-started', serverId, round });
    } else if (effect.kind === 'commit-plan') {
      this.apply(decidePlan(this.state, 1, effect.partitions));
      this.step({ kind: 'committed' });
    } else if (effect.kind === 'commit-assignments') {
      this.apply(decideAssign(this.state, 1, effect.assignments));
      this.step({ kind: 'committed' });
    } else if (effect.kind === 'commit-skip') {
      this.apply(decideSkip(this.state, 1));
      this.step({ kind: 'committed' });
    } else if (effect.kind === 'recover') {
      const { partition, generation } = effect.request;
      const { partitionId } = partition;
      this.step({ kind: 'recover-sent', partitionId, generation });
    } else if (effect.kind === 'release') {
      this.released = this.apply(decideRelease(this.state, 1));
      assert.ok(this.released, 'a release is only asked for when it can be');
    }
  }

  /** Performs effects until only RECOVERs are left; returns those. */
  settle(reportOf = (_: number) => WHOLE_LOG): Extract<RecoveryEffect, { kind: 'recover' }>[] {
    const recovers: Extract<RecoveryEffect, { kind: 'recover' }>[] = [];
    for (let turn = 0; turn < 1_000; turn++) {
      const effect = this.pending.shift();
      if (effect === undefined) return recovers;
      if (effect.kind === 'recover') recovers.push(effect);
      this.perform(effect, reportOf);
    }
    assert.fail('the machine does not come to rest');
  }

  finish(effect: Extract<RecoveryEffect, { kind: 'recover' }>): boolean {
    const { partition, generation, recoveryId } = effect.request;
    const request = {
      recoveryId,
      partitionId: partition.partitionId,
      generation,
      serverId: effect.serverId,
      ok: true,
      error: null,
      ctimeSegmentId: 5,
      objects: 1,
      bytes: 1,
      readMs: 0,
      replayMs: 0,
      durableMs: 0,
    };
    const committed = this.apply(decideOwnership(this.state, request));
    this.step({ kind: 'look' });
    return committed;
  }
}

export const WHOLE_LOG = report(
  [
    [1, 8 * MIB],
    [2, 100, 'open'],
  ],
  [2, [1, 2]],
);
WHOLE_LOG.digests[0]?.tabletStats.push({
  tableId: 1,
  startSlot: 0,
  endSlot: 2 ** 32 - 1,
  bytes: 64 * MIB,
  records: 1,
});

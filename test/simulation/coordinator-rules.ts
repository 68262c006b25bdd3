/**
 * What must hold of the coordinator's state after every commit, whoever made it, as one reads it in
 * docs/coordinator.md. It sees the commits alone, in their order, and what logs servers have.
 */
import assert from 'node:assert/strict';
import {
  type CoordinatorState,
  type PartitionRecord,
  CoordinatorState as State,
  type TableRecord,
  type TabletRecord,
} from '../../src/coordinator/coordinator-state.js';
import type { SimulatedLog } from './simulated-master.js';
import type { SimulatedCommit } from './simulated-storage.js';

const SLOT_LAST = 2 ** 32 - 1;

export type Happening =
  | 'commits'
  | 'leaders'
  | 'joins'
  | 'crashes'
  | 'recovered'
  | 'newMasters'
  | 'losses'
  | 'created'
  | 'creatingMoved'
  | 'dropped'
  | 'split'
  | 'merged'
  | 'drained'
  | 'migrated'
  | 'aborted';

export class CoordinatorRules {
  state = new State();
  /** How often what has happened: a rule that nothing puts to the test shows nothing. */
  readonly seen: Record<Happening, number> = {
    ...{ commits: 0, leaders: 0, joins: 0, crashes: 0, recovered: 0, newMasters: 0, losses: 0 },
    ...{ created: 0, creatingMoved: 0, dropped: 0, split: 0, merged: 0, drained: 0 },
    ...{ migrated: 0, aborted: 0 },
  };
  private before = new State();
  private readonly used = new Set<string>();
  private readonly operations = new Set<string>();
  private readonly nonces = new Map<string, number>();
  /** By server, the tablets that it has given away, and what its log had then. */
  private readonly lost = new Map<number, { tablet: TabletRecord; nextSegmentId: number }[]>();

  constructor(private readonly logs: ReadonlyMap<number, SimulatedLog>) {}

  committed({ leadership, writes }: SimulatedCommit): void {
    this.before = State.from(this.state.exists ? this.state.pairs() : []);
    this.state.apply(writes);
    assert.equal(this.state.cluster.term, leadership.term, 'the term of who leads is committed');
    if (this.before.exists) this.clusterGrows(this.before, this.state);
    this.idsAreNew();
    this.serversEndOnce();
    for (const table of this.state.tables.values()) this.tableIsWhole(table);
    this.recoveriesGoOn();
    this.lossesStay();
    this.operationsAreOnce();
    if (this.before.exists) this.count(this.before, this.state);
  }

  /** Whether it is one, or was. */
  knows(serverId: number): boolean {
    return this.used.has(`server ${serverId}`);
  }

  private count(old: CoordinatorState, now: CoordinatorState): void {
    const { seen } = this;
    seen.commits++;
    if (old.cluster.term !== now.cluster.term) seen.leaders++;
    for (const [serverId, { status, drain }] of now.servers) {
      const before = old.servers.get(serverId);
      if (before === undefined) seen.joins++;
      if (before?.status === 'up' && status === 'crashed') seen.crashes++;
      if (before?.drain?.state === 'draining' && drain?.state === 'drained') seen.drained++;
    }
    for (const [recoveryId, { partitions }] of now.recoveries) {
      for (const [at, { generation }] of (partitions ?? []).entries()) {
        const before = old.recoveries.get(recoveryId)?.partitions?.[at]?.generation ?? 0;
        if (generation > 1 && generation > before) seen.newMasters++;
      }
    }
    for (const id of old.recoveries.keys()) if (!now.recoveries.has(id)) seen.recovered++;
    for (const [migrationId, { state }] of now.migrations) {
      if (old.migrations.get(migrationId)?.state === state) continue;
      if (state === 'committed') seen.migrated++;
      if (state === 'aborting') seen.aborted++;
    }
    seen.losses += now.losses.size - old.losses.size;
    for (const table of now.tables.values()) this.countTable(table, old.tables.get(table.tableId));
  }

  private countTable(now: TableRecord, old: TableRecord | undefined): void {
    const { seen } = this;
    if (old === now) return;
    if (now.state === 'normal' && old?.state === 'creating') seen.created++;
    if (now.state === 'dropping') seen.dropped++;
    if (now.state === 'creating' && old !== undefined) seen.creatingMoved++;
    if (now.state !== 'normal' || old?.state !== 'normal') return;
    if (now.tablets.length < old.tablets.length) seen.merged++;
    const owners = (table: TableRecord): string =>
      [...new Set(table.tablets.map(({ serverId }) => serverId))].join();
    const more = now.tablets.length > old.tablets.length;
    if (more && owners(now) === owners(old)) seen.split++;
  }

  private clusterGrows({ cluster: old }: CoordinatorState, state: CoordinatorState): void {
    const { cluster } = state;
    const counters = ['term', 'nextServerIndex', 'nextTableId', 'nextRecoveryId'] as const;
    for (const counter of counters) assert.ok(cluster[counter] >= old[counter], counter);
    assert.equal(cluster.clusterId, old.clusterId);
    const { version, term: _, ...list } = state.serverList();
    const { version: versionBefore, term: __, ...listBefore } = this.before.serverList();
    assert.ok(version >= versionBefore, 'the version of the list does not go back');
    if (version === versionBefore) assert.deepEqual(list, listBefore, 'a new list, an old version');
  }

  private idsAreNew(): void {
    const { servers, tables, recoveries, migrations, losses } = this.state;
    const kinds = {
      server: [servers, this.before.servers],
      table: [tables, this.before.tables],
      // They share a counter.
      recovery: [recoveries, this.before.recoveries],
      migration: [migrations, this.before.migrations],
      loss: [losses, this.before.losses],
    } as const;
    for (const [kind, [now, old]] of Object.entries(kinds)) {
      for (const id of now.keys()) {
        if (old.has(id)) continue;
        const key = `${kind === 'migration' ? 'recovery' : kind} ${id}`;
        assert.ok(!this.used.has(key), `${key} is used twice`);
        this.used.add(key);
      }
    }
  }

  private serversEndOnce(): void {
    for (const [serverId, server] of this.state.servers) {
      const old = this.before.servers.get(serverId);
      // Who was recovered before it heard of its id joins anew.
      const known = this.nonces.get(server.nonce) ?? serverId;
      const twice = known !== serverId && this.state.servers.has(known);
      assert.ok(!twice, `two ids for ${server.nonce}`);
      this.nonces.set(server.nonce, serverId);
      const crashed = server.status === 'crashed';
      assert.ok(old?.status !== 'crashed' || crashed, `server ${serverId} has risen again`);
      const recovered = [...this.state.recoveries.values()].filter(
        (each) => each.crashedServerId === serverId,
      );
      assert.equal(recovered.length, crashed ? 1 : 0, `recoveries of server ${serverId}`);
      if (old === undefined) continue;
      const raised =
        server.minOpenSegmentId > old.minOpenSegmentId ||
        (server.minOpenSegmentId === old.minOpenSegmentId &&
          server.minOpenEpoch >= old.minOpenEpoch);
      assert.ok(raised, `the minimum open segment of server ${serverId} went back`);
    }
    for (const [serverId, { status, drain }] of this.before.servers) {
      if (this.state.servers.has(serverId)) continue;
      assert.ok(status === 'crashed' || drain?.state === 'drained', `server ${serverId} vanished`);
    }
  }

  private tableIsWhole(table: TableRecord): void {
    const { tableId, tablets, state } = table;
    const old = this.before.tables.get(tableId);
    if (old === table) return;
    const order = { creating: 0, normal: 1, dropping: 2 };
    assert.ok(old === undefined || order[old.state] <= order[state], `table ${tableId} went back`);
    let next = 0;
    for (const { startSlot, endSlot, serverId } of tablets) {
      assert.equal(startSlot, next, `the tablets of table ${tableId} cover each slot once`);
      assert.ok(startSlot <= endSlot, 'a tablet has slots');
      next = endSlot + 1;
      const dead = state === 'normal' && !this.state.servers.has(serverId);
      assert.ok(!dead, `table ${tableId} is of server ${serverId}, which is no more`);
    }
    assert.equal(next, SLOT_LAST + 1, `the tablets of table ${tableId} cover all slots`);
    if (old === undefined || old.state === 'creating') return;
    for (const tablet of old.tablets) this.noteLost(tablet, tablets);
    for (const tablet of tablets) this.ownershipIsNew(tablet);
  }

  /** What the former owner has of the tablet must not count if it gets the tablet back. */
  private noteLost(old: TabletRecord, tablets: readonly TabletRecord[]): void {
    for (const tablet of tablets) {
      const gone = tablet.serverId !== old.serverId && common(tablet, old) !== null;
      if (!gone) continue;
      const part = common(tablet, old) as TabletRecord;
      const nextSegmentId = (this.logs.get(old.serverId)?.headSegmentId ?? 0) + 1;
      const lost = this.lost.get(old.serverId) ?? [];
      lost.push({ tablet: { ...old, ...part }, nextSegmentId });
      this.lost.set(old.serverId, lost);
    }
  }

  private ownershipIsNew(tablet: TabletRecord): void {
    for (const { tablet: lost, nextSegmentId } of this.lost.get(tablet.serverId) ?? []) {
      if (common(tablet, lost) === null) continue;
      const first = this.logs.get(tablet.serverId)?.firstSegmentId ?? 0;
      const countsFrom = Math.max(first, tablet.ctimeSegmentId);
      assert.ok(
        countsFrom >= nextSegmentId,
        `server ${tablet.serverId} has table ${tablet.tableId} from segment ${countsFrom} on, ` +
          `but had lost it before segment ${nextSegmentId}`,
      );
    }
  }

  private recoveriesGoOn(): void {
    for (const [recoveryId, { crashedServerId, partitions }] of this.state.recoveries) {
      assert.ok(!this.state.isUp(crashedServerId), 'who is recovered has crashed');
      const old = this.before.recoveries.get(recoveryId)?.partitions ?? [];
      for (const partition of old) partitionGoesOn(partition, partitions ?? []);
    }
    for (const [migrationId, { state }] of this.before.migrations) {
      const now = this.state.migrations.get(migrationId)?.state ?? 'over';
      assert.ok(now === state || state === 'running' || now === 'over', 'a migration went back');
      assert.ok(state !== 'running' || now !== 'over', `migration ${migrationId} was forgotten`);
    }
    for (const [tableId, { state }] of this.before.tables) {
      const now = this.state.tables.get(tableId)?.state;
      assert.ok(now !== undefined || state === 'dropping', `table ${tableId} was forgotten`);
    }
  }

  private lossesStay(): void {
    for (const [lossId, loss] of this.before.losses) {
      assert.deepEqual(this.state.losses.get(lossId), loss, 'a loss is kept for ever');
    }
  }

  private operationsAreOnce(): void {
    const { recentDrops, recentSplits = [] } = this.state.cluster;
    const old = this.before.exists ? this.before.cluster : null;
    for (const recent of [recentDrops, recentSplits]) {
      assert.equal(new Set(recent).size, recent.length, 'an operation was applied twice');
    }
    const known = new Set([...(old?.recentDrops ?? []), ...(old?.recentSplits ?? [])]);
    for (const operationId of [...recentDrops, ...recentSplits]) {
      if (known.has(operationId)) continue;
      assert.ok(!this.operations.has(operationId), `${operationId} was applied twice`);
      this.operations.add(operationId);
    }
  }
}

function common(a: TabletRecord, b: TabletRecord): Partial<TabletRecord> | null {
  const startSlot = Math.max(a.startSlot, b.startSlot);
  const endSlot = Math.min(a.endSlot, b.endSlot);
  return a.tableId === b.tableId && startSlot <= endSlot ? { startSlot, endSlot } : null;
}

function partitionGoesOn(old: PartitionRecord, partitions: readonly PartitionRecord[]): void {
  const now = partitions.find(({ partitionId }) => partitionId === old.partitionId);
  assert.ok(now !== undefined, 'a plan is not changed');
  assert.deepEqual(now.tablets, old.tablets, 'a plan is not changed');
  assert.ok(now.generation >= old.generation, 'a generation went back');
  assert.ok(old.state !== 'done' || now.state === 'done', 'what is done stays done');
}

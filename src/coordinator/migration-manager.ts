/**
 * Brings migrations to their end: lets the target fetch, and when the end is committed tells those
 * who must know. Each migration has one loop, which looks at the committed record again in each
 * turn, so it does the same after a restart.
 */
import { asRekindleError } from '../rpc/errors.js';
import type { MigrationReport } from '../rpc/messages.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { CoordinatorContext } from './context.js';
import type { MigrationRecord } from './coordinator-state.js';
import {
  decideAbortMigration,
  decideForgetMigration,
  decideMigrate,
  decideMigrated,
  ownsSomeOf,
} from './tablet-migration.js';
import { pauseUntilWoken, type Wakeable } from './wakeable.js';

const POLL_MS = 1_000;
const RETRY_MS = 100;
const RECENT_MAX = 20;

interface Loop extends Wakeable {
  /** As the loop saw it. */
  seen: MigrationRecord;
  objects: number;
  bytes: number;
}

export class MigrationManager {
  private readonly loops = new Map<number, Loop>();
  private readonly recent: MigrationReport[] = [];

  constructor(private readonly context: CoordinatorContext) {}

  /** Some migration may have changed, or a server. */
  kick(): void {
    for (const record of this.context.state.migrations.values()) {
      const loop = this.loops.get(record.migrationId);
      if (loop === undefined) {
        const fresh: Loop = { seen: record, wake: null, objects: 0, bytes: 0 };
        this.loops.set(record.migrationId, fresh);
        this.context.background(this.run(record.migrationId, fresh), 'a migration');
      } else if (loop.seen !== record || !this.bothUp(record)) loop.wake?.();
    }
  }

  async migrate(request: RequestOf<'MIGRATE_TABLET'>): Promise<ReplyOf<'MIGRATE_TABLET'>> {
    await this.context.faultPoint('migrate-1');
    const migrationId = await this.context.commit((state) =>
      decideMigrate(state, request, this.context.now()),
    );
    await this.context.faultPoint('migrate-2');
    return { migrationId };
  }

  async finished(request: RequestOf<'MIGRATION_FINISHED'>): Promise<ReplyOf<'MIGRATION_FINISHED'>> {
    await this.context.faultPoint('migrate-5');
    const committed = await this.context.commit((state) => decideMigrated(state, request));
    await this.context.faultPoint('migrate-6');
    const loop = this.loops.get(request.migrationId);
    if (loop !== undefined) {
      loop.objects = request.objects;
      loop.bytes = request.bytes;
    }
    return { committed };
  }

  reports(): MigrationReport[] {
    const running = [...this.context.state.migrations.values()].map((record) => {
      const { objects = 0, bytes = 0 } = this.loops.get(record.migrationId) ?? {};
      return { ...this.report(record, record.state), objects, bytes };
    });
    return [...this.recent, ...running];
  }

  private report(record: MigrationRecord, state: MigrationReport['state']): MigrationReport {
    const { ctimeSegmentId: _, ...rest } = record;
    const table = this.context.state.tables.get(record.tableId)?.name ?? `${record.tableId}`;
    return { ...rest, table, state, objects: 0, bytes: 0 };
  }

  private bothUp({ sourceServerId, targetServerId }: MigrationRecord): boolean {
    const { state } = this.context;
    return state.isUp(sourceServerId) && state.isUp(targetServerId);
  }

  private async run(migrationId: number, loop: Loop): Promise<void> {
    try {
      for (;;) {
        const record = this.context.state.migrations.get(migrationId);
        if (record === undefined) break;
        loop.seen = record;
        const delayMs = await this.turn(record, loop);
        if (delayMs > 0) await pauseUntilWoken(this.context, loop, delayMs);
      }
    } finally {
      this.loops.delete(migrationId);
    }
  }

  /** One look at the record; says how long to wait for the next. */
  private async turn(record: MigrationRecord, loop: Loop): Promise<number> {
    const { context } = this;
    const { migrationId } = record;
    if (record.state === 'running') {
      if (this.bothUp(record)) return this.fetch(record, loop);
      const reason = 'a server has crashed';
      await context.commit((state) => decideAbortMigration(state, migrationId, reason));
      return 0;
    }
    const told = await this.tell(record);
    if (!told) return RETRY_MS;
    await context.faultPoint('migrate-7');
    const { objects, bytes } = loop;
    const state = record.state === 'committed' ? 'done' : 'aborted';
    const report = { ...this.report(record, state), objects, bytes };
    await context.commit((now) => decideForgetMigration(now, migrationId));
    this.recent.push(report);
    if (this.recent.length > RECENT_MAX) this.recent.shift();
    context.log('info', 'a migration is over', { ...report });
    return 0;
  }

  private async fetch(record: MigrationRecord, loop: Loop): Promise<number> {
    const { migrationId, tableId, startSlot, endSlot, sourceServerId, targetServerId } = record;
    const { cluster, tables } = this.context.state;
    const name = tables.get(tableId)?.name;
    if (name === undefined) {
      const reason = 'the table was dropped';
      await this.context.commit((state) => decideAbortMigration(state, migrationId, reason));
      return 0;
    }
    const { term } = cluster;
    const request = { migrationId, tableId, startSlot, endSlot, term, name, sourceServerId };
    try {
      const { objects, bytes } = await this.context.call(targetServerId, 'MIGRATE', request);
      loop.objects = objects;
      loop.bytes = bytes;
    } catch (error) {
      const { code, message } = asRekindleError(error);
      this.context.log('info', 'MIGRATE will be repeated', { migrationId, code, message });
      // It is over there, and a report of success would have come first.
      if (code === 'RECOVERY_UNKNOWN') {
        await this.context.commit((state) => decideAbortMigration(state, migrationId, message));
        return 0;
      }
    }
    return POLL_MS;
  }

  private async tell(record: MigrationRecord): Promise<boolean> {
    const { migrationId, tableId, startSlot, endSlot, sourceServerId, targetServerId } = record;
    const { term } = this.context.state.cluster;
    if (record.state === 'committed') {
      // It has come back by a recovery: what the source had was dropped before that could begin. If
      // it comes back while this is on its way, `before` tells.
      if (ownsSomeOf(this.context.state, sourceServerId, record)) return true;
      const range = { tableId, startSlot, endSlot, term, before: migrationId };
      return this.told(sourceServerId, 'DROP_TABLET_OWNERSHIP', range);
    }
    const end = { term, migrationId };
    const told = await Promise.all([
      this.told(targetServerId, 'END_MIGRATION', end),
      this.told(sourceServerId, 'END_MIGRATION', end),
    ]);
    return told.every((each) => each);
  }

  /** Who is not up any more need not know. */
  private async told<K extends 'DROP_TABLET_OWNERSHIP' | 'END_MIGRATION'>(
    serverId: number,
    name: K,
    request: RequestOf<K>,
  ): Promise<boolean> {
    if (!this.context.state.isUp(serverId)) return true;
    try {
      await this.context.call(serverId, name, request);
      return true;
    } catch (error) {
      const { code, message } = asRekindleError(error);
      this.context.log('info', `${name} will be repeated`, { serverId, code, message });
      return false;
    }
  }
}

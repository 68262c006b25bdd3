/**
 * Tablets that come to a simulated server and go from it: recoveries as `recovery-master.ts` runs
 * them, both ends of migrations as `migration-target.ts` and `migration-source.ts` do. What takes
 * time there takes time here; what is fetched is left out.
 */
import { asRekindleError, RekindleError } from '../../src/rpc/errors.js';
import type { SlotRange } from '../../src/rpc/messages.js';
import type { JsonRpcName, RequestOf } from '../../src/rpc/table.js';
import { overlaps, type SimulatedMaster, type SimulatedTablet } from './simulated-master.js';
import type { SimulatedServer } from './simulated-server.js';

type Recover = RequestOf<'RECOVER'>;
type Migrate = RequestOf<'MIGRATE'>;

interface RecoverTask {
  readonly request: Recover;
  cancelled: boolean;
  finished: Promise<void>;
}

interface MigrateTask {
  cancelled: boolean;
}

interface Giving {
  readonly request: RequestOf<'START_MIGRATION'>;
  readonly tablet: SimulatedTablet;
  released: boolean;
}

const BUSY_MS = 60;
const FROZEN_MS_MAX = 3_000;

export class SimulatedMoves {
  private readonly recoveries = new Map<string, RecoverTask>();
  private readonly migrations = new Map<number, MigrateTask>();
  private readonly ended = new Set<number>();
  private giving: Giving | null = null;
  private readonly gone = new Set<number>();

  constructor(
    private readonly server: SimulatedServer,
    private readonly master: SimulatedMaster,
  ) {}

  answer(name: JsonRpcName, request: unknown): unknown {
    switch (name) {
      case 'RECOVER':
        this.recover(request as Recover);
        return {};
      case 'MIGRATE':
        return this.migrate(request as Migrate);
      case 'START_MIGRATION':
        return this.give(request as RequestOf<'START_MIGRATION'>);
      case 'FREEZE_TABLET':
        return this.freeze(request as RequestOf<'FREEZE_TABLET'>);
      case 'END_MIGRATION': {
        const { migrationId } = request as RequestOf<'END_MIGRATION'>;
        this.giveNoMore(migrationId);
        this.endMigration(migrationId);
        return {};
      }
      default:
        throw new RekindleError('UNSUPPORTED_OPCODE', name);
    }
  }

  private recover(request: Recover): void {
    const key = `${request.recoveryId}/${request.partition.partitionId}`;
    const older = this.recoveries.get(key);
    if (older !== undefined && older.request.generation >= request.generation) return;
    const holding = [...this.recoveries.values()].filter(({ request: { partition } }) =>
      partition.tablets.some((a) => request.partition.tablets.some((b) => overlaps(a, b))),
    );
    if (holding.some((other) => other.request.recoveryId > request.recoveryId)) return;
    for (const other of holding) other.cancelled = true;
    const task: RecoverTask = { request, cancelled: false, finished: Promise.resolve() };
    this.recoveries.set(key, task);
    const before = Promise.all(holding.map(({ finished }) => finished));
    task.finished = before
      .then(() => this.runRecovery(task))
      .finally(() => {
        if (this.recoveries.get(key) === task) this.recoveries.delete(key);
      });
  }

  private async runRecovery(task: RecoverTask): Promise<void> {
    const { recoveryId, generation, partition } = task.request;
    const report = (ctimeSegmentId: number, error: string | null): Promise<boolean> =>
      this.claim(task, () =>
        this.server.coordinator.call(
          'RECOVERY_MASTER_FINISHED',
          {
            ...{ recoveryId, partitionId: partition.partitionId, generation },
            ...{ serverId: this.server.id, ok: error === null, error, ctimeSegmentId },
            ...{ objects: 1, bytes: 1, readMs: 1, replayMs: 1, durableMs: 1 },
          },
          { attempts: 1 },
        ),
      );
    await this.bring(task, partition.tablets, report, async () => undefined);
  }

  private migrate(request: Migrate): { objects: number; bytes: number } {
    const { migrationId } = request;
    if (this.migrations.has(migrationId)) return { objects: 1, bytes: 1 };
    if (this.ended.has(migrationId)) throw unknown(migrationId);
    const task: MigrateTask = { cancelled: false };
    this.migrations.set(migrationId, task);
    void this.runMigration(task, request).finally(() => {
      this.migrations.delete(migrationId);
      this.ended.add(migrationId);
    });
    return { objects: 0, bytes: 0 };
  }

  private async runMigration(task: MigrateTask, request: Migrate): Promise<void> {
    const { migrationId, sourceServerId, term, tableId, startSlot, endSlot } = request;
    const range = { tableId, startSlot, endSlot };
    const report = (ctimeSegmentId: number, error: string | null): Promise<boolean> =>
      this.claim(task, () =>
        this.server.coordinator.call(
          'MIGRATION_FINISHED',
          {
            ...{ migrationId, serverId: this.server.id, ok: error === null, error },
            ...{ ctimeSegmentId, objects: 1, bytes: 1 },
          },
          { attempts: 1 },
        ),
      );
    await this.bring(task, [range], report, async () => {
      const link = this.server.link(sourceServerId);
      const start = { ...range, migrationId, term };
      await this.patiently(task, () => link.call('START_MIGRATION', start));
      await this.pause(300);
      await link.call('FREEZE_TABLET', { migrationId, reads: false });
      await this.pause(100);
      await link.call('FREEZE_TABLET', { migrationId, reads: true });
      await this.pause(50);
    });
  }

  /** Prepare, fetch, claim; then serve, or forget it. */
  private async bring(
    task: { readonly cancelled: boolean },
    ranges: readonly SlotRange[],
    report: (ctimeSegmentId: number, error: string | null) => Promise<boolean>,
    fetch: () => Promise<void>,
  ): Promise<void> {
    const { master, server } = this;
    let coming: SimulatedTablet[];
    try {
      coming = await this.patiently(task, async () => master.prepare(ranges));
    } catch (error) {
      await report(0, String(error));
      return;
    }
    let failure: string | null = null;
    try {
      await this.pause(400);
      if (server.world.fails(0.15)) throw new RekindleError('OUT_OF_MEMORY', 'too much');
      await fetch();
      if (task.cancelled) throw new RekindleError('ABORTED', 'it is not wanted any more');
    } catch (error) {
      failure = String(asRekindleError(error).code);
    }
    const ctimeSegmentId = coming[0]?.ctimeSegmentId ?? 0;
    const owner = await report(ctimeSegmentId, failure);
    if (!owner || failure !== null) {
      await this.pause(100);
      master.forget(coming);
      return;
    }
    master.activate(coming);
    server.world.serves(server, coming);
  }

  /** Without a definite answer nobody may act. */
  private async claim(
    task: { readonly cancelled: boolean },
    ask: () => Promise<{ committed: boolean }>,
  ): Promise<boolean> {
    for (;;) {
      if (task.cancelled) return false;
      try {
        return (await ask()).committed;
      } catch (error) {
        await this.pause(asRekindleError(error).retryable ? 200 : 400);
      }
    }
  }

  private endMigration(migrationId: number): void {
    const task = this.migrations.get(migrationId);
    if (task === undefined) {
      this.ended.add(migrationId);
      return;
    }
    task.cancelled = true;
    throw new RekindleError('RETRY', 'it is being undone');
  }

  private give(request: RequestOf<'START_MIGRATION'>): object {
    const { migrationId } = request;
    if (this.gone.has(migrationId)) throw unknown(migrationId);
    if (this.giving !== null) throw new RekindleError('RETRY', 'one is given away already');
    this.giving = { request, tablet: this.master.moving(request), released: false };
    // A target that does not get on is not waited for.
    this.server.process.clock.after(FROZEN_MS_MAX, () => {
      const { giving } = this;
      if (giving?.request === request && !giving.released) this.giveNoMore(migrationId);
    });
    return { buckets: 1, segmentId: 1, offset: 0 };
  }

  private freeze({ migrationId, reads }: RequestOf<'FREEZE_TABLET'>): object {
    const { giving } = this;
    if (giving?.request.migrationId !== migrationId) throw unknown(migrationId);
    giving.tablet.service = reads ? 'leaving' : 'readsOnly';
    giving.released ||= reads;
    return {};
  }

  private giveNoMore(migrationId: number): void {
    this.gone.add(migrationId);
    const { giving } = this;
    if (giving?.request.migrationId !== migrationId) return;
    this.giving = null;
    giving.tablet.service = 'full';
    giving.tablet.moving = false;
  }

  dropped(range: SlotRange): void {
    const request = this.giving?.request;
    if (request !== undefined && overlaps(request, range)) this.giveNoMore(request.migrationId);
  }

  private async patiently<T>(
    task: { readonly cancelled: boolean },
    call: () => Promise<T>,
  ): Promise<T> {
    for (;;) {
      if (task.cancelled) throw new RekindleError('ABORTED', 'it is not wanted any more');
      try {
        return await call();
      } catch (error) {
        if (asRekindleError(error).code !== 'RETRY') throw error;
      }
      await this.server.process.sleep(BUSY_MS);
    }
  }

  private pause(msMax: number): Promise<void> {
    const { process } = this.server;
    return process.sleep(process.time.between(0, msMax));
  }
}

function unknown(migrationId: number): RekindleError {
  return new RekindleError('RECOVERY_UNKNOWN', `migration ${migrationId} is not known here`);
}

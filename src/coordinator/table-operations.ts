/**
 * Finishes what `tables.ts` committed: sends tablets of tables in creation to their masters until
 * the table can become visible, and takes tablets of dropped tables away. Each table has one
 * loop, which looks at the committed state again in each turn, so it does the same after a
 * restart.
 */
import { RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';
import type { CoordinatorContext } from './context.js';
import type { TableRecord, TabletRecord } from './coordinator-state.js';
import { decideCreated, decideForgetTable, decideReassignCreating } from './tables.js';

const RETRY_MS = 200;
const WAITERS_MAX = 10_000;

interface Waiter {
  done(): void;
}

export class TableOperations {
  private readonly running = new Set<number>();
  private readonly waiters = new Map<number, Set<Waiter>>();
  private waiterCount = 0;

  constructor(private readonly context: CoordinatorContext) {}

  /** Some table may have work pending. */
  kick(): void {
    for (const { tableId, state } of this.context.state.tables.values()) {
      if (state === 'normal' || this.running.has(tableId)) continue;
      this.running.add(tableId);
      this.context.background(this.run(tableId), 'finishing a table operation');
    }
  }

  /** Resolves with true when nothing is pending for the table, with false after `timeoutMs`. */
  settled(tableId: number, timeoutMs: number): Promise<boolean> {
    const state = this.context.state.tables.get(tableId)?.state;
    if (state === undefined || state === 'normal') return Promise.resolve(true);
    if (this.waiterCount >= WAITERS_MAX) {
      throw new RekindleError('RETRY', 'too many callers wait for tables', { retryAfterMs: 500 });
    }
    return new Promise((resolve) => {
      const waiters = this.waiters.get(tableId) ?? new Set();
      this.waiters.set(tableId, waiters);
      const end = (settled: boolean): void => {
        cancel();
        if (!waiters.delete(waiter)) return;
        this.waiterCount--;
        resolve(settled);
      };
      const waiter: Waiter = { done: () => end(true) };
      const cancel = this.context.after(Math.max(0, timeoutMs), () => end(false));
      waiters.add(waiter);
      this.waiterCount++;
    });
  }

  private async run(tableId: number): Promise<void> {
    try {
      for (;;) {
        const table = this.context.state.tables.get(tableId);
        if (table === undefined || table.state === 'normal') break;
        const finished =
          table.state === 'creating' ? await this.create(tableId) : await this.drop(table);
        if (!finished) await this.pause();
      }
    } finally {
      this.running.delete(tableId);
    }
    this.wake(tableId);
  }

  private wake(tableId: number): void {
    const waiters = [...(this.waiters.get(tableId) ?? [])];
    this.waiters.delete(tableId);
    for (const waiter of waiters) waiter.done();
  }

  private pause(): Promise<void> {
    return new Promise((resolve) => this.context.after(RETRY_MS, resolve));
  }

  private async create(tableId: number): Promise<boolean> {
    let table: TableRecord | null;
    try {
      table = await this.context.commit((state) => decideReassignCreating(state, tableId));
    } catch (error) {
      // No usable master at the moment: the loop comes back.
      if (error instanceof RekindleError && error.code === 'NOT_ENOUGH_BACKUPS') return false;
      throw error;
    }
    if (table === null) return true;
    const taken = await Promise.all(table.tablets.map((tablet) => this.take(table.name, tablet)));
    if (taken.includes(false)) return false;
    await this.context.faultPoint('create-3');
    const owners = table.tablets.map(({ serverId }) => serverId);
    return this.context.commit((state) => decideCreated(state, tableId, owners));
  }

  private async take(name: string, tablet: TabletRecord): Promise<boolean> {
    const { tableId, startSlot, endSlot, serverId, recoveryId: ownershipId } = tablet;
    const { term } = this.context.state.cluster;
    const request = { tableId, startSlot, endSlot, term, name, ownershipId };
    return this.send('TAKE_TABLET_OWNERSHIP', serverId, request);
  }

  private async drop(table: TableRecord): Promise<boolean> {
    const { state } = this.context;
    const { term } = state.cluster;
    const acknowledged = await Promise.all(
      table.tablets.map(async ({ tableId, startSlot, endSlot, serverId }) => {
        if (!state.isUp(serverId)) return null;
        const request = { tableId, startSlot, endSlot, term, before: null };
        const sent = await this.send('DROP_TABLET_OWNERSHIP', serverId, request);
        return sent ? serverId : null;
      }),
    );
    await this.context.faultPoint('drop-3');
    return this.context.commit((now) => decideForgetTable(now, table, acknowledged));
  }

  private async send<K extends 'TAKE_TABLET_OWNERSHIP' | 'DROP_TABLET_OWNERSHIP'>(
    name: K,
    serverId: number,
    request: RequestOf<K>,
  ): Promise<boolean> {
    try {
      await this.context.call(serverId, name, request);
      return true;
    } catch (error) {
      this.context.log('info', `${name} will be repeated`, {
        serverId,
        tableId: request.tableId,
        error: String(error),
      });
      return false;
    }
  }
}

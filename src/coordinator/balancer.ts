/**
 * Carries out what `balance.ts` decides, if it is wanted (`--balance`): asks all masters for the
 * loads of their tablets every few seconds, and lets one tablet migrate at a time, while nothing
 * else goes on in the cluster. It keeps nothing that a successor would need.
 */
import { asRekindleError } from '../rpc/errors.js';
import type { BalanceReport, TabletLoad } from '../rpc/messages.js';
import { decideBalance, fillOf, rateOf, type ServerLoad } from './balance.js';
import type { CoordinatorContext } from './context.js';
import type { CoordinatorState } from './coordinator-state.js';
import type { MigrationManager } from './migration-manager.js';

const INTERVAL_MS = 5_000;
/** Its load at the new place is measured before it may move again. */
const REST_MS = 60_000;

export class Balancer {
  #servers: ServerLoad[] = [];
  #waitingFor: string | null = null;
  #moves = 0;
  /** Tablets that have moved, and when. */
  readonly #movedAtMs = new Map<string, number>();

  constructor(
    private readonly context: CoordinatorContext,
    private readonly migrations: Pick<MigrationManager, 'migrate'>,
    private readonly enabled: boolean,
  ) {}

  start(): void {
    if (!this.enabled) return;
    this.context.after(INTERVAL_MS, () => {
      const turn = this.turn().finally(() => this.start());
      this.context.background(turn, 'balancing');
    });
  }

  report(): BalanceReport {
    const servers = this.#servers.map((server) => ({
      serverId: server.serverId,
      fill: fillOf(server),
      operationsPerSecond: Math.round(rateOf(server)),
    }));
    return { enabled: this.enabled, servers, moves: this.#moves, waitingFor: this.#waitingFor };
  }

  private async turn(): Promise<void> {
    const { context } = this;
    this.#waitingFor = obstacle(context.state);
    if (this.#waitingFor !== null) return;
    const masters = context.state.upServers().filter(({ master }) => master);
    const loads = await Promise.all(masters.map(({ serverId }) => this.loadOf(serverId)));
    this.#servers = loads.filter((load) => load !== null);
    const silent = masters.filter((_, at) => loads[at] === null);
    if (silent.length > 0) {
      this.#waitingFor = `an answer of server ${silent.map((each) => each.serverId).join(', ')}`;
      return;
    }
    const nowMs = context.now();
    for (const [key, atMs] of this.#movedAtMs) {
      if (nowMs - atMs > REST_MS) this.#movedAtMs.delete(key);
    }
    const move = decideBalance(this.#servers, (tablet) => !this.#movedAtMs.has(keyOf(tablet)));
    const name = context.state.tables.get(move?.tablet.tableId ?? 0)?.name;
    if (move === null || name === undefined) return;
    const { tablet, fromServerId, toServerId, reason } = move;
    this.#movedAtMs.set(keyOf(tablet), nowMs);
    const { startSlot, endSlot, bytes } = tablet;
    const fields = { table: name, startSlot, endSlot, bytes, fromServerId, toServerId, reason };
    try {
      // The map may have changed since the master was asked: then it is another tablet that moves,
      // which does no harm, or none.
      await this.migrations.migrate({ name, slot: startSlot, targetServerId: toServerId });
      this.#moves += 1;
      context.log('info', 'a tablet is moved to balance the cluster', fields);
    } catch (error) {
      const { code, message, retryable } = asRekindleError(error);
      if (!retryable && code !== 'INVALID_ARGUMENT' && code !== 'TABLE_NOT_FOUND') throw error;
      context.log('info', 'a tablet cannot be moved now', { ...fields, code, message });
    }
  }

  private async loadOf(serverId: number): Promise<ServerLoad | null> {
    try {
      const load = await this.context.call(serverId, 'GET_TABLET_LOADS', {});
      return { serverId, ...load };
    } catch (error) {
      const fields = { serverId, error: String(error) };
      this.context.log('debug', 'a master does not tell its loads', fields);
      return null;
    }
  }
}

/** Why nothing should be moved now. */
function obstacle({ migrations, recoveries, servers }: CoordinatorState): string | null {
  if (recoveries.size > 0) return 'the end of recoveries';
  if (migrations.size > 0) return 'the end of migrations';
  const draining = [...servers.values()].find(({ drain }) => drain !== undefined);
  return draining === undefined ? null : `the drain of server ${draining.serverId}`;
}

function keyOf({ tableId, startSlot, endSlot }: TabletLoad): string {
  return `${tableId}:${startSlot}-${endSlot}`;
}

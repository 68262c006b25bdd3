/**
 * What the client knows of tables: name, id, and the owner of each tablet. A cache: it may be
 * wrong, a master's `UNKNOWN_TABLET` says so, and the table is then fetched again.
 *
 * Operations whose owner is not known (or recovering) are parked at their table. One fetch at a
 * time per table; fetches that follow each other within a second back off.
 */
import { backoffMs } from '../rpc/backoff.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { TableInfo, TabletInfo } from '../rpc/messages.js';
import type { Operation } from './operation.js';

const REFRESH_MS_MIN = 5;
const REFRESH_MS_MAX = 100;
/** A quiet time after which the backoff starts afresh. */
const CALM_MS = 1_000;
const TABLES_MAX = 65_536;

export interface TableEntry {
  readonly name: string;
  /** 0: not fetched yet. */
  tableId: number;
  /** Ascending by start slot. */
  tablets: TabletInfo[];
  /** Waiting for the next fetch. */
  parked: Set<Operation>;
  refreshing: boolean;
  refreshes: number;
  refreshedAtMs: number;
}

export interface TableMapRuntime {
  /** GET_TABLE at the coordinator, retried by it until the deadline. */
  fetch(name: string): Promise<TableInfo>;
  /** Routes an operation again. */
  route(operation: Operation): void;
  /** Ends an operation with an error. */
  fail(operation: Operation, error: RekindleError): void;
  random(): number;
}

export class TableMap {
  readonly #runtime: TableMapRuntime;
  readonly #tables = new Map<string, TableEntry>();
  readonly #timers = new Set<NodeJS.Timeout>();

  constructor(runtime: TableMapRuntime) {
    this.#runtime = runtime;
  }

  /** The entry of a table, known or not. */
  entry(name: string): TableEntry {
    const known = this.#tables.get(name);
    if (known !== undefined) return known;
    if (this.#tables.size >= TABLES_MAX) this.#forgetIdle();
    const entry: TableEntry = {
      name,
      tableId: 0,
      tablets: [],
      parked: new Set(),
      refreshing: false,
      refreshes: 0,
      refreshedAtMs: 0,
    };
    this.#tables.set(name, entry);
    return entry;
  }

  learn(info: TableInfo): void {
    fill(this.entry(info.name), info);
  }

  /** Forgets where a table is; its next operation asks. */
  forget(name: string): void {
    const entry = this.#tables.get(name);
    if (entry !== undefined) fill(entry, NO_TABLE);
  }

  /** Parks an operation until the table has been fetched again. */
  park(operation: Operation): void {
    const { table } = operation;
    table.parked.add(operation);
    if (table.refreshing) return;
    table.refreshing = true;
    const sinceMs = performance.now() - table.refreshedAtMs;
    if (sinceMs > CALM_MS) table.refreshes = 0;
    if (table.refreshes++ === 0) {
      void this.#refresh(table);
      return;
    }
    const random = this.#runtime.random();
    const delayMs = backoffMs(table.refreshes - 2, REFRESH_MS_MIN, REFRESH_MS_MAX, random);
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      void this.#refresh(table);
    }, delayMs);
    this.#timers.add(timer);
  }

  /** The tablet of a slot, or undefined. */
  static tabletOf(table: TableEntry, slot: number): TabletInfo | undefined {
    const { tablets } = table;
    let low = 0;
    let high = tablets.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const tablet = tablets[middle]!;
      if (slot < tablet.startSlot) high = middle - 1;
      else if (slot > tablet.endSlot) low = middle + 1;
      else return tablet;
    }
    return undefined;
  }

  close(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    this.#tables.clear();
  }

  /** Never rejects: what goes wrong ends the parked operations or parks them again. */
  async #refresh(table: TableEntry): Promise<void> {
    let error: RekindleError | null = null;
    try {
      fill(table, await this.#runtime.fetch(table.name));
    } catch (thrown) {
      error = asRekindleError(thrown);
      if (error.code === 'TABLE_NOT_FOUND') fill(table, NO_TABLE);
    }
    table.refreshing = false;
    table.refreshedAtMs = performance.now();
    const parked = table.parked;
    table.parked = new Set();
    for (const operation of parked) {
      if (operation.ended) continue;
      if (error === null) {
        this.#runtime.route(operation);
      } else if (error.retryable) {
        operation.lastError = error;
        this.park(operation);
      } else {
        const failure = operation.failure(error.code, error.message, error);
        this.#runtime.fail(operation, failure);
      }
    }
  }

  #forgetIdle(): void {
    for (const [name, entry] of this.#tables) {
      if (entry.refreshing || entry.parked.size > 0) continue;
      this.#tables.delete(name);
      return;
    }
    throw new RekindleError('RETRY', `${TABLES_MAX} tables are in use`, { retryAfterMs: 100 });
  }
}

const NO_TABLE = { tableId: 0, tablets: [] };

function fill(entry: TableEntry, info: Pick<TableInfo, 'tableId' | 'tablets'>): void {
  entry.tableId = info.tableId;
  entry.tablets = [...info.tablets].sort((a, b) => a.startSlot - b.startSlot);
}

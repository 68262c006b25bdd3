/**
 * One operation of a caller on its way: what it asks, how far it got, and where its result goes.
 * It ends exactly once. `inFlight` and `doubtServerId` are the whole knowledge about whether a
 * mutation may have been applied.
 */

import { DeadlineMember } from '../rpc/deadline-set.js';
import { RekindleError } from '../rpc/errors.js';
import type { ExecuteOperation } from '../rpc/execute-codec.js';
import { OP_READ, operationBytes } from '../rpc/execute-codec.js';
import type { KeyBytes } from '../rpc/key-hash.js';
import { STATUS, type StatusCode } from '../rpc/status.js';
import type { Codec } from './codec.js';
import type { TableEntry } from './table-map.js';

/** What the caller gets: the value, {value, version}, or {version}. */
export type ResultForm = 'value' | 'entry' | 'version';

/** A call of the application: what its operations have in common, and where their results go. */
export abstract class TableCall {
  constructor(
    readonly table: TableEntry,
    // biome-ignore lint/suspicious/noExplicitAny: the table pairs codec and result type.
    readonly codec: Codec<any, any>,
    readonly form: ResultForm,
    readonly deadlineMs: number,
  ) {}

  abstract done(index: number, result: unknown): void;
  abstract failed(index: number, error: RekindleError): void;
}

/** No attempt has an unknown outcome. */
export const DOUBT_NONE = 0;
/** Attempts on more than one server have. */
export const DOUBT_MANY = -1;

export class Operation extends DeadlineMember implements ExecuteOperation<KeyBytes> {
  /** 0 until routed; changes only while nothing was sent. */
  tableId = 0;
  slot = 0;
  /** 0 for reads, and until the first attempt. */
  rpcId = 0;
  /** In the order of all operations that were queued for its master. */
  place = 0;
  /** Whether the newest attempt is on its way. */
  inFlight = false;
  everSent = false;
  /** The server on which an earlier attempt was lost with unknown outcome. */
  doubtServerId = DOUBT_NONE;
  attempts = 0;
  ended = false;
  /** Why it is still not done; becomes the code or the cause when the deadline passes. */
  lastError: RekindleError | null = null;
  #watched: { signal: AbortSignal; onAbort: () => void } | null = null;

  constructor(
    readonly call: TableCall,
    /** Of its result in the call. */
    readonly index: number,
    readonly op: number,
    readonly reject: number,
    readonly givenVersion: number,
    readonly key: KeyBytes,
    readonly value: Uint8Array | null,
  ) {
    super();
  }

  get table(): TableEntry {
    return this.call.table;
  }

  get deadlineMs(): number {
    return this.call.deadlineMs;
  }

  get isMutation(): boolean {
    return this.op !== OP_READ;
  }

  get bytes(): number {
    return operationBytes(this.key.length, this.value === null ? 0 : this.value.length);
  }

  get mayBeApplied(): boolean {
    return this.isMutation && (this.inFlight || this.doubtServerId !== DOUBT_NONE);
  }

  watch(signal: AbortSignal, onAbort: () => void): void {
    this.#watched = { signal, onAbort };
    signal.addEventListener('abort', onAbort, { once: true });
  }

  unwatch(): void {
    this.#watched?.signal.removeEventListener('abort', this.#watched.onAbort);
    this.#watched = null;
  }

  /** The attempt on this server was lost and may have been executed. */
  doubt(serverId: number): void {
    if (!this.isMutation) return;
    const first = this.doubtServerId === DOUBT_NONE || this.doubtServerId === serverId;
    this.doubtServerId = first ? serverId : DOUBT_MANY;
  }

  /** A failure of the client's making: reads are never in doubt. */
  failure(code: StatusCode, message: string, cause?: unknown): RekindleError {
    return new RekindleError(code, message, {
      outcome: this.mayBeApplied ? 'unknown' : 'not-applied',
      ...(cause === undefined || cause === null ? {} : { cause }),
    });
  }

  /**
   * The failure that a master answered. The same incarnation remembers rpc ids, so its answer
   * settles earlier attempts on it; about attempts on others it says nothing.
   */
  refusal(code: StatusCode, serverId: number, version: number): RekindleError {
    const settled = this.doubtServerId === DOUBT_NONE || this.doubtServerId === serverId;
    const unknown = this.isMutation && (!settled || STATUS[code].outcome === 'unknown');
    return new RekindleError(code, refusalText(code), {
      outcome: unknown ? 'unknown' : 'not-applied',
      details: { table: this.table.name, version },
    });
  }

  /** Why the deadline found it unfinished. */
  expiry(): RekindleError {
    const last = this.lastError;
    const waited = `table ${this.table.name}: not done by its deadline`;
    const because = last === null ? '' : ` (${last.message})`;
    const explains =
      last?.code === 'COORDINATOR_UNAVAILABLE' || last?.code === 'NOT_ENOUGH_BACKUPS';
    const code = explains && !this.inFlight ? last.code : 'TIMEOUT';
    const { message, outcome } = this.failure(code, `${waited}${because}`);
    const details = last?.code === code ? last.details : undefined;
    return new RekindleError(code, message, {
      outcome,
      ...(details === undefined ? {} : { details }),
      ...(last === null ? {} : { cause: last }),
    });
  }
}

function refusalText(code: StatusCode): string {
  switch (code) {
    case 'OBJECT_NOT_FOUND':
      return 'the object does not exist';
    case 'OBJECT_EXISTS':
      return 'the object exists';
    case 'WRONG_VERSION':
      return 'the object has another version';
    case 'OUT_OF_MEMORY':
      return (
        'the memory of the master is full: delete objects, add servers and put new tables on ' +
        'them, or restart servers with a larger --memory'
      );
    case 'STALE_RPC':
      return 'an earlier attempt was acknowledged; whether it was applied is not known';
    default:
      return `the master answered ${code}`;
  }
}

/**
 * A table as a caller holds it. A handle costs nothing and asks nobody; the first operation finds
 * the table (`TABLE_NOT_FOUND` if there is none).
 *
 * Keys and values that are passed as bytes must not change until the promise has settled. Read
 * values belong to the caller. Calls on one key are executed in their order, awaited or not, unless
 * one of them has to be retried; on different keys in any order, and reads are answered first.
 */

import { checkSignal, checkTimeoutMs, invalidArgument } from '../rpc/connection-string.js';
import { RekindleError } from '../rpc/errors.js';
import {
  OP_READ,
  OP_REMOVE,
  OP_WRITE,
  REJECT_ABSENT,
  REJECT_EXISTS,
  REJECT_VERSION_NE,
  VALUE_BYTES_MAX,
} from '../rpc/execute-codec.js';
import { hashText, KEY_BYTES_MAX, type KeyBytes, NOT_ASCII } from '../rpc/key-hash.js';
import { Batch } from './batch.js';
import type { Codec } from './codec.js';
import { Operation, type ResultForm, TableCall } from './operation.js';
import type { OperationRouter } from './operation-router.js';
import type { TableEntry } from './table-map.js';

/** Strings are UTF-8. */
export type Key = Uint8Array | string;

export interface OperationOptions {
  /** For the whole call, all retries included. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** At most one of the three. */
export interface Condition {
  /** Only if the object has this version, else `WRONG_VERSION`; 0: only if there is none. */
  ifVersion?: number;
  /** Only if there is none, else `OBJECT_EXISTS`. */
  ifAbsent?: boolean;
  /** Only if there is one, else `OBJECT_NOT_FOUND`. */
  ifExists?: boolean;
}

export type WriteOptions = OperationOptions & Condition;

export interface Entry<T> {
  value: T;
  version: number;
}

export interface WriteResult {
  /** Of the object written; of the object deleted, 0 if there was none. */
  version: number;
}

export type PutEntry<T> = readonly [Key, T] | ({ key: Key; value: T } & Condition);

/** What a table needs of its client. */
export interface TableContext {
  readonly router: OperationRouter;
  readonly timeoutMs: number;
}

/** Operations of one `…Many` call that are under way at a time. */
const SLICE_OPERATIONS_MAX = 8_192;
const SLICE_BYTES_MAX = 32 * 1024 * 1024;

class Single extends TableCall {
  constructor(
    table: TableEntry,
    codec: TableCall['codec'],
    form: ResultForm,
    deadlineMs: number,
    readonly resolve: (result: never) => void,
    readonly reject: (error: RekindleError) => void,
  ) {
    super(table, codec, form, deadlineMs);
  }

  done(_index: number, result: unknown): void {
    this.resolve(result as never);
  }

  failed(_index: number, error: RekindleError): void {
    this.reject(error);
  }
}

/** One operation of a call, at this place among its results. Throws what is wrong with the item. */
type ToOperation<Item> = (call: TableCall, index: number, item: Item) => Operation;

export class Table<Read = Buffer, Write = Uint8Array | string> {
  readonly name: string;
  readonly #context: TableContext;
  readonly #entry: TableEntry;
  readonly #codec: Codec<Read, Write>;

  constructor(context: TableContext, entry: TableEntry, codec: Codec<Read, Write>) {
    this.name = entry.name;
    this.#context = context;
    this.#entry = entry;
    this.#codec = codec;
  }

  /** The same table with other values: `table.with(json)`. */
  with<R, W>(codec: Codec<R, W>): Table<R, W> {
    return new Table(this.#context, this.#entry, codec);
  }

  /** The value, or undefined if there is no object. */
  get(key: Key, options: OperationOptions = {}): Promise<Read | undefined> {
    return this.#one(OP_READ, key, undefined, NO_CONDITION, 'value', options);
  }

  getEntry(key: Key, options: OperationOptions = {}): Promise<Entry<Read> | undefined> {
    return this.#one(OP_READ, key, undefined, NO_CONDITION, 'entry', options);
  }

  put(key: Key, value: Write, options: WriteOptions = {}): Promise<WriteResult> {
    return this.#one(OP_WRITE, key, value, options, 'version', options);
  }

  /** Deleting what is not there is no error. */
  delete(key: Key, options: WriteOptions = {}): Promise<WriteResult> {
    return this.#one(OP_REMOVE, key, undefined, options, 'version', options);
  }

  /** Values in the order of the keys, undefined where there is no object. */
  getMany(keys: Iterable<Key>, options: OperationOptions = {}): Promise<(Read | undefined)[]> {
    return this.#many(keys, this.#reads, 'value', options);
  }

  getManyEntries(
    keys: Iterable<Key>,
    options: OperationOptions = {},
  ): Promise<(Entry<Read> | undefined)[]> {
    return this.#many(keys, this.#reads, 'entry', options);
  }

  /**
   * Not atomic. If some fail, rejects with the code of the first; `details.failures` lists
   * {index, code, outcome, message}, and all others were applied, except those at and after
   * `details.notAttemptedFrom` (the slice that fails is the last).
   */
  putMany(
    entries: Iterable<PutEntry<Write>>,
    options: OperationOptions = {},
  ): Promise<WriteResult[]> {
    return this.#many(entries, this.#writes, 'version', options);
  }

  /** As `putMany`. */
  deleteMany(keys: Iterable<Key>, options: OperationOptions = {}): Promise<WriteResult[]> {
    return this.#many(keys, this.#removes, 'version', options);
  }

  readonly #reads: ToOperation<Key> = (call, index, key) =>
    this.#operation(call, index, OP_READ, key, null, NO_CONDITION);

  readonly #removes: ToOperation<Key> = (call, index, key) =>
    this.#operation(call, index, OP_REMOVE, key, null, NO_CONDITION);

  readonly #writes: ToOperation<PutEntry<Write>> = (call, index, entry) => {
    if (typeof entry !== 'object' || entry === null) {
      throw invalidArgument('an entry is [key, value] or {key, value}');
    }
    return 'key' in entry
      ? this.#operation(call, index, OP_WRITE, entry.key, this.#encoded(entry.value), entry)
      : this.#operation(call, index, OP_WRITE, entry[0], this.#encoded(entry[1]), NO_CONDITION);
  };

  #encoded(value: Write): Uint8Array {
    let bytes: Uint8Array;
    try {
      bytes = this.#codec.encode(value);
    } catch (cause) {
      const problem = `table ${this.name}: the codec cannot encode the value`;
      throw new RekindleError('INVALID_ARGUMENT', problem, { cause });
    }
    if (!(bytes instanceof Uint8Array)) throw invalidArgument('a value is bytes or a string');
    if (bytes.length <= VALUE_BYTES_MAX) return bytes;
    const problem = `a value has at most ${VALUE_BYTES_MAX} bytes, this one ${bytes.length}`;
    throw new RekindleError('VALUE_TOO_LARGE', problem);
  }

  #one<Result>(
    op: number,
    key: Key,
    value: Write | undefined,
    condition: Condition,
    form: ResultForm,
    options: OperationOptions,
  ): Promise<Result> {
    // What is wrong with the arguments rejects the promise.
    return new Promise<Result>((resolve, reject) => {
      const bytes = op === OP_WRITE ? this.#encoded(value as Write) : null;
      const deadlineMs = this.#deadlineMs(options);
      const call = new Single(this.#entry, this.#codec, form, deadlineMs, resolve, reject);
      const operation = this.#operation(call, 0, op, key, bytes, condition);
      this.#context.router.submit(operation, options.signal);
    });
  }

  /** Slice by slice, so that any number of keys needs bounded memory; one deadline for all. */
  async #many<Item, Result>(
    items: Iterable<Item>,
    toOperation: ToOperation<Item>,
    form: ResultForm,
    options: OperationOptions,
  ): Promise<Result[]> {
    const deadlineMs = this.#deadlineMs(options);
    // A string is iterable too, but nobody means its characters.
    if (typeof items?.[Symbol.iterator] !== 'function' || typeof items === 'string') {
      throw invalidArgument('keys and entries are given as an array or another iterable');
    }
    const newBatch = (): Batch => new Batch(this.#entry, this.#codec, form, deadlineMs);
    const results: Result[] = [];
    let batch = newBatch();
    let slice: Operation[] = [];
    let sliceBytes = 0;
    for (const item of items) {
      const operation = toOperation(batch, slice.length, item);
      slice.push(operation);
      sliceBytes += operation.bytes;
      if (slice.length < SLICE_OPERATIONS_MAX && sliceBytes < SLICE_BYTES_MAX) continue;
      for (const each of await this.#slice(batch, slice, results.length, options.signal)) {
        results.push(each as Result);
      }
      batch = newBatch();
      slice = [];
      sliceBytes = 0;
    }
    if (slice.length === 0) return results;
    const last = await this.#slice(batch, slice, results.length, options.signal);
    return (results.length === 0 ? last : results.concat(last as Result[])) as Result[];
  }

  /** All of them were checked before the first is sent. */
  async #slice(
    batch: Batch,
    operations: readonly Operation[],
    first: number,
    signal: AbortSignal | undefined,
  ): Promise<unknown[]> {
    const { router } = this.#context;
    const results = batch.resultsOf(operations.length);
    const onAbort = (): void => {
      for (const operation of operations) router.abort(operation, signal?.reason);
    };
    // One listener for all; each operation looks at the signal when it is submitted.
    signal?.addEventListener('abort', onAbort, { once: true });
    for (const operation of operations) {
      if (signal?.aborted === true) router.submit(operation, signal);
      else router.submit(operation, undefined);
    }
    try {
      return await results;
    } catch (thrown) {
      throw placed(thrown as RekindleError, first, operations.length);
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  #deadlineMs(options: OperationOptions): number {
    checkSignal(options.signal);
    const timeoutMs =
      options.timeoutMs === undefined ? this.#context.timeoutMs : checkTimeoutMs(options.timeoutMs);
    return performance.now() + timeoutMs;
  }

  #operation(
    call: TableCall,
    index: number,
    op: number,
    key: Key,
    value: Uint8Array | null,
    condition: Condition,
  ): Operation {
    const { tableId } = this.#entry;
    const slot = typeof key === 'string' ? hashText(tableId, key) : NOT_ASCII;
    const bytes = typeof key === 'string' && slot === NOT_ASCII ? Buffer.from(key) : key;
    checkKey(bytes);
    const reject = op === OP_READ ? 0 : rejectBits(condition);
    const version = condition.ifVersion ?? 0;
    const operation = new Operation(call, index, op, reject, version, bytes, value);
    if (slot !== NOT_ASCII) {
      operation.tableId = tableId;
      operation.slot = slot;
    }
    return operation;
  }
}

const NO_CONDITION: Condition = {};

function checkKey(key: KeyBytes): void {
  if (typeof key !== 'string' && !(key instanceof Uint8Array)) {
    throw invalidArgument('a key is bytes or a string');
  }
  if (key.length >= 1 && key.length <= KEY_BYTES_MAX) return;
  const problem = `a key has 1 to ${KEY_BYTES_MAX} bytes, this one ${key.length}`;
  throw new RekindleError('INVALID_KEY', problem);
}

function rejectBits({ ifVersion, ifAbsent, ifExists }: Condition): number {
  const conditions =
    Number(ifVersion !== undefined) + Number(ifAbsent === true) + Number(ifExists === true);
  if (conditions > 1) throw invalidArgument('ifVersion, ifAbsent and ifExists exclude each other');
  if (ifAbsent === true) return REJECT_EXISTS;
  if (ifExists === true) return REJECT_ABSENT;
  if (ifVersion === undefined) return 0;
  if (!Number.isSafeInteger(ifVersion) || ifVersion < 0) {
    throw invalidArgument(`ifVersion ${ifVersion} is not a version`);
  }
  return ifVersion === 0 ? REJECT_EXISTS : REJECT_ABSENT | REJECT_VERSION_NE;
}

/** The failure of a slice, with indexes into the whole list. */
function placed(error: RekindleError, first: number, count: number): RekindleError {
  const failures = (error.details?.failures ?? []) as { index: number }[];
  return new RekindleError(error.code, error.message, {
    cause: error,
    outcome: error.outcome,
    details: {
      ...error.details,
      failures: failures.map((failure) => ({ ...failure, index: failure.index + first })),
      notAttemptedFrom: first + count,
    },
  });
}

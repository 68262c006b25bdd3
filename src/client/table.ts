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
  KEY_BYTES_MAX,
  OP_READ,
  OP_REMOVE,
  OP_WRITE,
  REJECT_ABSENT,
  REJECT_EXISTS,
  REJECT_VERSION_NE,
  VALUE_BYTES_MAX,
} from '../rpc/execute-codec.js';
import { Batch } from './batch.js';
import type { Codec } from './codec.js';
import { Operation, type ResultForm, type ResultSink } from './operation.js';
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

/** The sink of a single operation. */
class Single implements ResultSink {
  constructor(
    readonly resolve: (result: never) => void,
    readonly reject: (error: RekindleError) => void,
  ) {}
  done(_index: number, result: unknown): void {
    this.resolve(result as never);
  }
  failed(_index: number, error: RekindleError): void {
    this.reject(error);
  }
}

interface Draft {
  op: number;
  key: Uint8Array;
  value: Uint8Array | null;
  condition: Condition;
}

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
    return this.#many(keys, (key) => withoutValue(OP_READ, key, NO_CONDITION), 'value', options);
  }

  getManyEntries(
    keys: Iterable<Key>,
    options: OperationOptions = {},
  ): Promise<(Entry<Read> | undefined)[]> {
    return this.#many(keys, (key) => withoutValue(OP_READ, key, NO_CONDITION), 'entry', options);
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
    const draft = (entry: PutEntry<Write>): Draft => {
      if (typeof entry !== 'object' || entry === null) {
        throw invalidArgument('an entry is [key, value] or {key, value}');
      }
      return 'key' in entry
        ? this.#write(entry.key, entry.value, entry)
        : this.#write(entry[0], entry[1], {});
    };
    return this.#many(entries, draft, 'version', options);
  }

  /** As `putMany`. */
  deleteMany(keys: Iterable<Key>, options: OperationOptions = {}): Promise<WriteResult[]> {
    const draft = (key: Key): Draft => withoutValue(OP_REMOVE, key, NO_CONDITION);
    return this.#many(keys, draft, 'version', options);
  }

  #write(key: Key, value: Write, condition: Condition): Draft {
    let bytes: Uint8Array;
    try {
      bytes = this.#codec.encode(value);
    } catch (cause) {
      const problem = `table ${this.name}: the codec cannot encode the value`;
      throw new RekindleError('INVALID_ARGUMENT', problem, { cause });
    }
    if (!(bytes instanceof Uint8Array)) throw invalidArgument('a value is bytes or a string');
    if (bytes.length > VALUE_BYTES_MAX) {
      const problem = `a value has at most ${VALUE_BYTES_MAX} bytes, this one ${bytes.length}`;
      throw new RekindleError('VALUE_TOO_LARGE', problem);
    }
    return { op: OP_WRITE, key: keyBytes(key), value: bytes, condition };
  }

  #one<Result>(
    op: number,
    key: Key,
    value: Write | undefined,
    condition: Condition,
    form: ResultForm,
    options: OperationOptions,
  ): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      const draft =
        op === OP_WRITE
          ? this.#write(key, value as Write, condition)
          : withoutValue(op, key, condition);
      const deadlineMs = this.#deadlineMs(options);
      const sink = new Single(resolve, reject);
      const operation = this.#operation(draft, form, deadlineMs, sink, 0);
      this.#context.router.submit(operation, options.signal);
    });
  }

  /** Slice by slice, so that any number of keys needs bounded memory; one deadline for all. */
  async #many<Item, Result>(
    items: Iterable<Item>,
    toDraft: (item: Item) => Draft,
    form: ResultForm,
    options: OperationOptions,
  ): Promise<Result[]> {
    const deadlineMs = this.#deadlineMs(options);
    // A string is iterable too, but nobody means its characters.
    if (typeof items?.[Symbol.iterator] !== 'function' || typeof items === 'string') {
      throw invalidArgument('keys and entries are given as an array or another iterable');
    }
    const results: Result[] = [];
    let slice: Draft[] = [];
    let sliceBytes = 0;
    const send = async (): Promise<void> => {
      const drafts = slice;
      slice = [];
      sliceBytes = 0;
      const done = await this.#slice<Result>(drafts, results.length, form, deadlineMs, options);
      for (const result of done) results.push(result);
    };
    for (const item of items) {
      const draft = toDraft(item);
      slice.push(draft);
      sliceBytes += draft.key.length + (draft.value === null ? 0 : draft.value.length);
      if (slice.length >= SLICE_OPERATIONS_MAX || sliceBytes >= SLICE_BYTES_MAX) await send();
    }
    if (slice.length > 0) await send();
    return results;
  }

  async #slice<Result>(
    drafts: Draft[],
    first: number,
    form: ResultForm,
    deadlineMs: number,
    options: OperationOptions,
  ): Promise<Result[]> {
    const { router } = this.#context;
    const { signal } = options;
    const { promise, batch } = this.#batch<Result>(drafts.length);
    // All are checked before the first is sent.
    const operations = drafts.map((draft, index) =>
      this.#operation(draft, form, deadlineMs, batch, index),
    );
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
      return await promise;
    } catch (thrown) {
      throw placed(thrown as RekindleError, first, drafts.length);
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  #batch<Result>(size: number): { promise: Promise<Result[]>; batch: Batch } {
    let batch: Batch | undefined;
    const promise = new Promise<Result[]>((resolve, reject) => {
      batch = new Batch(size, (results) => resolve(results as Result[]), reject);
    });
    return { promise, batch: batch! };
  }

  #deadlineMs(options: OperationOptions): number {
    checkSignal(options.signal);
    const timeoutMs =
      options.timeoutMs === undefined ? this.#context.timeoutMs : checkTimeoutMs(options.timeoutMs);
    return performance.now() + timeoutMs;
  }

  #operation(
    { op, key, value, condition }: Draft,
    form: ResultForm,
    deadlineMs: number,
    sink: ResultSink,
    index: number,
  ): Operation {
    return new Operation(
      this.#entry,
      op,
      op === OP_READ ? 0 : rejectBits(condition),
      condition.ifVersion ?? 0,
      key,
      value,
      deadlineMs,
      form,
      this.#codec,
      sink,
      index,
    );
  }
}

const NO_CONDITION: Condition = {};

function withoutValue(op: number, key: Key, condition: Condition): Draft {
  return { op, key: keyBytes(key), value: null, condition };
}

function keyBytes(key: Key): Uint8Array {
  const bytes = typeof key === 'string' ? Buffer.from(key) : key;
  if (!(bytes instanceof Uint8Array)) throw invalidArgument('a key is bytes or a string');
  if (bytes.length >= 1 && bytes.length <= KEY_BYTES_MAX) return bytes;
  const problem = `a key has 1 to ${KEY_BYTES_MAX} bytes, this one ${bytes.length}`;
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

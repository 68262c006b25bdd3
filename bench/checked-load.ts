/**
 * The load of all runs that look for lost writes: numbered writers and readers, judged by the
 * checker (chaos-checker.ts). Each key has one writer; the same seed draws the same operations.
 *
 * Rule: it goes on whatever happens to the cluster. Errors that the SDK throws on purpose are
 * counted, anything else is a bug and ends the run. Who hurts the cluster is not its business.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Table } from '../src/client/index.js';
import { RekindleError } from '../src/rpc/errors.js';
import { ChaosChecker, chaosValue } from './chaos-checker.js';
import { forEachBatch } from './concurrency.js';
import { randomStream } from './dataset.js';

export interface CheckedLoadShape {
  writers: number;
  keysPerWriter: number;
  readers: number;
  valueBytesMax: number;
  /** Between two writes of a writer, on average. */
  writePauseMs: number;
  /** The same of a reader. */
  readPauseMs: number;
}

/** Values so large that short runs overwrite their memory, and segments are cleaned meanwhile. */
export const HEAVY_LOAD: CheckedLoadShape = {
  writers: 32,
  keysPerWriter: 32,
  readers: 8,
  valueBytesMax: 16_000,
  writePauseMs: 0,
  readPauseMs: 4,
};

/** Leaves most of the machine to what is done to the cluster meanwhile. */
export const LIGHT_LOAD: CheckedLoadShape = {
  writers: 8,
  keysPerWriter: 32,
  readers: 2,
  valueBytesMax: 4_000,
  writePauseMs: 80,
  readPauseMs: 4,
};

/** One write in so many is a deletion. */
const DELETION_ONE_IN = 20;
const READS_AT_ONCE = 32;

export class CheckedLoad {
  readonly checker: ChaosChecker;
  readonly errors = new Map<string, number>();
  longestMs = 0;
  readonly #table: Table;
  readonly #shape: CheckedLoadShape;
  readonly #seed: number;
  #starts = 0;
  #stopped = true;
  #work: Promise<unknown> = Promise.resolve();

  constructor(table: Table, shape: CheckedLoadShape, seed: number) {
    this.#table = table;
    this.#shape = shape;
    this.#seed = seed;
    this.checker = new ChaosChecker(shape.writers * shape.keysPerWriter);
  }

  get errorCount(): number {
    return [...this.errors.values()].reduce((sum, count) => sum + count, 0);
  }

  /** Writers and readers begin; also after `stop`, with other operations than before. */
  start(): void {
    this.#stopped = false;
    const seed = this.#seed + 1_000 * this.#starts++;
    const { writers, readers } = this.#shape;
    this.#work = Promise.all([
      ...Array.from({ length: writers }, (_, writer) => this.#write(writer, seed + writer)),
      ...Array.from({ length: readers }, (_, reader) => this.#read(seed + writers + reader)),
    ]);
    // `stop` hands a failure on; until then it must not count as unhandled.
    this.#work.catch((error: unknown) => process.stderr.write(`the load failed: ${error}\n`));
  }

  /** No operation begins any more; those under way may outlive what is done to the cluster next. */
  end(): void {
    this.#stopped = true;
  }

  /** Resolves when all operations have ended. */
  async stop(): Promise<void> {
    this.end();
    await this.#work;
  }

  /** Reads every key. */
  async readAll(): Promise<void> {
    const keys = this.#shape.writers * this.#shape.keysPerWriter;
    await forEachBatch(keys, 1, READS_AT_ONCE, (key) => this.#readOne(key));
  }

  /** How many of its keys there are now; while nothing is written. */
  async countLive(): Promise<number> {
    const { writers, keysPerWriter } = this.#shape;
    const keys = Array.from({ length: writers * keysPerWriter }, (_, index) => keyOf(index));
    const values = await this.#table.getMany(keys);
    return values.filter((value) => value !== undefined).length;
  }

  async #write(writer: number, seed: number): Promise<void> {
    const { checker } = this;
    const { keysPerWriter, valueBytesMax, writePauseMs } = this.#shape;
    const random = randomStream(seed);
    while (!this.#stopped) {
      const keyIndex = writer * keysPerWriter + (random() % keysPerWriter);
      const deletion = random() % DELETION_ONE_IN === 0;
      const number = checker.writeStarts(keyIndex, deletion);
      const start = performance.now();
      try {
        const { version } = deletion
          ? await this.#table.delete(keyOf(keyIndex))
          : await this.#table.put(
              keyOf(keyIndex),
              chaosValue(keyIndex, number, random() % valueBytesMax),
            );
        checker.writeAcknowledged(keyIndex, number, version);
      } catch (error) {
        this.#countError(error);
        checker.writeUnknown();
      }
      this.longestMs = Math.max(this.longestMs, performance.now() - start);
      if (writePauseMs > 0) await delay(random() % (2 * writePauseMs));
    }
  }

  async #read(seed: number): Promise<void> {
    const { writers, keysPerWriter, readPauseMs } = this.#shape;
    const random = randomStream(seed);
    while (!this.#stopped) {
      await this.#readOne(random() % (writers * keysPerWriter));
      await delay(random() % (2 * readPauseMs));
    }
  }

  async #readOne(keyIndex: number): Promise<void> {
    const start = this.checker.readStarts(keyIndex);
    const startMs = performance.now();
    try {
      this.checker.readEnds(start, await this.#table.getEntry(keyOf(keyIndex)));
    } catch (error) {
      this.#countError(error);
    }
    this.longestMs = Math.max(this.longestMs, performance.now() - startMs);
  }

  #countError(error: unknown): void {
    if (!(error instanceof RekindleError)) throw error;
    const what = `${error.code} (${error.outcome})`;
    this.errors.set(what, (this.errors.get(what) ?? 0) + 1);
  }
}

function keyOf(keyIndex: number): string {
  return `chaos:${keyIndex}`;
}

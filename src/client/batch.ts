/**
 * The sink of a `…Many` call: results in the order of the keys, one promise for all. It waits for
 * every operation, also after the first failure, so that when the call ends nothing of it is under
 * way any more. Failures come as one error with the code of the first and all places in `details`.
 */
import { RekindleError } from '../rpc/errors.js';
import type { ResultSink } from './operation.js';

/** More are counted, not listed. */
const FAILURES_LISTED_MAX = 1_000;

export class Batch implements ResultSink {
  readonly #results: unknown[];
  readonly #failures: { index: number; error: RekindleError }[] = [];
  readonly #resolve: (results: unknown[]) => void;
  readonly #reject: (error: RekindleError) => void;
  #left: number;

  constructor(
    size: number,
    resolve: (results: unknown[]) => void,
    reject: (error: RekindleError) => void,
  ) {
    this.#left = size;
    this.#results = new Array(size);
    this.#resolve = resolve;
    this.#reject = reject;
    if (size === 0) resolve([]);
  }

  done(index: number, result: unknown): void {
    this.#results[index] = result;
    this.#settle();
  }

  failed(index: number, error: RekindleError): void {
    this.#failures.push({ index, error });
    this.#settle();
  }

  #settle(): void {
    this.#left -= 1;
    if (this.#left > 0) return;
    if (this.#failures.length === 0) this.#resolve(this.#results);
    else this.#reject(this.#failure());
  }

  #failure(): RekindleError {
    const failures = this.#failures.sort((a, b) => a.index - b.index);
    const first = failures[0]!;
    const unknown = failures.some(({ error }) => error.outcome === 'unknown');
    const text = `${failures.length} of ${this.#results.length} operations failed`;
    return new RekindleError(
      first.error.code,
      `${text}, the first at ${first.index}: ${first.error.message}`,
      {
        cause: first.error,
        outcome: unknown ? 'unknown' : 'not-applied',
        ...(first.error.retryAfterMs === undefined
          ? {}
          : { retryAfterMs: first.error.retryAfterMs }),
        details: {
          failedCount: failures.length,
          failures: failures.slice(0, FAILURES_LISTED_MAX).map(({ index, error }) => ({
            index,
            code: error.code,
            outcome: error.outcome,
            message: error.message,
          })),
        },
      },
    );
  }
}

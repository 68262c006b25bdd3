/**
 * One slice of a `…Many` call: results in the order of the keys, one promise for all. It waits for
 * every operation, also after the first failure, so that when the call ends nothing of it is under
 * way any more. Failures come as one error with the code of the first and all places in `details`.
 */
import { RekindleError } from '../rpc/errors.js';
import { TableCall } from './operation.js';

/** More are counted, not listed. */
const FAILURES_LISTED_MAX = 1_000;

export class Batch extends TableCall {
  #results: unknown[] = [];
  readonly #failures: { index: number; error: RekindleError }[] = [];
  #resolve: ((results: unknown[]) => void) | null = null;
  #reject: ((error: RekindleError) => void) | null = null;
  #left = 0;

  /** The results of so many operations, at least one; asked for before the first is submitted. */
  resultsOf(size: number): Promise<unknown[]> {
    this.#left = size;
    this.#results = new Array(size);
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
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
    if (this.#failures.length === 0) this.#resolve?.(this.#results);
    else this.#reject?.(this.#failure());
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

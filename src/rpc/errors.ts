/**
 * The one error tree of Rekindle. Everything that the SDK, the servers or the tools throw on
 * purpose is a `RekindleError`; anything else that surfaces is a bug.
 *
 * `code` is stable, `retryable` says whether the same call may succeed later, `outcome` whether a
 * mutation may have been applied. `instanceof` works across copies of the package.
 */
import { type Outcome, STATUS, type StatusCode, statusCode } from './status.js';

const BRAND = Symbol.for('rekindle.error');

export interface ErrorOptions {
  /** Overrides the outcome that the code stands for. */
  outcome?: Outcome;
  /** How long a caller should wait before it tries again, in milliseconds. */
  retryAfterMs?: number;
  /** Structured facts about the failure, JSON-serializable. */
  details?: Record<string, unknown>;
  cause?: unknown;
}

export class RekindleError extends Error {
  readonly code: StatusCode;
  readonly retryable: boolean;
  readonly outcome: Outcome;
  readonly retryAfterMs: number | undefined;
  readonly details: Record<string, unknown> | undefined;

  constructor(code: StatusCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'RekindleError';
    this.code = code;
    this.retryable = STATUS[code].retryable;
    this.outcome = options.outcome ?? STATUS[code].outcome;
    this.retryAfterMs = options.retryAfterMs;
    this.details = options.details;
    Object.defineProperty(this, BRAND, { value: true });
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && BRAND in value;
  }

  /** The body of an error reply (docs/formats.md §3). */
  toBody(): { message: string; retryAfterMs?: number; details?: Record<string, unknown> } {
    return {
      message: this.message,
      ...(this.retryAfterMs === undefined ? {} : { retryAfterMs: this.retryAfterMs }),
      ...(this.details === undefined ? {} : { details: this.details }),
    };
  }

  /** The error that an error reply stands for. */
  static fromReply(status: number, body: unknown): RekindleError {
    const { message, retryAfterMs, details } = (body ?? {}) as {
      message?: string;
      retryAfterMs?: number;
      details?: Record<string, unknown>;
    };
    const code = statusCode(status);
    return new RekindleError(code, message ?? code, {
      ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
      ...(details === undefined ? {} : { details }),
    });
  }
}

/** Wraps whatever was thrown as a `RekindleError`, keeping the original as the cause. */
export function asRekindleError(thrown: unknown): RekindleError {
  if (thrown instanceof RekindleError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new RekindleError('INTERNAL', message, { cause: thrown });
}

/** An invariant of the program, checked in production too. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new RekindleError('INTERNAL', `invariant violated: ${message}`);
}

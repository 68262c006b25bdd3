/**
 * Calls to the coordinator: tries the addresses in turn, follows a redirect
 * (`details.coordinator`, from one that does not lead), and repeats until the caller's deadline.
 * All of its RPCs are idempotent, so that a lost call is simply made again.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { addressProblem } from '../rpc/address.js';
import { backoffMs } from '../rpc/backoff.js';
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { StatusCode } from '../rpc/status.js';
import { type JsonRpcName, type ReplyOf, type RequestOf, RPC } from '../rpc/table.js';
import type { LinkPool } from '../rpc/transport.js';

const ROUND_MS_MIN = 20;
const ROUND_MS_MAX = 500;
/** Redirects that are followed in a row before they count as failures. */
const REDIRECTS_MAX = 3;

export interface CoordinatorSessionOptions {
  pool: LinkPool;
  addresses: readonly string[];
  random: () => number;
}

/** The call may succeed elsewhere or later. */
const TRY_ELSEWHERE: ReadonlySet<StatusCode> = new Set<StatusCode>([
  'CONNECTION_LOST',
  'TIMEOUT',
  'RETRY',
  'SHUTTING_DOWN',
  'COORDINATOR_UNAVAILABLE',
]);

export class CoordinatorSession {
  readonly #options: CoordinatorSessionOptions;
  /** Which address is asked first: the one that answered last. */
  #preferred = 0;
  #problem: RekindleError | null = null;
  /** From the handshake. */
  clusterId: string | null = null;

  constructor(options: CoordinatorSessionOptions) {
    this.#options = options;
  }

  /** Why the newest attempt failed; null after one that succeeded. */
  get problem(): RekindleError | null {
    return this.#problem;
  }

  async call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    options: { timeoutMs: number; signal?: AbortSignal | undefined },
  ): Promise<ReplyOf<K>> {
    const deadlineMs = performance.now() + options.timeoutMs;
    const { addresses, random } = this.#options;
    let redirect: string | null = null;
    let redirects = 0;
    for (let attempt = 0; ; attempt++) {
      const address: string = redirect ?? addresses[this.#preferred % addresses.length]!;
      const error = await this.#attempt(address, name, request, deadlineMs, options.signal);
      if (!(error instanceof RekindleError)) return error.reply;
      if (!TRY_ELSEWHERE.has(error.code)) throw error;
      this.#problem = unavailable(address, error);
      redirect = redirects < REDIRECTS_MAX ? redirectOf(error) : null;
      if (redirect !== null) {
        redirects += 1;
        continue;
      }
      redirects = 0;
      this.#preferred = (this.#preferred + 1) % addresses.length;
      const rounds = Math.floor(attempt / addresses.length);
      const roundOver = (attempt + 1) % addresses.length === 0;
      const pauseMs = Math.max(
        error.retryAfterMs ?? 0,
        roundOver ? backoffMs(rounds, ROUND_MS_MIN, ROUND_MS_MAX, random()) : 0,
      );
      if (performance.now() + pauseMs >= deadlineMs) throw this.#problem;
      await pause(pauseMs, options.signal);
    }
  }

  async #attempt<K extends JsonRpcName>(
    address: string,
    name: K,
    request: RequestOf<K>,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<{ reply: ReplyOf<K> } | RekindleError> {
    const remainingMs = Math.max(1, deadlineMs - performance.now());
    const timeoutMs = Math.min(RPC[name].timeoutMs, remainingMs);
    try {
      const link = this.#options.pool.link(address);
      const reply = await link.call(name, request, {
        timeoutMs,
        ...(signal === undefined ? {} : { signal }),
      });
      this.clusterId = link.remote?.clusterId ?? this.clusterId;
      this.#problem = null;
      return { reply };
    } catch (thrown) {
      const error = asRekindleError(thrown);
      if (error.code !== 'UNSUPPORTED_OPCODE') return error;
      const problem = `${address} answers, but it is not a coordinator of this version`;
      return new RekindleError('INVALID_ARGUMENT', problem, { cause: error });
    }
  }
}

function unavailable(address: string, cause: RekindleError): RekindleError {
  const problem = `no coordinator answered; last tried ${address}: ${cause.message}`;
  return new RekindleError('COORDINATOR_UNAVAILABLE', problem, {
    cause,
    outcome: cause.outcome,
  });
}

function redirectOf(error: RekindleError): string | null {
  const coordinator = error.details?.coordinator;
  if (typeof coordinator !== 'string' || addressProblem(coordinator) !== null) return null;
  return coordinator;
}

async function pause(delayMs: number, signal: AbortSignal | undefined): Promise<void> {
  if (delayMs <= 0) return;
  try {
    await sleep(delayMs, undefined, signal === undefined ? {} : { signal });
  } catch (cause) {
    const problem = 'aborted by its caller';
    throw new RekindleError('ABORTED', problem, { cause, outcome: 'not-applied' });
  }
}

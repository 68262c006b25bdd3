/**
 * Calls to whoever leads the coordinators, for clients and servers alike: asks the address that
 * answered last, follows a redirect (`details.coordinator`, from one that does not lead), goes from
 * one to the next, and repeats until the caller's deadline. All of its RPCs are idempotent, so a
 * lost call is simply made again.
 *
 * A call may take long, but a coordinator that does not even answer a PING meanwhile is left for
 * another one, if there is one.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { addressProblem } from './address.js';
import { backoffMs } from './backoff.js';
import type { CoordinatorAddresses } from './coordinator-addresses.js';
import { asRekindleError, RekindleError } from './errors.js';
import { boundedTimeoutMs } from './fault-point.js';
import type { StatusCode } from './status.js';
import { type JsonRpcName, type ReplyOf, type RequestOf, RPC } from './table.js';
import type { CallOptions, LinkPool, RpcLink } from './transport.js';

const ROUND_MS_MIN = 20;
const ROUND_MS_MAX = 500;
/** Redirects that are followed in a row before they count as failures. */
const REDIRECTS_MAX = 3;
/** A call without an answer for so long makes one ask whether anybody is there. */
const SILENCE_MS = 400;
const PING_TIMEOUT_MS = 500;

export interface CoordinatorSessionOptions {
  pool: LinkPool;
  addresses: CoordinatorAddresses;
  random: () => number;
}

/** The call may succeed elsewhere or later. */
const TRY_ELSEWHERE: ReadonlySet<StatusCode> = new Set<StatusCode>([
  'CONNECTION_LOST',
  'TIMEOUT',
  'RETRY',
  'SHUTTING_DOWN',
  'COORDINATOR_UNAVAILABLE',
  'WRONG_SERVER',
]);

/** With less time left nobody else is asked: an attempt that is cut off has an unknown outcome. */
const REPEAT_MS_MIN = 20;

export class CoordinatorSession {
  readonly #options: CoordinatorSessionOptions;
  /** Whom to ask, as it was looked up last; empty: not yet. */
  #known: readonly string[] = [];
  /** Which of them is asked next. */
  #cursor = 0;
  /** Who answered last. */
  #leader: string | null = null;
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
    options: { timeoutMs?: number | undefined; signal?: AbortSignal | undefined } = {},
  ): Promise<ReplyOf<K>> {
    const { signal } = options;
    const deadlineMs = performance.now() + (options.timeoutMs ?? RPC[name].timeoutMs);
    let redirect: string | null = null;
    let redirects = 0;
    let mayBeDone = false;
    for (let failures = 0; ; ) {
      const address: string | RekindleError =
        redirect ?? this.#leader ?? (await this.#next(deadlineMs, signal));
      const outcome: { reply: ReplyOf<K> } | RekindleError =
        address instanceof RekindleError
          ? address
          : await this.#attempt(address, name, request, deadlineMs, signal);
      if (!(outcome instanceof RekindleError)) return outcome.reply;
      mayBeDone ||= outcome.outcome === 'unknown';
      if (!TRY_ELSEWHERE.has(outcome.code)) throw mayBeDone ? ofUnknownOutcome(outcome) : outcome;
      this.#leader = null;
      this.#problem = unavailable(address, outcome);
      redirect = redirects < REDIRECTS_MAX ? redirectOf(outcome) : null;
      redirects = redirect === null ? 0 : redirects + 1;
      const repeatUntilMs = deadlineMs - REPEAT_MS_MIN;
      if (redirect !== null && performance.now() < repeatUntilMs) continue;
      failures += 1;
      this.#cursor += 1;
      const pauseMs = this.#pauseMs(failures, outcome);
      if (performance.now() + pauseMs >= repeatUntilMs) {
        throw mayBeDone ? ofUnknownOutcome(this.#problem) : this.#problem;
      }
      await pause(pauseMs, signal);
    }
  }

  /** The address whose turn it is; looked up anew after each round in vain. */
  async #next(
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<string | RekindleError> {
    if (this.#known.length === 0 || this.#cursor >= this.#known.length) {
      try {
        this.#known = await this.#lookUp(deadlineMs, signal);
      } catch (thrown) {
        const error = asRekindleError(thrown);
        // What was found before may still be right.
        if (error.code === 'ABORTED' || this.#known.length === 0) return error;
      }
      this.#cursor = 0;
    }
    return this.#known[this.#cursor] ?? new RekindleError('INTERNAL', 'a round has an address');
  }

  async #lookUp(deadlineMs: number, signal: AbortSignal | undefined): Promise<readonly string[]> {
    const over = new AbortController();
    const signals = signal === undefined ? [over.signal] : [over.signal, signal];
    const leftMs = Math.max(1, deadlineMs - performance.now());
    const expired = pause(leftMs, AbortSignal.any(signals)).then(() => {
      throw new RekindleError('TIMEOUT', 'the addresses of coordinators were not found in time');
    });
    try {
      return await Promise.race([this.#options.addresses(), expired]);
    } finally {
      over.abort();
    }
  }

  #pauseMs(failures: number, { retryAfterMs }: RekindleError): number {
    const addresses = Math.max(1, this.#known.length);
    const rounds = Math.floor(failures / addresses);
    const { random } = this.#options;
    const roundOver = failures % addresses === 0;
    const roundMs = roundOver ? backoffMs(rounds - 1, ROUND_MS_MIN, ROUND_MS_MAX, random()) : 0;
    return Math.max(retryAfterMs ?? 0, roundMs);
  }

  async #attempt<K extends JsonRpcName>(
    address: string,
    name: K,
    request: RequestOf<K>,
    deadlineMs: number,
    signal: AbortSignal | undefined,
  ): Promise<{ reply: ReplyOf<K> } | RekindleError> {
    const remainingMs = Math.max(1, deadlineMs - performance.now());
    const timeoutMs = Math.min(boundedTimeoutMs(RPC[name].timeoutMs), remainingMs);
    const { pool } = this.#options;
    const link = pool.link(address);
    try {
      const reply = await this.#answer(link, name, request, {
        timeoutMs,
        ...(signal === undefined ? {} : { signal }),
      });
      this.clusterId = link.remote?.clusterId ?? this.clusterId;
      this.#leader = address;
      this.#problem = null;
      return { reply };
    } catch (thrown) {
      const error = asRekindleError(thrown);
      // The pace is set here: a link that waits to reconnect would miss a coordinator that is back.
      if (!link.connected && link.outstandingBytes === 0) pool.drop(address);
      if (error.code !== 'UNSUPPORTED_OPCODE') return error;
      const problem = `${address} answers, but it is not a coordinator of this version`;
      return new RekindleError('INVALID_ARGUMENT', problem, { cause: error });
    }
  }

  async #answer<K extends JsonRpcName>(
    link: RpcLink,
    name: K,
    request: RequestOf<K>,
    options: CallOptions,
  ): Promise<ReplyOf<K>> {
    if (this.#known.every((address) => address === link.address)) {
      return link.call(name, request, options);
    }
    const over = new AbortController();
    const give = new AbortController();
    const signals = options.signal === undefined ? [give.signal] : [give.signal, options.signal];
    const silent = this.#untilSilent(link, over.signal);
    const call = link.call(name, request, { ...options, signal: AbortSignal.any(signals) });
    try {
      return await Promise.race([call, silent]);
    } finally {
      over.abort();
      give.abort();
    }
  }

  /** Rejects when the other side does not answer a PING; never ends otherwise. */
  async #untilSilent(link: RpcLink, over: AbortSignal): Promise<never> {
    for (;;) {
      if (!(await waited(SILENCE_MS, over))) return new Promise<never>(() => undefined);
      const ping = { callerServerId: null };
      await link.call('PING', ping, { timeoutMs: PING_TIMEOUT_MS });
    }
  }
}

/** False: it was over before. */
async function waited(delayMs: number, over: AbortSignal): Promise<boolean> {
  try {
    await sleep(delayMs, undefined, { signal: over });
    return true;
  } catch (error) {
    if (over.aborted) return false;
    throw error;
  }
}

function unavailable(address: string | RekindleError, cause: RekindleError): RekindleError {
  const where = typeof address === 'string' ? `; last tried ${address}` : '';
  const problem = `no coordinator answered${where}: ${cause.message}`;
  return new RekindleError('COORDINATOR_UNAVAILABLE', problem, {
    cause,
    outcome: cause.outcome,
  });
}

/** An attempt before the last one may have been carried out. */
function ofUnknownOutcome(error: RekindleError): RekindleError {
  if (error.outcome === 'unknown') return error;
  const { code, message, retryAfterMs, details } = error;
  const detail = details === undefined ? {} : { details };
  const retry = retryAfterMs === undefined ? {} : { retryAfterMs };
  return new RekindleError(code, message, {
    cause: error,
    outcome: 'unknown',
    ...detail,
    ...retry,
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

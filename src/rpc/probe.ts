/**
 * Does that process live? One probe, as the coordinator and its witnesses make them: PING on the
 * connection that is there, or on a fresh one if it was lost. Any answer proves life, errors
 * included; a refusal by the machine proves the death of the process; silence proves nothing by
 * itself, and is a time without an answer, however fast the calls failed: each is made again until
 * the time is over.
 */
import { type Clock, systemClock } from './clock.js';
import { RekindleError } from './errors.js';
import type { ProbeOutcome } from './messages.js';
import type { RpcLink } from './transport.js';

export interface ProbeTarget {
  link(): RpcLink;
  /** A link without a history: one that waits to reconnect hides what the address says now. */
  freshLink(): RpcLink;
}

/** After a fresh connection that was lost before it was of use. */
const againMs = 20;
/** Lateness that an idle machine shows as well. */
const lagMsUsual = 25;
const lagFactor = 4;
const lagMsMax = 500;

/** What silence is on a busy machine. `lagMs`: how slow the asking or the asked process is. */
export function patience(timeoutMs: number, lagMs: number): number {
  return timeoutMs + lagFactor * Math.min(Math.max(0, lagMs - lagMsUsual), lagMsMax);
}

/** `nonce`: of the server, with whoever knows it. */
export async function probe(
  target: ProbeTarget,
  timeoutMs: number,
  nonce?: string,
  clock: Clock = systemClock,
): Promise<ProbeOutcome> {
  const endMs = clock.monotonicMs() + timeoutMs;
  const link = target.link();
  if (link.connected) {
    const outcome = await ping(link, timeoutMs, nonce);
    if (outcome !== 'silent') return outcome;
  }
  for (;;) {
    const leftMs = endMs - clock.monotonicMs();
    if (leftMs <= 0) return 'silent';
    const outcome = await ping(target.freshLink(), leftMs, nonce);
    if (outcome !== 'silent') return outcome;
    // A process that is about to be gone may still take a connection, and lose it.
    const pauseMs = Math.min(againMs, Math.max(0, endMs - clock.monotonicMs()));
    await new Promise<void>((resolve) => clock.after(pauseMs, resolve));
  }
}

async function ping(link: RpcLink, timeoutMs: number, nonce?: string): Promise<ProbeOutcome> {
  try {
    await link.call('PING', { callerServerId: null }, { timeoutMs });
    return 'alive';
  } catch (error) {
    return probeOutcomeOf(error, nonce);
  }
}

/** What a failed ping says. A server that answers with an error is alive. */
export function probeOutcomeOf(error: unknown, nonce?: string): ProbeOutcome {
  if (isRefusal(error)) return 'refused';
  if (!(error instanceof RekindleError)) return 'silent';
  if (error.code === 'WRONG_CLUSTER') return 'refused';
  // Another server has this address: the process that had it is gone.
  if (error.code === 'WRONG_SERVER') {
    if (!answersWithoutId(error)) return 'refused';
    // It has been given an id that it has not heard of.
    const same =
      nonce !== undefined && causes(error).some(({ details }) => details?.nonce === nonce);
    return same ? 'alive' : 'silent';
  }
  const unanswered = ['TIMEOUT', 'CONNECTION_LOST', 'ABORTED', 'CLIENT_CLOSED'];
  return unanswered.includes(error.code) ? 'silent' : 'alive';
}

/**
 * A process answers that does not know its server id yet: perhaps the very server that is meant,
 * since its id is committed before it hears of it: its nonce tells. Without, that proves nothing.
 */
export function answersWithoutId(error: unknown): boolean {
  if (!(error instanceof RekindleError) || error.code !== 'WRONG_SERVER') return false;
  return !causes(error).some(({ details }) => typeof details?.serverId === 'number');
}

interface Failure {
  code?: unknown;
  message?: unknown;
  cause?: unknown;
  details?: { code?: unknown; serverId?: unknown; nonce?: unknown };
}

const CAUSES_MAX = 8;

/** The error and what caused it, outermost first. */
function causes(error: unknown): Failure[] {
  const found: Failure[] = [];
  let at = error;
  while (at instanceof Object && found.length < CAUSES_MAX) {
    found.push(at);
    at = (at as Failure).cause;
  }
  return found;
}

function isRefusal(error: unknown): boolean {
  return causes(error).some(
    ({ code, message, details }) =>
      code === 'ECONNREFUSED' ||
      details?.code === 'ECONNREFUSED' ||
      (typeof message === 'string' && message.includes('ECONNREFUSED')),
  );
}

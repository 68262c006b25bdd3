/**
 * How a server process joins: asks the coordinator until it answers, exactly once by nonce. What
 * cannot get better by waiting (another cluster's disk, another protocol) ends the start with the
 * coordinator's own words.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { CoordinatorCaller } from '../master/server-directory.js';
import type { Log } from '../ops/log.js';
import { asRekindleError, type RekindleError } from '../rpc/errors.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../rpc/table.js';

const retryDelayMsMin = 100;
const retryDelayMsMax = 2_000;
/** A line in the log after so many attempts in vain. */
const complainEvery = 10;

/** Calls until there is an answer or an error that waiting does not cure. */
export async function callUntilAnswered<K extends JsonRpcName>(
  coordinator: CoordinatorCaller,
  name: K,
  request: RequestOf<K>,
  log: Log,
  signal: AbortSignal,
): Promise<ReplyOf<K>> {
  let delayMs = retryDelayMsMin;
  for (let attempt = 1; ; attempt += 1) {
    signal.throwIfAborted();
    try {
      return await coordinator.call(name, request, { signal });
    } catch (thrown) {
      const error = asRekindleError(thrown);
      if (!mayPass(error)) throw error;
      if (attempt % complainEvery === 1) {
        log.warn({ code: error.code, reason: error.message }, `${name} is not answered yet`);
      }
      await sleep(error.retryAfterMs ?? delayMs, undefined, { signal });
      delayMs = Math.min(delayMs * 2, retryDelayMsMax);
    }
  }
}

/** The same nonce in every attempt: a lost answer does not make a second server of us. */
export function enlist(
  coordinator: CoordinatorCaller,
  request: RequestOf<'ENLIST_SERVER'>,
  log: Log,
  signal: AbortSignal,
): Promise<ReplyOf<'ENLIST_SERVER'>> {
  return callUntilAnswered(coordinator, 'ENLIST_SERVER', request, log, signal);
}

function mayPass(error: RekindleError): boolean {
  return error.retryable || error.code === 'COORDINATOR_UNAVAILABLE';
}

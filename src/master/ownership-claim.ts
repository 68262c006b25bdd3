/**
 * Asks the coordinator for the ownership of what was recovered or has migrated, or tells it that
 * nothing came of it.
 *
 * Rule: without a definite answer nobody may act: it may have been committed.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Log } from '../ops/log.js';
import { asRekindleError } from '../rpc/errors.js';

const retryMs = 100;
const retryMsMax = 2_000;

/** `unknown`: this master stops before there was an answer. */
export type OwnershipVerdict = 'owner' | 'notOwner' | 'unknown';

export interface OwnershipClaim {
  /** Idempotent. */
  ask: () => Promise<{ committed: boolean }>;
  /** The coordinator has decided against it for good. */
  cancelled: () => boolean;
  stopped: () => boolean;
  log: Log;
}

/** Repeats until there is a definite answer or this master stops. */
export async function claimOwnership(claim: OwnershipClaim): Promise<OwnershipVerdict> {
  for (let attempt = 0; !claim.stopped(); attempt += 1) {
    if (claim.cancelled()) return 'notOwner';
    try {
      const { committed } = await claim.ask();
      return committed ? 'owner' : 'notOwner';
    } catch (thrown) {
      const { code, message } = asRekindleError(thrown);
      if (attempt % 10 === 0) claim.log.warn({ code, message }, 'an outcome is not reported yet');
      await sleep(Math.min(retryMs * (attempt + 1), retryMsMax));
    }
  }
  return 'unknown';
}

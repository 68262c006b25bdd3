/**
 * What follows from an answer, as a pure function: whether the operation is done, asks for a new
 * map, waits and tries again, or fails. Every retry carries the same rpc id.
 */
import type { StatusCode } from '../rpc/status.js';

export type NextStep = 'fail' | 'refresh' | 'wait';

/** After a master's answer for one operation, or an error for a whole message. */
export function nextStep(code: StatusCode): NextStep {
  switch (code) {
    case 'UNKNOWN_TABLET':
    // From a master; the coordinator has the last word.
    case 'TABLE_NOT_FOUND':
    case 'WRONG_SERVER':
    case 'CONNECTION_LOST':
    case 'SHUTTING_DOWN':
    case 'FENCED':
    // Of one attempt only: the operation's own deadline is checked elsewhere.
    case 'TIMEOUT':
      return 'refresh';
    case 'RETRY':
    case 'NOT_ENOUGH_BACKUPS':
      return 'wait';
    default:
      return 'fail';
  }
}

const WAIT_MS_MIN = 1;
const WAIT_MS_MAX = 1_000;
const NOT_ENOUGH_BACKUPS_MS = 50;

/** How long to wait before the next attempt; `random` in [0, 1) adds up to a quarter. */
export function waitMs(code: StatusCode, retryAfterMs: number, random: number): number {
  const asked = code === 'NOT_ENOUGH_BACKUPS' ? NOT_ENOUGH_BACKUPS_MS : WAIT_MS_MIN;
  return Math.min(WAIT_MS_MAX, Math.max(asked, retryAfterMs)) * (1 + random / 4);
}

const ATTEMPT_MS_FIRST = 2_000;
const ATTEMPT_MS_MAX = 8_000;

/**
 * How long one attempt may take before the map is asked whether the owner has changed: a master
 * that hangs must not cost the whole deadline.
 */
export function attemptMs(attempts: number): number {
  return Math.min(ATTEMPT_MS_MAX, ATTEMPT_MS_FIRST * 2 ** attempts);
}

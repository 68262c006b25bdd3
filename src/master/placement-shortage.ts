/**
 * Why a segment cannot be placed: how many backups it needs, how many can be had, and what rules
 * out the others. This is what a client reads in `NOT_ENOUGH_BACKUPS`; the BackupSelector counts.
 */
import { RekindleError } from '../rpc/errors.js';

const reasonTexts = {
  ownHost: "on the master's host",
  hostTaken: 'on the host of another replica',
  sameRack: 'in the rack of all other replicas',
  noRackLabel: 'without a rack label',
  noFreeFrame: 'without a free frame',
  diskFailed: 'with a failed disk',
  diskError: 'after an error a moment ago',
  notFreedYet: 'with a lost replica that is not freed yet',
  holdsReplica: 'holding a replica already',
} as const;

export type RulingOut = keyof typeof reasonTexts;
/** Backups by the first reason that rules them out. */
export type RuledOut = Partial<Record<RulingOut, number>>;

export interface PlacementShortage {
  /** Backups that the segment still needs. */
  needed: number;
  /** That can be had together. */
  candidates: number;
  /** Backups that are up, without the master's own. */
  others: number;
  ruledOut: RuledOut;
}

export function ruledOutCount(ruledOut: RuledOut, why: RulingOut): number {
  return ruledOut[why] ?? 0;
}

export function shortageText({ needed, candidates, others, ruledOut }: PlacementShortage): string {
  const reasons = (Object.keys(reasonTexts) as RulingOut[])
    .filter((why) => ruledOutCount(ruledOut, why) > 0)
    .map((why) => `${ruledOutCount(ruledOut, why)} ${reasonTexts[why]}`);
  const because = reasons.length === 0 ? '' : `: ${reasons.join(', ')}`;
  const had = `${candidates} of the ${others} up can be had`;
  return `a segment needs ${needed} more backups, ${had}${because}`;
}

export function shortageError(shortage: PlacementShortage, retryAfterMs: number): RekindleError {
  const details = { ...shortage };
  return new RekindleError('NOT_ENOUGH_BACKUPS', shortageText(shortage), { retryAfterMs, details });
}

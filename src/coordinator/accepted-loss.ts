/**
 * The decision to go on without a part of a log that is gone for ever. Only what is missing or
 * doubtful at this moment can be given up, after every backup that is up has said what it has; the
 * commit (★ of `loss`) keeps who gave up what, and the recovery goes on from the same commit.
 *
 * Pure: state in, writes out. What is missing is found by `log-discovery.ts`.
 */
import { RekindleError } from '../rpc/errors.js';
import type { LogGap, LossReport } from '../rpc/messages.js';
import type { RequestOf } from '../rpc/table.js';
import {
  type CoordinatorState,
  type Decision,
  lossKey,
  type RecoveryRecord,
  recoveryKey,
} from './coordinator-state.js';

const SEGMENT_BYTES = 8 * 1024 * 1024;

type Request = RequestOf<'ACCEPT_LOSS'>;

/** What a recovery knows when it is asked to go on without something. */
export interface LossEvidence {
  /** null: the log is complete, or is not known yet. */
  gap: LogGap | null;
  /** Backups that are up and have not listed their replicas. */
  unanswered: readonly number[];
}

/** The newest loss of this server, if all that is named has been accepted before. */
export function acceptedBefore(state: CoordinatorState, request: Request): LossReport | null {
  const losses = [...state.losses.values()]
    .filter(({ serverId }) => serverId === request.serverId)
    .sort((a, b) => b.lossId - a.lossId);
  const newest = losses[0];
  const segments = new Set(losses.flatMap((loss) => loss.segments.map((s) => s.segmentId)));
  const head = losses.some(({ headLost }) => headLost);
  const covered =
    (head || !request.head) && request.segmentIds.every((segmentId) => segments.has(segmentId));
  return newest !== undefined && covered ? newest : null;
}

/** ★ The recovery may do without what is named. A repeat gets the record that there is. */
export function decideAcceptLoss(
  state: CoordinatorState,
  request: Request,
  evidence: LossEvidence,
  nowMs: number,
): Decision<LossReport> {
  if (!request.head && request.segmentIds.length === 0) {
    throw new RekindleError('INVALID_ARGUMENT', 'name the segments, or the head, to give up');
  }
  const before = acceptedBefore(state, request);
  if (before !== null) return { writes: [], result: before };
  const recovery = state.recoveryOf(request.serverId);
  if (recovery === undefined) {
    const known = state.servers.has(request.serverId);
    throw new RekindleError(
      'RECOVERY_UNKNOWN',
      known
        ? `server ${request.serverId} is up: nothing of it is lost`
        : `server ${request.serverId} is not being recovered`,
    );
  }
  checkEvidence(recovery, request, evidence);
  const loss = lossOf(state, recovery, request, evidence, nowMs);
  const ids = new Set([...recovery.lost.segmentIds, ...request.segmentIds]);
  const lost = {
    head: recovery.lost.head || request.head,
    segmentIds: [...ids].sort((a, b) => a - b),
  };
  return {
    writes: [
      { key: lossKey(loss.lossId), value: loss },
      { key: recoveryKey(recovery.recoveryId), value: { ...recovery, lost } },
    ],
    result: loss,
  };
}

/** Throws unless all that is named, and not accepted already, is missing now. */
function checkEvidence(
  { lost, crashedServerId }: RecoveryRecord,
  { head, segmentIds }: Request,
  { gap, unanswered }: LossEvidence,
): void {
  if (unanswered.length > 0) {
    throw new RekindleError(
      'RETRY',
      `servers ${unanswered.join(', ')} have not said yet what they hold of server ` +
        `${crashedServerId}; stop those that cannot`,
      { retryAfterMs: 500, details: { unanswered } },
    );
  }
  const missing = new Set([
    ...lost.segmentIds,
    ...(gap?.missing ?? []),
    ...(gap?.doubtful ?? []).map(({ segmentId }) => segmentId),
  ]);
  const held = segmentIds.filter((segmentId) => !missing.has(segmentId));
  const headHeld = head && !lost.head && gap?.headMissing !== true;
  if (held.length === 0 && !headHeld) return;
  const names = [...(headHeld ? ['the head'] : []), ...held.slice(0, 20).map(String)];
  throw new RekindleError(
    'INVALID_ARGUMENT',
    `the recovery of server ${crashedServerId} does not wait for: ${names.join(', ')}; ` +
      'nothing was given up',
    { details: { serverId: crashedServerId, head: headHeld, segmentIds: held } },
  );
}

function lossOf(
  state: CoordinatorState,
  recovery: RecoveryRecord,
  { serverId, head, segmentIds, operator, reason }: Request,
  { gap }: LossEvidence,
  acceptedAtMs: number,
): LossReport {
  const { host, address } = state.servers.get(serverId) ?? { host: '', address: '' };
  const kept = new Map(gap?.doubtful.map(({ segmentId, fromByte }) => [segmentId, fromByte]));
  const accepted = new Set(recovery.lost.segmentIds);
  const segments = [...new Set(segmentIds)]
    .filter((segmentId) => !accepted.has(segmentId))
    .sort((a, b) => a - b)
    .map((segmentId) => ({ segmentId, fromByte: kept.get(segmentId) ?? 0 }));
  const headLost = head && !recovery.lost.head;
  const tablets = state.tabletsOf(serverId).map(({ tableId, startSlot, endSlot }) => {
    const table = state.tables.get(tableId)?.name ?? '';
    return { tableId, startSlot, endSlot, table };
  });
  return {
    lossId: Math.max(0, ...state.losses.keys()) + 1,
    recoveryId: recovery.recoveryId,
    serverId,
    host,
    address,
    acceptedAtMs,
    operator,
    reason,
    headLost,
    segments,
    bytesMax: headLost
      ? null
      : segments.reduce((sum, { fromByte }) => sum + SEGMENT_BYTES - fromByte, 0),
    tablets,
  };
}

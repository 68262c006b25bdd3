/**
 * SPLIT_TABLET as it runs: the owner keeps books of both halves, then it is committed. It can be
 * repeated at any point: an owner that was asked in vain keeps finer books than the map has, and
 * makes one of them again when the tablet moves or is merged.
 */
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { CoordinatorContext } from './context.js';
import { type Cut, decideSplit, planSplit } from './tablet-split.js';

/** The owner counts what each half has, seconds with many objects, and says RETRY meanwhile. */
const ASK_DELAY_MS = 50;
const REPLY_MARGIN_MS = 1_000;
const RETRY_AFTER_MS = 100;

/** `deadlineMs` is on the context's clock, the monotonic one. */
export async function splitTablet(
  context: CoordinatorContext,
  request: RequestOf<'SPLIT_TABLET'>,
  deadlineMs: number,
): Promise<ReplyOf<'SPLIT_TABLET'>> {
  await context.faultPoint('split-1');
  const endMs = deadlineMs - REPLY_MARGIN_MS;
  for (;;) {
    const cut = planSplit(context.state, request);
    if (cut === null || (await split(context, cut, request.operationId, endMs))) break;
    if (context.clock.monotonicMs() > endMs) throw busy('the table changes all the time');
  }
  await context.faultPoint('split-3');
  const table = context.state.tableNamed(request.name);
  if (table === undefined) {
    throw new RekindleError('TABLE_NOT_FOUND', `table "${request.name}" was dropped meanwhile`);
  }
  return { table: context.state.tableInfo(table) };
}

async function split(
  context: CoordinatorContext,
  cut: Cut,
  operationId: string,
  endMs: number,
): Promise<boolean> {
  const { tableId, startSlot, endSlot, serverId } = cut.tablet;
  const { term } = context.state.cluster;
  const request = { tableId, startSlot, endSlot, term, slot: cut.slot };
  for (;;) {
    try {
      await context.call(serverId, 'SPLIT_TABLET_OWNERSHIP', request);
      break;
    } catch (error) {
      const { code, message } = asRekindleError(error);
      const fields = { serverId, tableId, startSlot, code, message };
      context.log('debug', 'an owner does not split a tablet yet', fields);
      const patient = code === 'RETRY' && context.clock.monotonicMs() < endMs;
      if (!patient) throw busy(`server ${serverId} does not split the tablet: ${message}`);
    }
    await new Promise<void>((resolve) => context.after(ASK_DELAY_MS, resolve));
  }
  await context.faultPoint('split-2');
  return context.commit((state) => decideSplit(state, cut, operationId));
}

function busy(message: string): RekindleError {
  return new RekindleError('RETRY', message, { retryAfterMs: RETRY_AFTER_MS });
}

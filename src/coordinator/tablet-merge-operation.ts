/**
 * MERGE_TABLETS as it runs: asks the owners, commits, tells them. It can be repeated at any point:
 * what is merged is left alone, and owners are told again.
 */
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { SlotRange } from '../rpc/messages.js';
import type { ReplyOf } from '../rpc/table.js';
import type { CoordinatorContext } from './context.js';
import type { TableRecord } from './coordinator-state.js';
import { decideMerge, type MergeableRun, mergeableRuns } from './tablet-merge.js';

/** How often and how soon an owner whose cleaner is busy is told again. */
const TELL_ATTEMPTS = 20;
const TELL_DELAY_MS = 50;

export async function mergeTablets(
  context: CoordinatorContext,
  name: string,
): Promise<ReplyOf<'MERGE_TABLETS'>> {
  await context.faultPoint('merge-1');
  const runs = mergeableRuns(context.state, tableNamed(context, name));
  const done = await Promise.all(runs.map((run) => merge(context, run)));
  await context.faultPoint('merge-3');
  const table = tableNamed(context, name);
  // All of them: an earlier attempt may have committed and told nobody.
  await Promise.all(table.tablets.map((tablet) => tell(context, tablet.serverId, tablet)));
  await context.faultPoint('merge-4');
  const merged = done.filter((each) => each).length;
  return { table: context.state.tableInfo(table), merged, refused: runs.length - merged };
}

function tableNamed(context: CoordinatorContext, name: string): TableRecord {
  const table = context.state.tableNamed(name);
  if (table !== undefined && table.state === 'normal') return table;
  throw new RekindleError('TABLE_NOT_FOUND', `there is no table "${name}"`);
}

async function merge(context: CoordinatorContext, run: MergeableRun): Promise<boolean> {
  const { tableId, startSlot, endSlot, serverId } = run;
  const { term } = context.state.cluster;
  const range = { tableId, startSlot, endSlot };
  let ctimeSegmentId: number;
  try {
    const request = { ...range, term, apply: false };
    const reply = await context.call(serverId, 'MERGE_TABLET_OWNERSHIP', request);
    ctimeSegmentId = reply.ctimeSegmentId;
  } catch (error) {
    const { code, message } = asRekindleError(error);
    context.log('info', 'tablets cannot be merged at present', {
      ...range,
      serverId,
      code,
      message,
    });
    return false;
  }
  await context.faultPoint('merge-2');
  return context.commit((state) => decideMerge(state, run, ctimeSegmentId));
}

async function tell(
  context: CoordinatorContext,
  serverId: number,
  { tableId, startSlot, endSlot }: SlotRange,
): Promise<void> {
  const { term } = context.state.cluster;
  const request = { tableId, startSlot, endSlot, term, apply: true };
  for (let attempt = 1; context.state.isUp(serverId); attempt++) {
    try {
      await context.call(serverId, 'MERGE_TABLET_OWNERSHIP', request);
      return;
    } catch (error) {
      const { code, message } = asRekindleError(error);
      if (code !== 'RETRY' || attempt === TELL_ATTEMPTS) {
        const fields = { serverId, tableId, startSlot, code, message };
        context.log('info', 'an owner was not told of a merge', fields);
        return;
      }
    }
    await new Promise<void>((resolve) => context.after(TELL_DELAY_MS, resolve));
  }
}

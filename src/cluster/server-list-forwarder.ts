/**
 * Tells other servers of a list that this one was told of, and says who has it: a branch of the
 * tree that `server-list-push.ts` begins. Nothing is repeated here: the leader hears who lacks it.
 */
import { pushGroups, pushTimeoutMs } from '../coordinator/server-list-push.js';
import type { ServerDirectory } from '../master/server-directory.js';
import type { Log } from '../ops/log.js';
import { asRekindleError } from '../rpc/errors.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { Membership } from './membership.js';

type Request = RequestOf<'UPDATE_SERVER_LIST'>;
type Reply = ReplyOf<'UPDATE_SERVER_LIST'>;
type Told = Omit<Reply, 'version'>;

/** Takes the update, tells the others, and answers for all of them. */
export async function takeServerList(
  request: Request,
  membership: Membership,
  servers: ServerDirectory,
  log: Pick<Log, 'debug'>,
): Promise<Reply> {
  membership.update(request.update);
  const groups = pushGroups(request.forward, request.fanOut);
  const told = await Promise.all(
    groups.map(([head = 0, ...rest]) => tell(request, head, rest, servers, log)),
  );
  return {
    version: membership.version,
    behind: told.flatMap(({ behind }) => behind),
    silent: told.flatMap(({ silent }) => silent),
    untold: told.flatMap(({ untold }) => untold),
  };
}

async function tell(
  { update, fanOut }: Request,
  head: number,
  rest: number[],
  servers: ServerDirectory,
  log: Pick<Log, 'debug'>,
): Promise<Told> {
  const lost: Told = { behind: [], silent: [head], untold: rest };
  // The list may know more servers than this one, if it could not take it.
  const link = servers.linkTo(head);
  if (link === null) return lost;
  const options = { timeoutMs: pushTimeoutMs(rest.length, fanOut) };
  try {
    const request = { update, fanOut, forward: rest };
    const { version, behind, ...others } = await link.call('UPDATE_SERVER_LIST', request, options);
    const late = version < update.version ? [{ serverId: head, version }] : [];
    return { ...others, behind: [...late, ...behind] };
  } catch (thrown) {
    const { code, message } = asRekindleError(thrown);
    log.debug({ serverId: head, code, message }, 'a server did not take the server list');
    return lost;
  }
}

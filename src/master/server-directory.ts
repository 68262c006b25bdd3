/**
 * What a master needs from the rest of the cluster, as interfaces: links to other servers by id
 * and calls to whoever leads the coordinator. The process that assembles a server provides them.
 */
import type { RpcLink } from '../rpc/transport.js';

export interface ServerDirectory {
  /** A link to this incarnation of a server; null if the server list does not have it up. */
  linkTo(serverId: number): RpcLink | null;
}

export interface ProbeDirectory extends ServerDirectory {
  /** The same without a history; what waited on the old link fails. */
  freshLinkTo(serverId: number): RpcLink | null;
}

/** Calls the leading coordinator; fails with `COORDINATOR_UNAVAILABLE` if there is none. */
export type CoordinatorCaller = Pick<RpcLink, 'call'>;

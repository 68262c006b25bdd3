/**
 * What an operator should know that numbers alone do not say. A warning is something that does not
 * work as it should now: the cluster is degraded. A note is advice on a cluster that is healthy.
 */
import type { RecoveryReport } from '../rpc/messages.js';
import type { CoordinatorState } from './coordinator-state.js';
import { backupsFor } from './server-list.js';
import { STATE_COPIES_WANTED } from './state-copier.js';

/** Fewest backups that any master can choose from; null if there is no master. */
function fewestBackups(state: CoordinatorState): number | null {
  const masters = state.upServers().filter(({ master }) => master);
  if (masters.length === 0) return null;
  return Math.min(...masters.map(({ serverId }) => backupsFor(state, serverId)));
}

function placeOf(state: CoordinatorState): string {
  return state.cluster.allowSameHost ? 'servers' : 'hosts';
}

function drainedNotes(state: CoordinatorState): string[] {
  return state
    .upServers()
    .filter(({ drain }) => drain?.state === 'drained')
    .map(({ serverId }) => `server ${serverId} is drained: its process can be stopped`);
}

/** Writes work, so this degrades nothing; but one loss stops them until the server is back. */
export function clusterNotes(state: CoordinatorState): string[] {
  const { replicas } = state.cluster;
  const drained = drainedNotes(state);
  if (replicas === 0)
    return [...drained, 'there are no replicas: a server that ends takes its data along'];
  if (fewestBackups(state) !== replicas) return drained;
  return [
    ...drained,
    `the cluster survives the loss of a server, but writes would wait for it: ` +
      `${replicas + 2} ${placeOf(state)} with backups are needed to go on without one`,
  ];
}

export function clusterWarnings(
  state: CoordinatorState,
  recoveries: readonly RecoveryReport[],
  stateCopies: { copies: number; late: boolean },
): string[] {
  const warnings: string[] = [];
  const { replicas } = state.cluster;
  const place = placeOf(state);
  const fewest = fewestBackups(state);
  if (fewest === null) warnings.push('no master is up: nothing can be stored or read');
  else if (fewest < replicas) {
    warnings.push(
      `writes wait: a segment needs ${replicas} backups on other ${place}, a master has ${fewest}`,
    );
  }
  if (stateCopies.late) {
    warnings.push(
      `${stateCopies.copies} servers hold a copy of the coordinator's newest state, ` +
        `${STATE_COPIES_WANTED} are wanted`,
    );
  }
  for (const { state: recoveryState, crashedServerId, waitingFor, gap } of recoveries) {
    if (recoveryState === 'done') continue;
    const hint = gap === null ? '' : ' (`rekindle admin accept-loss` tells what can be done)';
    const waits = waitingFor === null ? '' : `; it waits for ${waitingFor}${hint}`;
    warnings.push(`server ${crashedServerId} is being recovered${waits}`);
  }
  for (const { name, state: tableState } of state.tables.values()) {
    if (tableState === 'creating') warnings.push(`table "${name}" waits for its masters`);
  }
  return warnings;
}

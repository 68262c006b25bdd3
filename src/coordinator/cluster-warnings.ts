/**
 * What an operator should know that numbers alone do not say. Empty means: nothing needs attention,
 * and the loss of one more server stops nothing.
 */
import type { RecoveryReport } from '../rpc/messages.js';
import type { CoordinatorState } from './coordinator-state.js';
import { backupsFor } from './server-list.js';

export const STATE_COPIES_WANTED = 2;

export function clusterWarnings(
  state: CoordinatorState,
  recoveries: readonly RecoveryReport[],
  stateCopies: number,
): string[] {
  const warnings: string[] = [];
  const { replicas, allowSameHost } = state.cluster;
  const place = allowSameHost ? 'servers' : 'hosts';
  const masters = state.upServers().filter(({ master }) => master);
  const fewest = Math.min(...masters.map(({ serverId }) => backupsFor(state, serverId)));
  if (masters.length === 0) warnings.push('no master is up: nothing can be stored or read');
  else if (fewest < replicas) {
    warnings.push(
      `writes wait: a segment needs ${replicas} backups on other ${place}, a master has ${fewest}`,
    );
  } else if (fewest === replicas) {
    warnings.push(
      `the cluster survives the loss of a server, but writes would wait for it: ` +
        `${replicas + 2} ${place} with backups are needed to go on without one`,
    );
  }
  if (stateCopies < STATE_COPIES_WANTED) {
    warnings.push(
      `${stateCopies} servers hold a copy of the coordinator's newest state, ` +
        `${STATE_COPIES_WANTED} are wanted`,
    );
  }
  for (const { state: recoveryState, crashedServerId, waitingFor } of recoveries) {
    if (recoveryState === 'done') continue;
    const waits = waitingFor === null ? '' : `; it waits for ${waitingFor}`;
    warnings.push(`server ${crashedServerId} is being recovered${waits}`);
  }
  for (const { name, state: tableState } of state.tables.values()) {
    if (tableState === 'creating') warnings.push(`table "${name}" waits for its masters`);
  }
  return warnings;
}

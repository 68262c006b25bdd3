/**
 * What a log lacks, in words, and who may have it. The coordinator does not know which backups held
 * a segment, its master did; but a replica that nobody reports can only be on a backup that has
 * not answered, or on the disk of one that crashed while that master was a member.
 *
 * Pure.
 */
import type { LogGap, ReplicaHolder } from '../rpc/messages.js';
import type { CoordinatorState } from './coordinator-state.js';

const SHOWN_MAX = 20;

/** `answered`: backups that have listed their replicas of this master. */
export function holdersOf(
  state: CoordinatorState,
  crashedServerId: number,
  answered: ReadonlySet<number>,
): ReplicaHolder[] {
  const up = state.upServers();
  const silent = up
    .filter(({ serverId, backup }) => backup && !answered.has(serverId))
    .map(({ serverId, host, address }) => ({ serverId, host, address, state: 'silent' as const }));
  const absent = [...state.absent.values()]
    .filter(({ nextServerId, serverId }) => {
      return crashedServerId < nextServerId && serverId !== crashedServerId;
    })
    .map(({ serverId, host, address }): ReplicaHolder => {
      const replaced = up.some((server) => server.address === address && server.backup);
      return { serverId, host, address, state: replaced ? 'emptied' : 'gone' };
    });
  return [...silent, ...absent].sort((a, b) => a.serverId - b.serverId);
}

export function gapText(gap: LogGap, answered: number, holders: readonly ReplicaHolder[]): string {
  const parts: string[] = [];
  if (gap.headMissing) {
    parts.push(`a backup that holds the head of the log (${answered} have answered)`);
  }
  if (gap.missing.length > 0) {
    const shown = listed(gap.missing.map(String));
    parts.push(`backups with ${gap.missing.length} missing segments: ${shown}`);
  }
  for (const { segmentId, fromByte, servers } of gap.doubtful.slice(0, SHOWN_MAX)) {
    parts.push(
      `a sound replica of segment ${segmentId}: from byte ${fromByte} on, servers ` +
        `${servers.join(', ')} may have lost what they had acknowledged`,
    );
  }
  if (holders.length === 0) return `${parts.join('; ')}; no backup is left that may have it`;
  return `${parts.join('; ')}; it may be on ${listed(holders.map(holderText))}`;
}

const holderStates: Record<ReplicaHolder['state'], string> = {
  silent: 'does not answer',
  gone: 'gone',
  emptied: 'came back without its disk',
};

export function holderText({ serverId, host, address, state }: ReplicaHolder): string {
  return `server ${serverId} (host ${host}, ${address}: ${holderStates[state]})`;
}

function listed(texts: readonly string[]): string {
  const more = texts.length > SHOWN_MAX ? ', …' : '';
  return `${texts.slice(0, SHOWN_MAX).join(', ')}${more}`;
}

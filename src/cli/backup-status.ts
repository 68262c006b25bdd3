/**
 * What `rekindle status` says of backups: the state of each disk, its free frames and queue, and
 * what the scrub has found. Asked of the servers themselves, each within a second: one that does
 * not answer is shown without figures, since whether it is up is the coordinator's to say.
 */
import { formatBytes, textTable } from '../ops/text-table.js';
import { WsLinkPool } from '../rpc/link-pool.js';
import type { ServerEntry } from '../rpc/messages.js';

const askTimeoutMs = 1_000;

export interface BackupStatus {
  serverId: number;
  diskFailed: boolean;
  framesFree: number;
  framesBad: number;
  queuedBytes: number;
  replicas: number;
  /** Took a write that failed; their masters have written them anew or are about to. */
  replicasLost: number;
  /** Damaged on disk, and not freed yet. */
  replicasRotten: number;
  rotFound: number;
  scrubbedBytes: number;
  scrubPasses: number;
}

/** null: the server did not answer. */
export type BackupStatusByServer = ReadonlyMap<number, BackupStatus | null>;

export async function askBackups(servers: readonly ServerEntry[]): Promise<BackupStatusByServer> {
  const links = new WsLinkPool({
    identity: () => ({ role: 'tool', clusterId: null, serverId: null }),
  });
  const ask = async (server: ServerEntry): Promise<[number, BackupStatus | null]> => {
    const { serverId, address } = server;
    try {
      const options = { timeoutMs: askTimeoutMs };
      const stats = await links.link(address, serverId).call('GET_SERVER_STATS', {}, options);
      return [serverId, stats.backup === null ? null : backupStatus(serverId, stats.backup)];
    } catch {
      // Whatever it was: there are no figures, and the row says so.
      return [serverId, null];
    }
  };
  try {
    const asked = servers.filter(({ backup, status }) => backup && status === 'up');
    return new Map(await Promise.all(asked.map(ask)));
  } finally {
    links.close();
  }
}

function backupStatus(serverId: number, stats: Record<string, number>): BackupStatus {
  const of = (name: string): number => stats[name] ?? 0;
  return {
    serverId,
    // A storage whose thread has ended writes as little as a failed disk.
    diskFailed: of('diskFailed') > 0 || of('panics') > 0,
    framesFree: of('framesFree'),
    framesBad: of('framesBad'),
    queuedBytes: of('queuedBytes'),
    replicas: of('replicas'),
    replicasLost: of('replicasLost'),
    replicasRotten: of('replicasRotten'),
    rotFound: of('rotFound'),
    scrubbedBytes: of('scrubbedBytes'),
    scrubPasses: of('scrubPasses'),
  };
}

export function backupTable(backups: BackupStatusByServer): string {
  const rows = [...backups].map(([serverId, backup]) =>
    backup === null
      ? [String(serverId), 'no answer']
      : [
          String(serverId),
          backup.diskFailed ? 'FAILED' : 'ok',
          backup.framesFree,
          backup.framesBad,
          formatBytes(backup.queuedBytes),
          backup.replicas,
          backup.replicasLost,
          backup.rotFound,
          formatBytes(backup.scrubbedBytes),
        ],
  );
  const titles = ['backup', 'disk', 'frames free', 'bad', 'queue', 'replicas', 'lost', 'rot'];
  return textTable([...titles, 'scrubbed'], rows);
}

/** What does not work as it should. */
export function backupWarnings(backups: BackupStatusByServer): string[] {
  const warnings: string[] = [];
  for (const backup of backups.values()) {
    if (backup === null) continue;
    const { serverId, diskFailed, replicasRotten } = backup;
    if (diskFailed) {
      warnings.push(
        `the disk of server ${serverId} has failed: nothing is written to it any more, closed ` +
          'replicas are read as far as they can be',
      );
    }
    if (replicasRotten > 0) {
      warnings.push(
        `${replicasRotten} replicas on server ${serverId} have rotted and are not freed yet`,
      );
    }
  }
  return warnings;
}

/**
 * Decides which replicas a backup may free without being told to, and which masters it has to tell
 * that theirs have rotted. Pure.
 *
 * A replica is freed only on proof: its master was removed from the server list of *our* cluster
 * (its recovery is finished), seen twice in a row; or the master, still up, said that it does not
 * need a replica found on disk at start. A master that is crashed, or a list that is not ours or
 * not there yet, proves nothing: a coordinator that lost its state must not destroy data.
 */
import type { BackupReplica } from '../native/contract.js';
import type { ServerList } from '../rpc/messages.js';

/** Segment ids in one IS_REPLICA_NEEDED. */
const askedMax = 1_024;

export interface GarbageReport {
  /** Masters that are gone: free all their replicas, forget their fence. */
  removedMasters: { masterId: number; segmentIds: number[] }[];
  /** Masters to be asked about replicas from before our start. */
  questions: { masterId: number; segmentIds: number[] }[];
  /** Masters that are up, with what the scrub has found of theirs: told until they free it. */
  rotten: { masterId: number; segmentIds: number[] }[];
}

export class ReplicaGarbageCollector {
  readonly #clusterId: string;
  #list: ServerList | null = null;
  /** Masters that were missing in the list at the last pass, with its version. */
  #missing = new Map<number, number>();

  constructor(clusterId: string) {
    this.#clusterId = clusterId;
  }

  applyServerList(list: ServerList): void {
    if (list.clusterId !== this.#clusterId) return;
    if (this.#list !== null && list.version < this.#list.version) return;
    this.#list = list;
  }

  /** `fenced`: masters that are fenced here, with or without replicas. */
  collect(replicas: readonly BackupReplica[], fenced: Iterable<number>): GarbageReport {
    const report: GarbageReport = { removedMasters: [], questions: [], rotten: [] };
    if (this.#list === null) return report;
    const statusById = new Map(this.#list.servers.map((s) => [s.serverId, s.status]));
    const segmentsByMaster = new Map<number, BackupReplica[]>();
    for (const masterId of fenced) segmentsByMaster.set(masterId, []);
    for (const replica of replicas) {
      const known = segmentsByMaster.get(replica.masterId) ?? [];
      known.push(replica);
      segmentsByMaster.set(replica.masterId, known);
    }
    const missing = new Map<number, number>();
    for (const [masterId, owned] of segmentsByMaster) {
      const status = statusById.get(masterId);
      if (status === undefined) {
        missing.set(masterId, this.#list.version);
        if (!this.#missing.has(masterId)) continue;
        const segmentIds = owned.map((replica) => replica.segmentId);
        report.removedMasters.push({ masterId, segmentIds });
      } else if (status === 'up') {
        const old = owned.filter((replica) => replica.fromRestart);
        const segmentIds = old.slice(0, askedMax).map((replica) => replica.segmentId);
        if (segmentIds.length > 0) report.questions.push({ masterId, segmentIds });
        const rotten = owned.filter((replica) => replica.rotten).slice(0, askedMax);
        const rottenIds = rotten.map((replica) => replica.segmentId);
        if (rottenIds.length > 0) report.rotten.push({ masterId, segmentIds: rottenIds });
      }
    }
    this.#missing = missing;
    return report;
  }
}

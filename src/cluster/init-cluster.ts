/**
 * Makes a cluster in a storage that holds none, before any coordinator runs: its id and what holds
 * for its whole life. One commit under a leadership of its own, like any other change, so that a
 * coordinator that starts at the same moment and this never make two.
 */
import { randomUUID } from 'node:crypto';
import { type ClusterOptions, decideInit } from '../coordinator/cluster-start.js';
import {
  type ClusterRecord,
  CoordinatorState,
  type Decision,
} from '../coordinator/coordinator-state.js';
import type {
  ExternalStorage,
  StoragePair,
} from '../coordinator/external-storage/external-storage.js';
import { RekindleError } from '../rpc/errors.js';
import { openStorage, type Write } from './coordinator.js';

export interface InitOptions extends ClusterOptions {
  /** Folder of the coordinator's state; or else `storage`. */
  dataDirectory?: string;
  /** `etcd://host:port,host:port/prefix`. */
  storage?: string;
}

export interface InitReport {
  clusterId: string;
  replicas: number;
  durability: string;
  allowSameHost: boolean;
}

/** @throws `INVALID_ARGUMENT` with `details.clusterId` if the storage holds a cluster. */
export async function initCluster(options: InitOptions, log: Write): Promise<InitReport> {
  const storage = await openStorage(options, log);
  try {
    return await initStorage(storage, options);
  } finally {
    await storage.close();
  }
}

async function initStorage(storage: ExternalStorage, options: InitOptions): Promise<InitReport> {
  const clusterId = randomUUID();
  const decide = (pairs: readonly StoragePair[]): Decision<ClusterRecord> =>
    decideInit(CoordinatorState.from(pairs), options, clusterId);
  const before = await storage.list();
  // Refused before anything is written.
  decide(before.pairs);
  if (before.leaderState.leader !== null) throw busy();
  const candidacy = { term: 1, candidateId: randomUUID(), address: 'init' };
  const { leader } = await storage.campaign(null, candidacy);
  if (leader.candidateId !== candidacy.candidateId) throw busy();
  try {
    // Nobody else has written since, or the commit is refused.
    const { revision, pairs } = await storage.list();
    const { writes, result } = decide(pairs);
    await storage.commit(leader, revision, writes);
    const { replicas, durability, allowSameHost } = result;
    return { clusterId, replicas, durability, allowSameHost };
  } finally {
    await storage.resign(leader);
  }
}

function busy(): RekindleError {
  return new RekindleError('INVALID_ARGUMENT', 'a coordinator runs on this storage already');
}

/**
 * What a coordinator commits when it starts: a new term, and at the very first start, unless
 * `rekindle init` has done it before, the cluster itself with the options that hold for its life.
 */
import { RekindleError } from '../rpc/errors.js';
import type { Durability } from '../rpc/messages.js';
import type { ClusterRecord, CoordinatorState, Decision } from './coordinator-state.js';
import { scatterWidthWrites } from './copyset-record.js';
import { clusterWrite } from './server-list.js';

export interface ClusterOptions {
  /** Backups of every segment; 1 to 8, default 3. 0: a server that ends takes its data along. */
  replicas?: number | undefined;
  /** Default `fsync`. */
  durability?: Durability | undefined;
  /** Replicas of a segment may share a host; default false. */
  allowSameHost?: boolean | undefined;
  /** Of copysets; may be changed at any start. 0, the default: replicas are placed at random. */
  scatterWidth?: number | undefined;
}

export const REPLICAS_MAX = 8;

/**
 * `newClusterId` is used if there is no cluster yet. The term grows with each start, and is never
 * below that of the leadership.
 */
export function decideStart(
  state: CoordinatorState,
  options: ClusterOptions,
  newClusterId: string,
  leadershipTerm = 0,
): Decision<null> {
  const cluster = state.exists ? state.cluster : firstRecord(options, newClusterId);
  checkSame('replicas', options.replicas, cluster.replicas);
  checkSame('durability', options.durability, cluster.durability);
  checkSame('allowSameHost', options.allowSameHost, cluster.allowSameHost);
  checkScatterWidth(options.scatterWidth, cluster.replicas);
  const copysets = scatterWidthWrites(state, options.scatterWidth);
  // Who has the list must hear of other groups.
  const serverListVersion = cluster.serverListVersion + copysets.length;
  const term = Math.max(cluster.term + 1, leadershipTerm);
  const started = { ...cluster, term, serverListVersion };
  return { writes: [clusterWrite(started), ...copysets], result: null };
}

/** The cluster before its first coordinator. */
export function decideInit(
  state: CoordinatorState,
  options: ClusterOptions,
  clusterId: string,
): Decision<ClusterRecord> {
  if (state.exists) {
    const present = state.cluster.clusterId;
    throw new RekindleError(
      'INVALID_ARGUMENT',
      `this storage holds cluster ${present} already; nothing was changed`,
      { details: { clusterId: present } },
    );
  }
  const cluster = firstRecord(options, clusterId);
  checkScatterWidth(options.scatterWidth, cluster.replicas);
  const copysets = scatterWidthWrites(state, options.scatterWidth);
  return { writes: [clusterWrite(cluster), ...copysets], result: cluster };
}

function firstRecord(options: ClusterOptions, clusterId: string): ClusterRecord {
  const replicas = options.replicas ?? 3;
  if (!Number.isInteger(replicas) || replicas < 0 || replicas > REPLICAS_MAX) {
    throw new RekindleError(
      'INVALID_ARGUMENT',
      `replicas must be between 0 and ${REPLICAS_MAX}, not ${replicas}`,
    );
  }
  return {
    clusterId,
    term: 0,
    nextServerIndex: 1,
    serverGeneration: 0,
    nextTableId: 1,
    nextRecoveryId: 1,
    serverListVersion: 1,
    replicas,
    durability: options.durability ?? 'fsync',
    allowSameHost: options.allowSameHost ?? false,
    recentDrops: [],
  };
}

function checkScatterWidth(scatterWidth: number | undefined, replicas: number): void {
  if (scatterWidth === undefined || scatterWidth === 0) return;
  if (Number.isInteger(scatterWidth) && scatterWidth >= replicas - 1) return;
  throw new RekindleError(
    'INVALID_ARGUMENT',
    `with ${replicas} replicas the scatter width is 0 (none) or at least ${replicas - 1}, not ` +
      `${scatterWidth}`,
  );
}

function checkSame<T>(name: string, given: T | undefined, stored: T): void {
  if (given === undefined || given === stored) return;
  throw new RekindleError(
    'INVALID_ARGUMENT',
    `the cluster was created with ${name} = ${stored} and keeps that; it was started with ` +
      `${name} = ${given}`,
    { details: { name, stored, given } },
  );
}

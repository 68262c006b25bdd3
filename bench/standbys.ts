/**
 * A cluster with standby coordinators on an etcd of its own, and how long its leader is missed.
 * Rule: a takeover counts from the signal to the first answer of the next leader to a caller that
 * knew only the old one. Who is ended, and when, is the caller's business.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from '../src/client/index.js';
import { LocalCluster, type LocalClusterOptions } from '../src/cluster/local-cluster.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import { waitFor } from './cluster-health.js';
import { EtcdCluster, withoutEtcd } from './etcd.js';

export const COORDINATORS = 3;
/** The key of a killed one goes with its lease. */
const CANDIDATES_TIMEOUT_MS = 15_000;

/** The coordinators run when `body` is called; servers are started by it. */
export async function withStandbys<T>(
  options: LocalClusterOptions,
  body: (cluster: LocalCluster) => Promise<T>,
): Promise<T> {
  if (withoutEtcd !== false) throw new RekindleError('INVALID_ARGUMENT', withoutEtcd);
  const etcd = await EtcdCluster.start(1);
  const storage = `etcd://${etcd.endpoints.join(',')}/test`;
  try {
    const cluster = await LocalCluster.create({ ...options, coordinators: COORDINATORS, storage });
    try {
      for (let index = 0; index < COORDINATORS; index++)
        await cluster.restartCoordinator({}, index);
      return await body(cluster);
    } catch (error) {
      process.stderr.write(`${cluster.logTails()}\n`);
      throw error;
    } finally {
      await cluster.stop();
    }
  } finally {
    await etcd.stop();
  }
}

/** Index of the coordinator that leads. */
export async function leaderOf(client: Client, cluster: LocalCluster): Promise<number> {
  const { leader } = await client.status({ timeoutMs: 20_000 });
  const index = cluster.coordinatorAt(leader);
  invariant(index !== undefined, `${leader} is a coordinator of the cluster`);
  return index;
}

/** How long until somebody serves a higher term. */
export async function takeoverMs(client: Client, term: number, fromMs: number): Promise<number> {
  for (;;) {
    const status = await client.status({ timeoutMs: 30_000 });
    if (status.term > term) return performance.now() - fromMs;
    await delay(1);
  }
}

/** Ends the leader, starts it again when another one leads; how long nobody did. */
export async function replaceLeader(
  cluster: LocalCluster,
  client: Client,
  signal: 'SIGKILL' | 'SIGTERM',
): Promise<number> {
  const { term } = await client.status();
  const leader = await leaderOf(client, cluster);
  const fromMs = performance.now();
  const ended = cluster.killCoordinator(signal, leader);
  const tookMs = await takeoverMs(client, term, fromMs);
  await ended;
  await cluster.restartCoordinator({}, leader);
  await waitFor('all candidates', CANDIDATES_TIMEOUT_MS, async () => {
    const { standbys } = await client.status();
    return standbys.length === COORDINATORS - 1 || undefined;
  });
  return tookMs;
}

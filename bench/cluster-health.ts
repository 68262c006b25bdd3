/**
 * Waiting for a state of the cluster: polls `status` until it is reached, and fails with what was
 * seen last. Used by benchmarks, the demo and tests after they have killed something.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from '../src/client/index.js';
import { RekindleError } from '../src/rpc/errors.js';
import { WsLinkPool } from '../src/rpc/link-pool.js';
import type { ClusterStatus, RecoveryReport, ServerStats } from '../src/rpc/messages.js';

const POLL_MS = 50;

export async function waitFor<T>(
  what: string,
  timeoutMs: number,
  probe: () => Promise<T | undefined>,
): Promise<T> {
  const end = performance.now() + timeoutMs;
  let last: unknown;
  while (performance.now() < end) {
    try {
      const found = await probe();
      if (found !== undefined) return found;
    } catch (error) {
      // A coordinator that restarts is not a failure of the wait; any bug is.
      if (!(error instanceof RekindleError) || !error.retryable) throw error;
      last = error;
    }
    await delay(POLL_MS);
  }
  const why = last instanceof Error ? ` (${last.message})` : '';
  throw new RekindleError('TIMEOUT', `${what}: not within ${timeoutMs} ms${why}`, { cause: last });
}

/** The newest recovery of this server, once it is done. */
export function waitForRecovery(
  client: Client,
  serverId: number,
  timeoutMs: number,
): Promise<RecoveryReport> {
  return waitFor(`recovery of server ${serverId}`, timeoutMs, async () => {
    const { recoveries } = await client.status();
    return recoveries.findLast(
      ({ crashedServerId, state }) => crashedServerId === serverId && state === 'done',
    );
  });
}

/** `servers` servers are up, nothing recovers, every tablet has an owner that serves. */
export function waitUntilWhole(
  client: Client,
  servers: number,
  timeoutMs: number,
): Promise<ClusterStatus> {
  return waitFor(`${servers} servers up and all tablets served`, timeoutMs, async () => {
    const status = await client.status();
    const up = status.servers.filter((server) => server.status === 'up').length;
    const whole =
      up >= servers &&
      up === status.servers.length &&
      status.recoveries.every(({ state }) => state === 'done') &&
      status.tables.every(({ tablets }) => tablets.every((tablet) => tablet.status === 'normal'));
    return whole ? status : undefined;
  });
}

/** Counters and sizes of all servers that are up. */
export async function serverStats(client: Client): Promise<ServerStats[]> {
  const links = new WsLinkPool({
    identity: () => ({ role: 'tool', clusterId: null, serverId: null }),
  });
  try {
    const { servers } = await client.status();
    const up = servers.filter(({ status }) => status === 'up');
    return await Promise.all(
      up.map(({ address }) => links.link(address).call('GET_SERVER_STATS', {})),
    );
  } finally {
    links.close();
  }
}

/**
 * Every server has touched all of its log memory, as servers have that did not start just now.
 * Memory that a virtual machine gets for the first time is 10 to 30 times slower.
 */
export async function waitUntilTouched(client: Client, timeoutMs: number): Promise<void> {
  await waitFor('log memory of all servers touched', timeoutMs, async () => {
    const servers = await serverStats(client);
    const touched = servers.every(
      ({ master }) => master === null || (master.touchedBytes ?? 0) >= (master.memoryBytes ?? 0),
    );
    return touched ? true : undefined;
  });
}

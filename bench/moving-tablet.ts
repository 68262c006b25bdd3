/**
 * A table of one tablet that goes from server to server: what the parts of `bench migration` do
 * with it.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Client, Table } from '../src/client/index.js';
import type { LocalCluster } from '../src/cluster/local-cluster.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import type { MigrationReport, TabletInfo } from '../src/rpc/messages.js';
import type { CheckedLoad } from './checked-load.js';
import type { Dataset } from './dataset.js';
import type { FaultFiles } from './fault-files.js';

export interface MovingTablet {
  cluster: LocalCluster;
  client: Client;
  files: FaultFiles;
  table: Table;
  dataset: Dataset;
  /** Works on keys of its own in the same table. */
  load: CheckedLoad;
}

export const TABLE = 'moving';
const MOVE_TIMEOUT_MS = 180_000;
const POLL_MS = 20;

export async function tabletsOf(client: Client): Promise<TabletInfo[]> {
  const { tables } = await client.status({ timeoutMs: 20_000 });
  return tables.find(({ name }) => name === TABLE)?.tablets ?? [];
}

export async function ownerOf(client: Client): Promise<number> {
  const tablets = await tabletsOf(client);
  const [tablet] = tablets;
  invariant(tablet !== undefined && tablets.length === 1, 'the table is one tablet');
  return tablet.serverId;
}

/** A recovery has made several of it, on as many servers: one again, on one server. */
export async function gather(client: Client): Promise<void> {
  const tablets = await tabletsOf(client);
  const [first] = tablets;
  invariant(first !== undefined, 'the table is there');
  for (const { startSlot, serverId } of tablets) {
    if (serverId === first.serverId) continue;
    const id = await client.migrateTablet(TABLE, startSlot, first.serverId, { timeoutMs: 30_000 });
    const { report } = await waitForMigration(client, id);
    invariant(report?.state === 'done', `nobody disturbs this: ${report?.reason}`);
  }
  if (tablets.length > 1) await client.mergeTablets(TABLE, { timeoutMs: 60_000 });
}

/** To the next server; the number of the migration. */
export async function moveOn({ client, cluster }: MovingTablet): Promise<number> {
  const index = cluster.indexOf(await ownerOf(client));
  invariant(index !== undefined, 'the owner of the tablet is a server of the cluster');
  const target = cluster.serverId((index + 1) % cluster.serverCount);
  invariant(target !== undefined, 'all servers are up');
  return client.migrateTablet(TABLE, 0, target, { timeoutMs: 30_000 });
}

export interface MigrationEnd {
  /** A coordinator that was started since does not tell of those that ended before. */
  report: MigrationReport | undefined;
  atMs: number;
}

/** Waits closely: a move takes seconds. */
export async function waitForMigration(client: Client, id: number): Promise<MigrationEnd> {
  const giveUpMs = performance.now() + MOVE_TIMEOUT_MS;
  while (performance.now() < giveUpMs) {
    const { migrations } = await client.status({ timeoutMs: 60_000 });
    const report = migrations.find(({ migrationId }) => migrationId === id);
    const over = report === undefined || report.state === 'done' || report.state === 'aborted';
    if (over) return { report, atMs: performance.now() };
    await delay(POLL_MS);
  }
  throw new RekindleError('TIMEOUT', `migration ${id}: no end within ${MOVE_TIMEOUT_MS} ms`);
}

/**
 * A tablet is moved again and again, and each time one of the three processes that take part is
 * killed with SIGKILL at another phase (docs/migration.md), and started again at once.
 *
 * Rule: after each kill the cluster becomes whole, the migration has an end, the tablet can be read
 * and written, and the servers have exactly the tablets and objects that the map and the keys tell.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Client } from '../src/client/index.js';
import { serverStats, waitFor, waitUntilWhole } from './cluster-health.js';
import { untilTrue } from './fault-files.js';
import {
  gather,
  type MovingTablet,
  moveOn,
  ownerOf,
  tabletsOf,
  waitForMigration,
} from './moving-tablet.js';

export interface KillOutcome {
  who: string;
  at: string;
  /** Whether the target owns the tablet, and is the process that started the move. */
  moved: boolean;
  wholeMs: number;
  longestCallMs: number;
  /** Tablets and objects on servers beyond those that there are, or short of them. */
  orphans: number;
}

type Role = 'source' | 'target' | 'coordinator';

interface Phase {
  who: Role;
  at: string;
  /** A fault point that the process passes; without one it is killed in the middle of the scan. */
  point?: string;
}

const PHASES: readonly Phase[] = [
  { who: 'coordinator', at: '1, recorded', point: 'migrate-2' },
  { who: 'target', at: '2, told to fetch', point: 'request-MIGRATE' },
  { who: 'source', at: '3, the log is marked', point: 'reply-START_MIGRATION' },
  { who: 'source', at: '4, half of the scan' },
  { who: 'target', at: '4, half of the scan' },
  { who: 'coordinator', at: '4, half of the scan' },
  { who: 'target', at: '5, nearly all is there', point: 'migrate-3' },
  { who: 'source', at: '6, no writes', point: 'reply-FREEZE_TABLET' },
  { who: 'target', at: '8, no reads', point: 'migrate-4' },
  { who: 'coordinator', at: '9, before the commit', point: 'migrate-5' },
  { who: 'coordinator', at: '9, committed', point: 'migrate-6' },
  { who: 'source', at: '10, told to forget', point: 'request-DROP_TABLET_OWNERSHIP' },
];
/** `--quick`: the scan of each role only. */
const isQuick = ({ point }: Phase): boolean => point === undefined;

const STRUCK_TIMEOUT_MS = 120_000;
const WHOLE_TIMEOUT_MS = 180_000;
const SERVED_TIMEOUT_MS = 10_000;
const COUNTED_TIMEOUT_MS = 30_000;
const POLL_MS = 100;

export async function killAtEachPhase(
  moving: MovingTablet,
  quick: boolean,
): Promise<KillOutcome[]> {
  const outcomes: KillOutcome[] = [];
  for (const phase of PHASES) {
    if (quick && !isQuick(phase)) continue;
    process.stderr.write(`kill the ${phase.who} at step ${phase.at}\n`);
    outcomes.push(await killAt(moving, phase));
  }
  return outcomes;
}

async function killAt(moving: MovingTablet, phase: Phase): Promise<KillOutcome> {
  const { client, cluster, files, load } = moving;
  await waitUntilWhole(client, cluster.serverCount, WHOLE_TIMEOUT_MS);
  await gather(client);
  const source = cluster.indexOf(await ownerOf(client)) ?? 0;
  const target = (source + 1) % cluster.serverCount;
  const indexes: Record<Role, number | undefined> = { source, target, coordinator: undefined };
  const index = indexes[phase.who];
  const name = index === undefined ? 'coordinator' : `server-${index + 1}`;
  const pid = pidOf(moving, name);
  if (phase.point !== undefined) await files.arm(name, `${phase.point}=crash`);
  load.longestMs = 0;
  // Its answer may be what the process is killed before.
  const started = moveOn(moving);
  if (phase.point === undefined) await killInScan(moving, await started, index);
  const ended = await untilTrue(() => pidOf(moving, name) !== pid, STRUCK_TIMEOUT_MS);
  if (!ended) throw new Error(`the ${phase.who} did not come to step ${phase.at}`);
  files.disarm(name);
  const endMs = performance.now();
  if (index === undefined) await cluster.restartCoordinator();
  else await cluster.restartServer(index);
  await waitUntilWhole(client, cluster.serverCount, WHOLE_TIMEOUT_MS);
  await waitForMigration(client, await started);
  const wholeMs = performance.now() - endMs;
  const longestCallMs = load.longestMs;
  const tablets = await tabletsOf(client);
  const moved = tablets.every(({ serverId }) => cluster.indexOf(serverId) === target);
  const orphans = await countOrphans(moving);
  return { who: phase.who, at: phase.at, moved, wholeMs, longestCallMs, orphans };
}

function pidOf({ cluster }: MovingTablet, name: string): number | undefined {
  return cluster.processes().find((each) => each.name === name)?.pid;
}

async function killInScan(
  { client, cluster, dataset }: MovingTablet,
  migrationId: number,
  index: number | undefined,
): Promise<void> {
  const half = (dataset.count * dataset.valueBytes) / 2;
  await waitFor('half of the scan', STRUCK_TIMEOUT_MS, async () => {
    const { migrations } = await client.status();
    const { bytes = 0 } = migrations.find((each) => each.migrationId === migrationId) ?? {};
    return bytes > half || undefined;
  });
  if (index === undefined) await cluster.killCoordinator('SIGKILL');
  else await cluster.killServer(index, 'SIGKILL');
}

/** The load rests meanwhile: what it writes would change the count. */
async function countOrphans({ client, table, dataset, load }: MovingTablet): Promise<number> {
  await load.stop();
  await table.put(dataset.key(0), dataset.value(0), { timeoutMs: SERVED_TIMEOUT_MS });
  await load.readAll();
  const expected = dataset.count + (await load.countLive());
  const end = performance.now() + COUNTED_TIMEOUT_MS;
  let difference = await countDifference(client, expected);
  // A source that is told to forget a tablet does so in turns.
  while (difference !== 0 && performance.now() < end) {
    await delay(POLL_MS);
    difference = await countDifference(client, expected);
  }
  load.start();
  return difference;
}

async function countDifference(client: Client, expectedObjects: number): Promise<number> {
  const servers = await serverStats(client);
  const tablets = (await tabletsOf(client)).length;
  const sum = (of: string): number =>
    servers.reduce((total, { master }) => total + (master?.[of] ?? 0), 0);
  return Math.abs(sum('objects') - expectedObjects) + Math.abs(sum('tablets') - tablets);
}

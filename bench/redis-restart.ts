/**
 * How long Redis takes to be back with the same data after SIGKILL: from its append-only file as
 * the commands were written, from one that was rewritten (a snapshot inside), and from a snapshot.
 * Started again at once, as the best supervisor would; the files are in the page cache, as the
 * frames of Rekindle's backups are.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import { RekindleError } from '../src/rpc/errors.js';
import type { Dataset } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { type RedisClient, RedisServer } from './redis-server.js';

export interface RedisRestartTimes {
  /** Append-only file as written: one command an object. */
  aofMs: number;
  /** The same after BGREWRITEAOF. */
  aofRewrittenMs: number;
  rdbMs: number;
}

const POLL_MS = 5;
const REWRITE_POLL_MS = 50;
const REWRITE_TIMEOUT_MS = 120_000;
const AOF = ['--save', '', '--appendonly', 'yes', '--appendfsync', 'everysec'];
/** Else a rewrite could begin at any moment of the load and change what is measured. */
const NO_REWRITE = ['--auto-aof-rewrite-percentage', '0'];
const RDB = ['--save', '', '--appendonly', 'no'];

export async function measureRedisRestart(dataset: Dataset): Promise<RedisRestartTimes> {
  const directory = makeTemporaryFolder('rekindle-redis-');
  let server = await RedisServer.start(directory, [...AOF, ...NO_REWRITE]);
  try {
    await use(server, async (client) => {
      await writeDataset(storeOf(client), dataset);
    });
    const restart = async (settings: string[]): Promise<number> => {
      const start = performance.now();
      await server.stop('SIGKILL');
      server = await RedisServer.start(directory, settings);
      const last = dataset.count - 1;
      const value = await server.answers(dataset.key(last), POLL_MS);
      if (!dataset.matches(last, value ?? undefined)) {
        throw new RekindleError('INTERNAL', 'redis has not the object that was written last');
      }
      return performance.now() - start;
    };
    // Two seconds cover the fsync of every second, so that nothing is lost by the kill.
    await delay(2_000);
    const aofMs = await restart([...AOF, ...NO_REWRITE]);
    await use(server, rewriteAof);
    const aofRewrittenMs = await restart([...AOF, ...NO_REWRITE]);
    await use(server, (client) => client.save());
    const rdbMs = await restart(RDB);
    return { aofMs, aofRewrittenMs, rdbMs };
  } finally {
    await server.stop('SIGKILL');
    removeTemporaryFolder(directory);
  }
}

async function use(
  server: RedisServer,
  work: (client: RedisClient) => Promise<unknown>,
): Promise<void> {
  const client = await server.client();
  try {
    await work(client);
  } finally {
    client.disconnect();
  }
}

function storeOf(client: RedisClient): Parameters<typeof writeDataset>[0] {
  return {
    putMany: (entries) => client.mset(...entries.flat()),
  };
}

async function rewriteAof(client: RedisClient): Promise<void> {
  await client.bgrewriteaof();
  const end = performance.now() + REWRITE_TIMEOUT_MS;
  while (performance.now() < end) {
    const info = await client.info('persistence');
    if (/aof_rewrite_in_progress:0/.test(info) && /aof_rewrite_scheduled:0/.test(info)) return;
    await delay(REWRITE_POLL_MS);
  }
  throw new RekindleError('TIMEOUT', 'redis did not rewrite its append-only file');
}

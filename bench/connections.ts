/**
 * `rekindle bench connections`: one server with thousands of connections. What one of them costs
 * the server, how soon they are made, how long a call on any of them takes while each is used now
 * and then, and what a client with small reads notices of loaders that write as fast as they can.
 *
 * The server has one core, all else the other (pinning.ts). Loaders are the native generator, with
 * a lower priority than the reader, so that the reader waits for the server and not for them.
 */

import type { Histogram } from 'hdr-histogram-js';
import { type Client, connect, type Table } from '../src/client/index.js';
import { LocalCluster } from '../src/cluster/local-cluster.js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import { invariant } from '../src/rpc/errors.js';
import { WsLink } from '../src/rpc/ws-link.js';
import { serverStats, waitUntilTouched } from './cluster-health.js';
import { forEachBatch } from './concurrency.js';
import { coreBinary } from './core-binary.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { atFixedRate, isPast, percentileUs } from './fixed-rate.js';
import { Pinning } from './pinning.js';
import { type BenchOptions, type BenchResult, machineLine, metric } from './report.js';
import { runWireLoad } from './wire-load.js';

export interface ConnectionsBenchOptions extends BenchOptions {
  connections: number;
  memoryBytes: number;
}

const CALLS_PER_SECOND = 500;
const OBJECTS = 100_000;
const VALUE_BYTES = 100;
const DIALS_AT_ONCE = 50;
const TOUCH_TIMEOUT_MS = 120_000;
/** Of the loaders, and the operations of each of their messages. */
const LOADERS = 8;
const OPERATIONS = 256;

interface Figures {
  connectMs: number;
  bytesPerConnection: number;
  calls: Record<string, Histogram>;
  loaderPerSecond: number;
  refused: number;
}

export async function runConnectionsBench(options: ConnectionsBenchOptions): Promise<BenchResult> {
  const pinning = new Pinning();
  const binary = coreBinary();
  const { memoryBytes } = options;
  const placement = () => ({ host: '127.0.0.1', command: pinning.server });
  const cluster = await LocalCluster.start({ servers: 1, replicas: 0, memoryBytes, placement });
  try {
    pinning.pinThisProcess();
    await using client = await connect(cluster.url, { timeoutMs: 30_000 });
    await waitUntilTouched(client, TOUCH_TIMEOUT_MS);
    const table = await client.createTable('bench', { span: 1 });
    const dataset = new Dataset('object', OBJECTS, VALUE_BYTES);
    await writeDataset(table, dataset);
    return result(options, await measure(options, client, table, dataset, binary, pinning));
  } finally {
    await cluster.stop();
  }
}

async function measure(
  { connections, quick }: ConnectionsBenchOptions,
  client: Client,
  table: Table,
  dataset: Dataset,
  binary: string,
  pinning: Pinning,
): Promise<Figures> {
  const durationMs = quick ? 4_000 : 20_000;
  const random = randomStream(1);
  const get = (): Promise<unknown> => table.get(dataset.key(random() % dataset.count));
  const reads = (): Promise<Histogram> => atFixedRate(get, CALLS_PER_SECOND, isPast(durationMs));
  await reads(); // warms up
  const alone = await reads();
  const { servers, tables } = await client.status();
  const { address } = servers[0] ?? {};
  const { tableId } = tables[0] ?? {};
  invariant(address !== undefined && tableId !== undefined, 'one server has the one table');
  const rssBefore = await rssOf(client);
  const links = Array.from(
    { length: connections },
    () =>
      new WsLink(address, { identity: () => ({ role: 'tool', clusterId: null, serverId: null }) }),
  );
  try {
    const startMs = performance.now();
    await dialAll(links);
    const connectMs = performance.now() - startMs;
    const bytesPerConnection = ((await rssOf(client)) - rssBefore) / connections;
    let next = 0;
    const ping = (): Promise<unknown> =>
      (links[next++ % connections] as WsLink).call('PING', { callerServerId: null });
    const each = await atFixedRate(ping, CALLS_PER_SECOND, isPast(durationMs));
    const among = await reads();
    const load = {
      ...({ dialect: 'rekindle', address, work: 'write', connections: LOADERS, tableId } as const),
      ...{ operations: OPERATIONS, objects: OBJECTS, valueBytes: VALUE_BYTES, ms: durationMs },
    };
    const command = ['nice', '-n', '15', ...pinning.client];
    const [loader, beside] = await Promise.all([runWireLoad(binary, load, command), reads()]);
    const [stats] = await serverStats(client);
    return {
      connectMs,
      bytesPerConnection,
      calls: { alone, each, among, beside },
      loaderPerSecond: loader.perSecond,
      refused: stats?.endpoint.connectionsRefused ?? 0,
    };
  } finally {
    for (const link of links) link.close();
  }
}

async function rssOf(client: Client): Promise<number> {
  const [stats] = await serverStats(client);
  invariant(stats !== undefined, 'the server answers');
  return stats.rssBytes;
}

async function dialAll(links: readonly WsLink[]): Promise<void> {
  const progress = startProgress('connect', links.length, 'connections');
  await forEachBatch(links.length, 1, DIALS_AT_ONCE, async (index) => {
    await links[index]?.call('PING', { callerServerId: null }, { timeoutMs: 10_000 });
    progress.advance(1);
  });
  progress.stop();
}

const WHAT: Record<string, string> = {
  alone: 'reads, no other connection',
  each: 'calls, each on the next connection',
  among: 'reads, all connections open',
  beside: 'reads, all open, loaders write',
};

function result(options: ConnectionsBenchOptions, figures: Figures): BenchResult {
  const { connections, memoryBytes, quick } = options;
  const { connectMs, bytesPerConnection, calls, loaderPerSecond, refused } = figures;
  const rows = Object.entries(calls).map(([name, times]) => [
    WHAT[name] ?? name,
    formatCount(times.totalCount),
    ...[50, 99, 99.9].map((at) => formatMs(percentileUs(times, at) / 1000)),
  ]);
  const text = [
    `bench connections: ${formatCount(connections)} connections to one server, ` +
      `${CALLS_PER_SECOND} calls a second, timed from when each was due`,
    machineLine(),
    '',
    `connected in ${formatMs(connectMs)}, ${formatCount(Math.round(bytesPerConnection))} B of ` +
      `the server's memory each, ${refused} refused`,
    textTable(['', 'calls', 'p50', 'p99', 'p99.9'], rows),
    `${LOADERS} loaders: ${formatCount(Math.round(loaderPerSecond))} writes a second, ` +
      `${OPERATIONS} a message`,
  ].join('\n');
  const metrics = [
    metric('connect-ms', 'ms', connectMs),
    metric('server-bytes-per-connection', 'B', bytesPerConnection),
    metric('connections-refused', 'connections', refused),
    metric('loader-writes', 'operations/s', loaderPerSecond, true),
    ...Object.entries(calls).flatMap(([name, times]) =>
      [50, 99].map((at) => metric(`${name}-p${at}-ms`, 'ms', percentileUs(times, at) / 1000)),
    ),
  ];
  const parameters = { connections, memoryBytes, quick };
  return { name: 'connections', parameters, metrics, text, passed: refused === 0 };
}

/**
 * Redis, or Valkey, with three durable copies as the peer of a benchmark: a primary and two
 * replicas with `appendfsync always`, and WAIT 2 behind the writes, which a replica answers after
 * its fsync. A write counts when WAIT says 2.
 *
 * Two clients, since neither is the faster one everywhere: `batched` sends the writes of a turn
 * and one WAIT in one pipeline on one connection, `each` has 64 connections and a WAIT with every
 * write. Reads go to the primary on a connection of their own: WAIT holds up what is behind it.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import { RekindleError } from '../src/rpc/errors.js';
import type { Writer } from './object-store.js';
import { type RedisClient, RedisServer, type RespPeer } from './redis-server.js';

const REPLICAS = 2;
const CONNECTIONS = 64;
const SYNC_TIMEOUT_MS = 20_000;
const SYNC_POLL_MS = 50;
const SETTINGS = [
  ...['--save', '', '--appendonly', 'yes', '--appendfsync', 'always'],
  // A rewrite could begin at any moment, and would cost Redis time.
  ...['--auto-aof-rewrite-percentage', '0'],
  // Else replicas begin five seconds late.
  ...['--repl-diskless-sync-delay', '0'],
];

type Entry = readonly [string, Buffer];

export class RedisReplicas {
  readonly batched: Writer;
  readonly each: Writer;
  readonly #reader: RedisClient;
  readonly #servers: RedisServer[];
  readonly #clients: RedisClient[];
  readonly #directory: string;

  private constructor(
    peer: RespPeer,
    servers: RedisServer[],
    clients: RedisClient[],
    directory: string,
  ) {
    this.#servers = servers;
    this.#clients = clients;
    this.#directory = directory;
    const [reader, first, ...rest] = clients as [RedisClient, RedisClient, ...RedisClient[]];
    this.#reader = reader;
    this.batched = new BatchedWriter(`${peer}, a WAIT a batch`, first);
    this.each = new EachWriter(`${peer}, a WAIT each`, rest);
  }

  static async start(peer: RespPeer = 'redis'): Promise<RedisReplicas> {
    const directory = makeTemporaryFolder('rekindle-redis-');
    const servers: RedisServer[] = [];
    const clients: RedisClient[] = [];
    try {
      for (let index = 0; index <= REPLICAS; index++) {
        const folder = join(directory, String(index));
        mkdirSync(folder);
        const primary = servers[0];
        const follow = primary === undefined ? [] : ['--replicaof', '127.0.0.1', `${primary.port}`];
        servers.push(await RedisServer.start(folder, [...SETTINGS, ...follow], [], peer));
      }
      const [primary] = servers as [RedisServer];
      for (let index = 0; index < CONNECTIONS + 2; index++) clients.push(await primary.client());
      await untilReplicated(clients[0] as RedisClient);
      return new RedisReplicas(peer, servers, clients, directory);
    } catch (error) {
      await stopAll(servers, clients, directory);
      throw error;
    }
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    return (await this.#reader.getBuffer(key)) ?? undefined;
  }

  get pids(): number[] {
    return this.#servers.map(({ pid }) => pid);
  }

  /** The primary's first. */
  get ports(): number[] {
    return this.#servers.map(({ port }) => port);
  }

  close(): Promise<void> {
    return stopAll(this.#servers, this.#clients, this.#directory);
  }
}

async function stopAll(
  servers: readonly RedisServer[],
  clients: readonly RedisClient[],
  directory: string,
): Promise<void> {
  for (const client of clients) client.disconnect();
  for (const server of servers) await server.stop('SIGKILL');
  removeTemporaryFolder(directory);
}

async function untilReplicated(client: RedisClient): Promise<void> {
  const end = performance.now() + SYNC_TIMEOUT_MS;
  while (performance.now() < end) {
    const info = await client.info('replication');
    if ([...info.matchAll(/^slave\d+:.*state=online/gm)].length === REPLICAS) return;
    await delay(SYNC_POLL_MS);
  }
  throw new RekindleError('TIMEOUT', 'the replicas of redis are not in sync');
}

/** Sets and one WAIT behind them, as one pipeline. */
async function setAndWait(client: RedisClient, entries: readonly Entry[]): Promise<void> {
  const pipeline = client.pipeline();
  for (const [key, value] of entries) pipeline.set(key, value);
  pipeline.wait(REPLICAS, 0);
  const results = (await pipeline.exec()) ?? [];
  for (const [error] of results) if (error !== null) throw error;
  const [, copies] = results.at(-1) ?? [null, 0];
  if (copies === REPLICAS) return;
  throw new RekindleError('INTERNAL', `WAIT of redis answered ${String(copies)}`);
}

class BatchedWriter implements Writer {
  readonly name: string;
  readonly #client: RedisClient;
  #entries: Entry[] = [];
  #sent: Promise<void> | null = null;

  constructor(name: string, client: RedisClient) {
    this.name = name;
    this.#client = client;
  }

  put(key: string, value: Buffer): Promise<void> {
    this.#entries.push([key, value]);
    this.#sent ??= this.#sendAtEndOfTurn();
    return this.#sent;
  }

  putMany(entries: readonly Entry[]): Promise<void> {
    return setAndWait(this.#client, entries);
  }

  async #sendAtEndOfTurn(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    const entries = this.#entries;
    this.#entries = [];
    this.#sent = null;
    await setAndWait(this.#client, entries);
  }
}

class EachWriter implements Writer {
  readonly name: string;
  readonly #clients: readonly RedisClient[];
  #next = 0;

  constructor(name: string, clients: readonly RedisClient[]) {
    this.name = name;
    this.#clients = clients;
  }

  put(key: string, value: Buffer): Promise<void> {
    return this.putMany([[key, value]]);
  }

  putMany(entries: readonly Entry[]): Promise<void> {
    const client = this.#clients[this.#next % CONNECTIONS] as RedisClient;
    this.#next += 1;
    return setAndWait(client, entries);
  }
}

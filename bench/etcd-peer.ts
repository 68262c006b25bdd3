/**
 * etcd with three members as the peer of a benchmark, through the client that coordinators use:
 * JSON over HTTP, at the member that leads. Every put is on the disks of two of three when it is
 * answered. etcd's gateway translates to gRPC, which a client that speaks gRPC itself saves.
 */
import { EtcdClient } from '../src/coordinator/external-storage/etcd-client.js';
import { RekindleError } from '../src/rpc/errors.js';
import { EtcdCluster, withoutEtcd } from './etcd.js';
import type { Writer } from './object-store.js';

const MEMBERS = 3;
const TIMEOUT_MS = 30_000;
/** A batch is one transaction. */
const BATCH_MAX = 1_024;

interface MemberStatus {
  header: { member_id: string };
  leader: string;
}

function base64(text: string | Buffer): string {
  return Buffer.from(text).toString('base64');
}

function clientOf(endpoint: string): EtcdClient {
  const log = (): void => undefined; // what fails is thrown by the call itself
  return new EtcdClient({ endpoints: [endpoint], tls: null, credentials: null, log });
}

export class EtcdStore implements Writer {
  readonly name = 'etcd, 3 members';
  readonly #cluster: EtcdCluster;
  readonly #client: EtcdClient;

  private constructor(cluster: EtcdCluster, client: EtcdClient) {
    this.#cluster = cluster;
    this.#client = client;
  }

  static async start(): Promise<EtcdStore> {
    if (withoutEtcd !== false) throw new RekindleError('INVALID_ARGUMENT', withoutEtcd);
    const cluster = await EtcdCluster.start(MEMBERS, ['--max-txn-ops', String(BATCH_MAX)]);
    try {
      return new EtcdStore(cluster, await clientOfLeader(cluster.endpoints));
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  get pids(): number[] {
    return this.#cluster.pids;
  }

  async put(key: string, value: Buffer): Promise<void> {
    const body = { key: base64(key), value: base64(value) };
    await this.#client.call('kv/put', body, { timeoutMs: TIMEOUT_MS });
  }

  async putMany(entries: readonly (readonly [string, Buffer])[]): Promise<void> {
    const success = entries.map(([key, value]) => ({
      request_put: { key: base64(key), value: base64(value) },
    }));
    await this.#client.call('kv/txn', { success }, { timeoutMs: TIMEOUT_MS });
  }

  async close(): Promise<void> {
    this.#client.close();
    await this.#cluster.stop();
  }
}

/** A follower would pass each put on. */
async function clientOfLeader(endpoints: readonly string[]): Promise<EtcdClient> {
  for (const endpoint of endpoints) {
    const client = clientOf(endpoint);
    const status = await client.call<MemberStatus>('maintenance/status', {}, { timeoutMs: 5_000 });
    if (status.leader === status.header.member_id) return client;
    client.close();
  }
  throw new RekindleError('INTERNAL', 'no member of etcd leads');
}

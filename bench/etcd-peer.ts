/**
 * etcd with three members, or one, as the peer of a benchmark, through the client that coordinators
 * use: JSON over HTTP, at the member that leads. Every put is on the disks of most members when it
 * is answered, and every get asks them (linearizable). A batch is one transaction. etcd's gateway
 * translates to gRPC, which a client that speaks gRPC itself saves.
 */
import { EtcdClient } from '../src/coordinator/external-storage/etcd-client.js';
import { invariant, RekindleError } from '../src/rpc/errors.js';
import { EtcdCluster, withoutEtcd } from './etcd.js';
import type { ObjectStore } from './object-store.js';

const TIMEOUT_MS = 30_000;
/** Operations of a transaction. */
const BATCH_MAX = 1_024;

const SETTINGS = [
  ...['--max-txn-ops', String(BATCH_MAX)],
  // 2 GB are the default, which versions of 1 MiB fill soon.
  ...['--quota-backend-bytes', String(8 * 2 ** 30)],
];

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

interface TransactionReply {
  responses?: { response_range?: RangeReply }[];
}

interface RangeReply {
  /** Absent: the key is. */
  kvs?: { value?: string }[];
}

function rangedValue({ kvs }: RangeReply): Buffer | undefined {
  const [found] = kvs ?? [];
  return found === undefined ? undefined : Buffer.from(found.value ?? '', 'base64');
}

export class EtcdStore implements ObjectStore {
  readonly name: string;
  readonly #cluster: EtcdCluster;
  readonly #client: EtcdClient;

  private constructor(cluster: EtcdCluster, client: EtcdClient) {
    const members = cluster.endpoints.length;
    this.name = `etcd, ${members} member${members === 1 ? '' : 's'}`;
    this.#cluster = cluster;
    this.#client = client;
  }

  /** `before` is put in front of the command of each member (`taskset`). */
  static async start(members: 1 | 3, before: readonly string[] = []): Promise<EtcdStore> {
    if (withoutEtcd !== false) throw new RekindleError('INVALID_ARGUMENT', withoutEtcd);
    const cluster = await EtcdCluster.start(members, SETTINGS, 'http', before);
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

  get address(): string {
    const [first] = this.#cluster.endpoints;
    invariant(first !== undefined, 'there is a member');
    return first;
  }

  async get(key: string): Promise<Uint8Array | undefined> {
    const body = { key: base64(key) };
    return rangedValue(
      await this.#client.call<RangeReply>('kv/range', body, { timeoutMs: TIMEOUT_MS }),
    );
  }

  async put(key: string, value: Buffer): Promise<void> {
    const body = { key: base64(key), value: base64(value) };
    await this.#client.call('kv/put', body, { timeoutMs: TIMEOUT_MS });
  }

  async getMany(keys: readonly string[]): Promise<(Uint8Array | undefined)[]> {
    const success = keys.map((key) => ({ request_range: { key: base64(key) } }));
    const limits = { timeoutMs: TIMEOUT_MS };
    const { responses = [] } = await this.#client.call<TransactionReply>(
      'kv/txn',
      { success },
      limits,
    );
    return responses.map(({ response_range: found = {} }) => rangedValue(found));
  }

  async putMany(entries: readonly (readonly [string, Buffer])[]): Promise<void> {
    // A transaction may write a key once: the last one counts.
    const success = [...new Map(entries)].map(([key, value]) => ({
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

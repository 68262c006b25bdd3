/**
 * `ExternalStorage` in etcd, for a leader and standbys on several hosts. All keys lie below one
 * prefix (docs/formats.md §5): `leader`, `revision`, `state/…`, `candidates/…`. Versions and
 * revisions are etcd's own (mod_revision), so none is ever given twice.
 *
 * Every transaction names what it expects and leaves a mark of its own, so a repeated one changes
 * nothing more, and one whose answer was lost is found by reading: if the mark is there it was
 * done. The leader's key hangs on a lease, as a fallback: it goes when its holder cannot reach etcd
 * any more.
 */
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { asRekindleError, RekindleError } from '../../rpc/errors.js';
import type { Log } from '../context.js';
import { EtcdClient } from './etcd-client.js';
import { EtcdLease } from './etcd-lease.js';
import {
  base64,
  commitOperations,
  type EtcdKey,
  EtcdKeys,
  type RangeReply,
  type TransactionReply,
  type WatchReply,
} from './etcd-records.js';
import {
  type CampaignResult,
  type Candidacy,
  checkWrites,
  type ExternalStorage,
  fenced,
  type Leadership,
  type StorageContent,
  type StorageWatcher,
  type StorageWrite,
} from './external-storage.js';
import type { EtcdAddress } from './storage-url.js';

export interface EtcdStorageOptions {
  log: Log;
  /** Seconds after which a silent leader's key goes; at least 2. */
  leaseSeconds?: number;
  attemptTimeoutMs?: number;
}

const CALL_TIMEOUT_MS = 5_000;
/** For `rekindle status`, which waits itself. */
const LOOK_TIMEOUT_MS = 800;
const LEASE_SECONDS = 5;
const PAGE_KEYS = 512;

export class EtcdStorage implements ExternalStorage {
  private readonly keys: EtcdKeys;
  private readonly lease: EtcdLease;
  private readonly watches = new Set<() => void>();

  private constructor(
    private readonly client: EtcdClient,
    prefix: string,
    options: EtcdStorageOptions,
  ) {
    this.keys = new EtcdKeys(prefix);
    this.lease = new EtcdLease(client, options.leaseSeconds ?? LEASE_SECONDS, options.log);
  }

  /** Reads the files that the address names; connects at the first call. */
  static async open(address: EtcdAddress, options: EtcdStorageOptions): Promise<EtcdStorage> {
    const { endpoints, prefix, user, tls } = address;
    const client = new EtcdClient({
      endpoints,
      tls: tls === null ? null : await readTls(tls),
      credentials: user === null ? null : { user, password: await passwordOf(address) },
      log: options.log,
      ...(options.attemptTimeoutMs === undefined
        ? {}
        : { attemptTimeoutMs: options.attemptTimeoutMs }),
    });
    return new EtcdStorage(client, prefix, options);
  }

  async list(): Promise<StorageContent> {
    const { keys } = this;
    const all: EtcdKey[] = [];
    let position: number | null = null;
    let key = keys.first;
    for (;;) {
      const reply: RangeReply = await this.client.call(
        'kv/range',
        {
          key: base64(key),
          range_end: base64(keys.end),
          limit: String(PAGE_KEYS),
          // All pages of one moment.
          ...(position === null ? {} : { revision: String(position) }),
        },
        { timeoutMs: CALL_TIMEOUT_MS },
      );
      position ??= Number(reply.header.revision);
      all.push(...(reply.kvs ?? []));
      const last = all.at(-1);
      if (!reply.more || last === undefined) break;
      key = `${Buffer.from(last.key, 'base64').toString()}\0`;
    }
    return keys.contentOf(all, position);
  }

  watch(position: number, watcher: StorageWatcher): () => void {
    const stop = this.client.stream<WatchReply>(
      'watch',
      {
        create_request: {
          key: base64(this.keys.first),
          range_end: base64(this.keys.end),
          start_revision: String(position + 1),
        },
      },
      (reply) => {
        if (reply.canceled) {
          stop();
          const reason = reply.cancel_reason ?? 'compacted';
          watcher.lost(new RekindleError('RETRY', `etcd has ended the watch: ${reason}`));
        } else for (const change of this.keys.changesOf(reply)) watcher.changed(change);
      },
      (error) => watcher.lost(error),
    );
    this.watches.add(stop);
    return () => {
      this.watches.delete(stop);
      stop();
    };
  }

  async campaign(found: Leadership | null, candidacy: Candidacy): Promise<CampaignResult> {
    const { keys } = this;
    const { term, candidateId, address } = candidacy;
    const value = { term, candidateId, address };
    const reply = await this.lease.hold((lease) =>
      this.transaction({
        compare: [keys.isVersion(keys.leader, found?.version ?? 0)],
        success: [{ request_put: { ...keys.pair(keys.leader, value), lease } }],
      }),
    );
    const { leader, revision } = keys.rulersOf(reply);
    if (reply.succeeded) {
      return { leader: { ...value, version: Number(reply.header.revision) }, revision };
    }
    if (leader !== null) return { leader, revision };
    // It has gone meanwhile: nobody has won.
    throw new RekindleError('RETRY', 'the leader has resigned during the campaign');
  }

  async confirm(leadership: Leadership): Promise<void> {
    const { leader } = this.keys.rulersOf(await this.transaction({ compare: [], success: [] }));
    if (leader?.version !== leadership.version) throw deposed(leader);
  }

  async resign(leadership: Leadership): Promise<void> {
    const { keys } = this;
    await this.transaction({
      compare: [keys.isVersion(keys.leader, leadership.version)],
      success: [{ request_delete_range: { key: base64(keys.leader) } }],
    });
  }

  async commit(
    leadership: Leadership,
    expectedRevision: number,
    writes: readonly StorageWrite[],
  ): Promise<number> {
    checkWrites(writes);
    const { keys } = this;
    const commitId = randomUUID();
    const reply = await this.transaction(
      {
        compare: [
          keys.isVersion(keys.leader, leadership.version),
          keys.isVersion(keys.revision, expectedRevision),
        ],
        success: [
          ...commitOperations(keys, writes),
          { request_put: keys.pair(keys.revision, { commitId }) },
        ],
      },
      // Until it is known: who is deposed meanwhile hears of it as soon as etcd answers.
      Number.POSITIVE_INFINITY,
    );
    if (reply.succeeded) return Number(reply.header.revision);
    const rulers = keys.rulersOf(reply);
    // The answer of an earlier attempt was lost.
    if (rulers.commitId === commitId) return rulers.revision;
    if (rulers.leader?.version !== leadership.version) throw deposed(rulers.leader);
    throw fenced(
      `another coordinator has written: revision ${rulers.revision}, not ${expectedRevision}`,
    );
  }

  announce(candidateId: string, address: string): Promise<void> {
    return this.lease.announce(this.keys.pair(this.keys.candidate(candidateId), { address }));
  }

  async candidates(): Promise<string[]> {
    const { keys } = this;
    const range = { key: base64(keys.candidate('')), range_end: base64(keys.candidatesEnd) };
    const limits = { timeoutMs: LOOK_TIMEOUT_MS };
    const reply = await this.client.call<RangeReply>('kv/range', range, limits);
    return (reply.kvs ?? []).map((pair) => keys.valueOf<{ address: string }>(pair).address);
  }

  async close(): Promise<void> {
    for (const stop of this.watches) stop();
    this.watches.clear();
    await this.lease.close();
    this.client.close();
  }

  /** Both branches tell who leads and which commit is the newest: the last two answers. */
  private transaction(
    { compare, success }: { compare: unknown[]; success: unknown[] },
    timeoutMs = CALL_TIMEOUT_MS,
  ): Promise<TransactionReply> {
    const { leader, revision } = this.keys;
    const look = [leader, revision].map((key) => ({ request_range: { key: base64(key) } }));
    const body = { compare, success: [...success, ...look], failure: look };
    return this.client.call('kv/txn', body, { timeoutMs });
  }
}

function deposed(leader: Leadership | null): RekindleError {
  const who = leader === null ? 'nobody leads' : `term ${leader.term} is of ${leader.address}`;
  return fenced(`this coordinator does not lead any more: ${who}`);
}

async function passwordOf({ user, password, passwordFile }: EtcdAddress): Promise<string> {
  if (passwordFile !== null) return (await readPart(passwordFile)).toString().trimEnd();
  if (password !== null) return password;
  throw new RekindleError('INVALID_ARGUMENT', `there is no password for etcd's user ${user}`);
}

async function readTls(
  files: NonNullable<EtcdAddress['tls']>,
): Promise<{ ca?: Buffer; cert?: Buffer; key?: Buffer }> {
  const { caFile, certFile, keyFile } = files;
  return {
    ...(caFile === null ? {} : { ca: await readPart(caFile) }),
    ...(certFile === null ? {} : { cert: await readPart(certFile) }),
    ...(keyFile === null ? {} : { key: await readPart(keyFile) }),
  };
}

async function readPart(file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (thrown) {
    const cause = asRekindleError(thrown);
    throw new RekindleError('INVALID_ARGUMENT', `cannot read ${file}: ${cause.message}`, { cause });
  }
}

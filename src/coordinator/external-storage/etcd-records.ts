/**
 * What lies in etcd below the prefix, as bytes and back: names of keys, values, the JSON of the
 * gateway (base64, numbers as text). Pure functions of what they are given.
 */
import { RekindleError } from '../../rpc/errors.js';
import type {
  LeaderState,
  Leadership,
  StorageChange,
  StorageContent,
  StoragePair,
  StorageWrite,
} from './external-storage.js';

/** A key as etcd tells it; without a value in an event that removes it. */
export interface EtcdKey {
  key: string;
  value?: string;
  mod_revision: string;
}

interface Header {
  revision: string;
}

export interface RangeReply {
  header: Header;
  kvs?: EtcdKey[];
  more?: boolean;
}

export interface TransactionReply {
  header: Header;
  succeeded?: boolean;
  responses?: { response_range?: { kvs?: EtcdKey[] } }[];
}

export interface WatchReply {
  header: Header;
  events?: { type?: 'DELETE'; kv: EtcdKey }[];
  canceled?: boolean;
  cancel_reason?: string;
}

/** Writes of one nested transaction; etcd takes 128 operations at one level. */
const GROUP_WRITES = 60;
const GROUPS_MAX = 60;

export function base64(text: string): string {
  return Buffer.from(text, 'utf8').toString('base64');
}

export class EtcdKeys {
  /** All keys are from here … */
  readonly first: string;
  /** … up to here. */
  readonly end: string;
  readonly leader: string;
  readonly revision: string;
  readonly candidatesEnd: string;
  private readonly state: string;

  constructor(prefix: string) {
    this.first = `${prefix}/`;
    // The character after the slash.
    this.end = `${prefix}0`;
    this.leader = `${prefix}/leader`;
    this.revision = `${prefix}/revision`;
    this.candidatesEnd = `${prefix}/candidates0`;
    this.state = `${prefix}/state/`;
  }

  candidate(candidateId: string): string {
    return `${this.first}candidates/${candidateId}`;
  }

  stateKey(key: string): string {
    return `${this.state}${key}`;
  }

  pair(key: string, value: unknown): { key: string; value: string } {
    return { key: base64(key), value: base64(JSON.stringify(value)) };
  }

  /** A condition; 0: the key is not there. */
  isVersion(key: string, version: number): unknown {
    return { key: base64(key), target: 'MOD', result: 'EQUAL', mod_revision: String(version) };
  }

  valueOf<T>({ key, value }: EtcdKey): T {
    try {
      return JSON.parse(Buffer.from(value ?? '', 'base64').toString()) as T;
    } catch (cause) {
      const name = Buffer.from(key, 'base64').toString();
      throw new RekindleError('CHECKSUM_MISMATCH', `etcd: ${name} is not JSON`, { cause });
    }
  }

  contentOf(all: readonly EtcdKey[], position: number): StorageContent {
    let revision = 0;
    let leader: Leadership | null = null;
    const pairs: StoragePair[] = [];
    for (const each of all) {
      const name = Buffer.from(each.key, 'base64').toString();
      if (name === this.revision) revision = Number(each.mod_revision);
      else if (name === this.leader) leader = this.leadershipOf(each);
      else if (name.startsWith(this.state)) {
        pairs.push({ key: name.slice(this.state.length), value: this.valueOf(each) });
      }
    }
    const leaderState = { version: leader?.version ?? position, leader };
    return { revision, position, leaderState, pairs };
  }

  /** The last two answers of a transaction. */
  rulersOf(reply: TransactionReply): {
    leader: Leadership | null;
    revision: number;
    commitId: string | null;
  } {
    const [leader, newest] = (reply.responses ?? [])
      .slice(-2)
      .map(({ response_range }) => response_range?.kvs?.[0]);
    return {
      leader: leader === undefined ? null : this.leadershipOf(leader),
      revision: Number(newest?.mod_revision ?? 0),
      commitId: newest === undefined ? null : this.valueOf<{ commitId: string }>(newest).commitId,
    };
  }

  /** The transactions in a message of a watch, in their order; etcd never divides one. */
  changesOf({ events = [] }: WatchReply): StorageChange[] {
    const changes: StorageChange[] = [];
    for (let at = 0; at < events.length; ) {
      const revision = events[at]?.kv.mod_revision;
      let end = at;
      while (events[end]?.kv.mod_revision === revision) end += 1;
      changes.push(this.changeOf(events.slice(at, end)));
      at = end;
    }
    return changes;
  }

  private changeOf(events: NonNullable<WatchReply['events']>): StorageChange {
    let revision: number | null = null;
    let leaderState: LeaderState | undefined;
    const writes: StorageWrite[] = [];
    for (const { type, kv } of events) {
      const name = Buffer.from(kv.key, 'base64').toString();
      if (name === this.revision) revision = Number(kv.mod_revision);
      else if (name === this.leader) {
        const leader = type === 'DELETE' ? null : this.leadershipOf(kv);
        leaderState = { version: Number(kv.mod_revision), leader };
      } else if (name.startsWith(this.state)) {
        const value = type === 'DELETE' ? undefined : this.valueOf(kv);
        writes.push({ key: name.slice(this.state.length), value });
      }
    }
    return { commit: revision === null ? null : { revision, writes }, leaderState };
  }

  private leadershipOf(pair: EtcdKey): Leadership {
    const { term, candidateId, address } = this.valueOf<Omit<Leadership, 'version'>>(pair);
    return { term, candidateId, address, version: Number(pair.mod_revision) };
  }
}

/** Nested as deep as etcd's limit of operations makes it necessary. */
export function commitOperations(keys: EtcdKeys, writes: readonly StorageWrite[]): unknown[] {
  const operations = writes.map(({ key, value }) =>
    value === undefined
      ? { request_delete_range: { key: base64(keys.stateKey(key)) } }
      : { request_put: keys.pair(keys.stateKey(key), value) },
  );
  if (operations.length <= GROUP_WRITES) return operations;
  const groups: unknown[] = [];
  for (let at = 0; at < operations.length; at += GROUP_WRITES) {
    groups.push({ request_txn: { success: operations.slice(at, at + GROUP_WRITES) } });
  }
  if (groups.length > GROUPS_MAX) {
    throw new RekindleError(
      'REQUEST_TOO_LARGE',
      `a change of ${writes.length} records is larger than one commit ` +
        `(${GROUP_WRITES * GROUPS_MAX})`,
    );
  }
  return groups;
}

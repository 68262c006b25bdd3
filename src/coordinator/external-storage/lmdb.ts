/**
 * `ExternalStorage` in one directory on a local disk, by LMDB. Revision and leader are written in
 * the same transaction as the pairs, under keys that `list` does not show.
 *
 * The directory's lock makes its holder the only candidate: whoever led before is gone, so nobody
 * leads until `campaign`. If the lock did not reach that far (`directory-lock.ts`), the version of
 * the leader's record tells at the first commit.
 *
 * Overlapping sync is off, so a transaction has been synced before it is reported as committed;
 * `flushed` is awaited as well, so that the rule does not hang on one option.
 */
import { mkdir } from 'node:fs/promises';
import { open, type RootDatabase } from 'lmdb';
import { invariant, RekindleError } from '../../rpc/errors.js';
import { type DirectoryLock, lockDirectory } from './directory-lock.js';
import {
  type CampaignResult,
  type Candidacy,
  checkWrites,
  type ExternalStorage,
  fenced,
  type LeaderState,
  type Leadership,
  type StorageChange,
  type StorageContent,
  type StoragePair,
  type StorageWatcher,
  type StorageWrite,
} from './external-storage.js';

const REVISION_KEY = '!revision';
const LEADER_KEY = '!leader';
const RECENT_MAX = 64;

export class LmdbStorage implements ExternalStorage {
  /** Version of the record that the last holder of the directory has left. */
  private readonly inheritedVersion: number;
  private readonly watchers = new Set<StorageWatcher>();
  private announced: string | null = null;
  /** Transactions so far, and the newest ones: a watch may begin a moment after its `list`. */
  private position = 0;
  private readonly recent: StorageChange[] = [];

  private constructor(
    private readonly database: RootDatabase<unknown, string>,
    private readonly lock: DirectoryLock,
  ) {
    this.inheritedVersion = this.leaderRecord()?.version ?? 0;
  }

  /** Opens or creates the storage; the directory is locked until `close` or the process ends. */
  static async open(directory: string): Promise<LmdbStorage> {
    await mkdir(directory, { recursive: true });
    const lock = await lockDirectory(directory);
    try {
      const database = open<unknown, string>({
        path: directory,
        noSubdir: false,
        encoding: 'json',
        overlappingSync: false,
      });
      return new LmdbStorage(database, lock);
    } catch (error) {
      await lock.release();
      throw new RekindleError('DISK_ERROR', `cannot open the state in ${directory}: ${error}`, {
        cause: error,
      });
    }
  }

  async list(): Promise<StorageContent> {
    const pairs: StoragePair[] = [];
    for (const { key, value } of this.database.getRange({})) {
      if (key !== REVISION_KEY && key !== LEADER_KEY) pairs.push({ key, value });
    }
    const { position } = this;
    return { revision: this.revision(), position, leaderState: this.leaderState(), pairs };
  }

  watch(position: number, watcher: StorageWatcher): () => void {
    const missed = this.position - position;
    if (missed > this.recent.length) {
      queueMicrotask(() => {
        watcher.lost(new RekindleError('RETRY', 'changes since then are not kept'));
      });
      return () => undefined;
    }
    for (const change of missed > 0 ? this.recent.slice(-missed) : []) watcher.changed(change);
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }

  async campaign(found: Leadership | null, candidacy: Candidacy): Promise<CampaignResult> {
    const { term, candidateId, address } = candidacy;
    await this.transact(() => {
      const present = this.leaderState();
      const { version } = present;
      if (present.leader?.version !== found?.version) return null;
      const leader = { term, candidateId, address, version: version + 1 };
      void this.database.put(LEADER_KEY, leader);
      return { commit: null, leaderState: { version: leader.version, leader } };
    });
    const leader = this.leaderRecord();
    invariant(leader !== null, 'somebody leads after a campaign');
    return { leader, revision: this.revision() };
  }

  async confirm(leadership: Leadership): Promise<void> {
    if (this.leaderRecord()?.version !== leadership.version) throw fenced(this.deposedText());
  }

  async resign(leadership: Leadership): Promise<void> {
    await this.transact(() => {
      const record = this.leaderRecord();
      if (record?.version !== leadership.version) return null;
      // The version goes on: a record of a later leader must not look like this one.
      const vacant = { ...record, candidateId: '', version: record.version + 1 };
      void this.database.put(LEADER_KEY, vacant);
      return { commit: null, leaderState: { version: vacant.version, leader: null } };
    });
  }

  async commit(
    leadership: Leadership,
    expectedRevision: number,
    writes: readonly StorageWrite[],
  ): Promise<number> {
    checkWrites(writes);
    const revision = expectedRevision + 1;
    const done = await this.transact(() => {
      if (this.leaderRecord()?.version !== leadership.version) return null;
      if (this.revision() !== expectedRevision) return null;
      // Inside a transaction these belong to it: its own promise stands for all of them.
      for (const { key, value } of writes) {
        if (value === undefined) void this.database.remove(key);
        else void this.database.put(key, value);
      }
      void this.database.put(REVISION_KEY, revision);
      return { commit: { revision, writes: [...writes] }, leaderState: undefined };
    });
    if (done) return revision;
    throw fenced(
      this.leaderRecord()?.version === leadership.version
        ? `another coordinator has written to this storage: its revision is ${this.revision()}, ` +
            `expected ${expectedRevision}`
        : this.deposedText(),
    );
  }

  async announce(_candidateId: string, address: string): Promise<void> {
    this.announced = address;
  }

  async candidates(): Promise<string[]> {
    return this.announced === null ? [] : [this.announced];
  }

  async close(): Promise<void> {
    this.watchers.clear();
    await this.database.close();
    await this.lock.release();
  }

  /** Runs `change` in a transaction; when it is flushed, watchers hear of it. False: no change. */
  private async transact(change: () => StorageChange | null): Promise<boolean> {
    let made: StorageChange | null;
    try {
      made = await this.database.transaction(change);
      await this.database.flushed;
    } catch (error) {
      throw new RekindleError('DISK_ERROR', `the coordinator state was not stored: ${error}`, {
        cause: error,
      });
    }
    if (made === null) return false;
    this.position += 1;
    this.recent.push(made);
    if (this.recent.length > RECENT_MAX) this.recent.shift();
    for (const watcher of [...this.watchers]) watcher.changed(made);
    return true;
  }

  private revision(): number {
    return (this.database.get(REVISION_KEY) as number | undefined) ?? 0;
  }

  /** As written; a vacant one has no candidate. */
  private leaderRecord(): Leadership | null {
    return (this.database.get(LEADER_KEY) as Leadership | undefined) ?? null;
  }

  private leaderState(): LeaderState {
    const record = this.leaderRecord();
    if (record === null) return { version: 0, leader: null };
    const { version } = record;
    const vacant = record.candidateId === '' || version === this.inheritedVersion;
    return { version, leader: vacant ? null : record };
  }

  private deposedText(): string {
    const leader = this.leaderRecord();
    return `this coordinator does not lead: term ${leader?.term ?? 0} is of ${leader?.address}`;
  }
}

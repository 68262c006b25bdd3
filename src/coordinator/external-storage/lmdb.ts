/**
 * `ExternalStorage` in one directory on a local disk, by LMDB. The revision is written in the same
 * transaction as the pairs, under a key that `list` does not show.
 *
 * Overlapping sync is off, so a transaction has been synced before it is reported as committed;
 * `flushed` is awaited as well, so that the rule does not hang on one option.
 */
import { mkdir } from 'node:fs/promises';
import { open, type RootDatabase } from 'lmdb';
import { RekindleError } from '../../rpc/errors.js';
import { type DirectoryLock, lockDirectory } from './directory-lock.js';
import {
  COMMIT_BYTES_MAX,
  type ExternalStorage,
  type StorageContent,
  type StoragePair,
  type StorageWrite,
} from './external-storage.js';

const REVISION_KEY = '!revision';

export class LmdbStorage implements ExternalStorage {
  private constructor(
    private readonly database: RootDatabase<unknown, string>,
    private readonly lock: DirectoryLock,
  ) {}

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

  get(key: string): unknown {
    return this.database.get(key);
  }

  list(prefix: string): StorageContent {
    const pairs: StoragePair[] = [];
    for (const { key, value } of this.database.getRange({ start: prefix })) {
      if (!key.startsWith(prefix)) break;
      if (key !== REVISION_KEY) pairs.push({ key, value });
    }
    return { revision: this.revision(), pairs };
  }

  async commit(expectedRevision: number, writes: readonly StorageWrite[]): Promise<number> {
    checkSize(writes);
    let foundRevision = -1;
    try {
      await this.database.transaction(() => {
        foundRevision = this.revision();
        if (foundRevision !== expectedRevision) return;
        // Inside a transaction these belong to it: its own promise stands for all of them.
        for (const { key, value } of writes) {
          if (value === undefined) void this.database.remove(key);
          else void this.database.put(key, value);
        }
        void this.database.put(REVISION_KEY, expectedRevision + 1);
      });
      await this.database.flushed;
    } catch (error) {
      throw new RekindleError('DISK_ERROR', `the coordinator state was not stored: ${error}`, {
        cause: error,
      });
    }
    if (foundRevision !== expectedRevision) {
      throw new RekindleError(
        'FENCED',
        `another coordinator has written to this storage: its revision is ${foundRevision}, ` +
          `expected ${expectedRevision}`,
      );
    }
    return expectedRevision + 1;
  }

  async close(): Promise<void> {
    await this.database.close();
    await this.lock.release();
  }

  private revision(): number {
    return (this.database.get(REVISION_KEY) as number | undefined) ?? 0;
  }
}

function checkSize(writes: readonly StorageWrite[]): void {
  let bytes = 0;
  for (const { key, value } of writes) {
    if (key === REVISION_KEY || key.length === 0) {
      throw new RekindleError('INVALID_ARGUMENT', `"${key}" is no key of the coordinator state`);
    }
    bytes += key.length + (value === undefined ? 0 : JSON.stringify(value).length);
  }
  if (bytes > COMMIT_BYTES_MAX) {
    throw new RekindleError(
      'REQUEST_TOO_LARGE',
      `a change of ${bytes} B is larger than one commit (${COMMIT_BYTES_MAX} B)`,
    );
  }
}

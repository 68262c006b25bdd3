/**
 * Where the coordinator's state lives. The rule: `commit` is the only way to change anything, all
 * of its writes or none happen, and when it resolves they survive a power loss — that moment is the
 * commit point of every operation of the coordinator.
 *
 * The condition on the revision is the fence: a coordinator that is no longer alone loses the first
 * commit that it tries and must stop. What the keys mean is left to `coordinator-state.ts`.
 */

/** `value` undefined removes the key. Values are JSON. */
export interface StorageWrite {
  readonly key: string;
  readonly value: unknown;
}

export interface StoragePair {
  readonly key: string;
  readonly value: unknown;
}

export interface StorageContent {
  /** Number of commits so far. */
  readonly revision: number;
  /** Ascending by key. */
  readonly pairs: StoragePair[];
}

/** Most bytes of JSON in one commit, the bound that etcd has too. */
export const COMMIT_BYTES_MAX = 1_500_000;

export interface ExternalStorage {
  get(key: string): unknown;
  /** All pairs whose keys start with `prefix`, and the revision that they belong to. */
  list(prefix: string): StorageContent;
  /**
   * Applies all writes if the revision is still `expectedRevision`; resolves with the new revision
   * when flushed. Rejects with `FENCED` if somebody else has written (nothing changed) or with
   * `DISK_ERROR` (it is unknown whether the writes happened: the caller must stop and load again).
   */
  commit(expectedRevision: number, writes: readonly StorageWrite[]): Promise<number>;
  close(): Promise<void>;
}

/**
 * Where the coordinator's state lives and who may change it. The rule: `commit` is the only way to
 * change the state, all of its writes or none happen, and when it resolves they survive a power
 * loss — that moment is the commit point of every operation of the coordinator.
 *
 * A commit names the leadership that it belongs to and the revision that it was decided on; both
 * conditions are checked with the writes, in one transaction. So a deposed leader can change
 * nothing, whatever it believes, and `campaign` is safe at any moment: time is for liveness only.
 * What the keys mean is left to `coordinator-state.ts`, when to campaign to `election.ts`.
 */
import { RekindleError } from '../../rpc/errors.js';

/** `value` undefined removes the key. Values are JSON. */
export interface StorageWrite {
  readonly key: string;
  readonly value: unknown;
}

export interface StoragePair {
  readonly key: string;
  readonly value: unknown;
}

/** Who wants to lead. */
export interface Candidacy {
  readonly term: number;
  /** Of one process that runs; never used again. */
  readonly candidateId: string;
  /** `host:port` under which others reach it. */
  readonly address: string;
}

/** Who leads, as the storage has it. */
export interface Leadership extends Candidacy {
  /** Of the record; another one each time that it is written. */
  readonly version: number;
}

/** Who leads at a version of the record; a vacancy has one too, so that news can be ordered. */
export interface LeaderState {
  readonly version: number;
  readonly leader: Leadership | null;
}

export interface StorageContent {
  /** Of the newest commit; 0: there was none. Grows with each. */
  readonly revision: number;
  /** Where `watch` goes on from. */
  readonly position: number;
  readonly leaderState: LeaderState;
  /** Ascending by key. */
  readonly pairs: StoragePair[];
}

/** One transaction of anybody, as a watcher sees it. */
export interface StorageChange {
  /** null: no commit. */
  readonly commit: { readonly revision: number; readonly writes: StorageWrite[] } | null;
  /** undefined: unchanged. */
  readonly leaderState: LeaderState | undefined;
}

export interface StorageWatcher {
  /** In the order of the transactions, none left out. */
  changed(change: StorageChange): void;
  /** Nothing more comes: `list` and watch anew. */
  lost(error: RekindleError): void;
}

export interface CampaignResult {
  readonly leader: Leadership;
  /** Of the newest commit at that moment. */
  readonly revision: number;
}

/** Most bytes of JSON in one commit, the bound that etcd has too. */
export const COMMIT_BYTES_MAX = 1_500_000;

export interface ExternalStorage {
  /** Everything, as it was at one moment. */
  list(): Promise<StorageContent>;
  /** Every transaction after `position`. Returns what ends the watch. */
  watch(position: number, watcher: StorageWatcher): () => void;
  /**
   * Becomes the leader if `found` still is (null: nobody). Resolves with whoever leads then: the
   * caller has won if that is its own candidacy.
   */
  campaign(found: Leadership | null, candidacy: Candidacy): Promise<CampaignResult>;
  /**
   * Resolves if this leadership was not over at some moment after the call; else rejects with
   * `FENCED`.
   */
  confirm(leadership: Leadership): Promise<void>;
  /** Nobody leads, unless somebody else does already. */
  resign(leadership: Leadership): Promise<void>;
  /**
   * Applies all writes if the leadership is not over and the revision still `expectedRevision`;
   * resolves with the new revision when they are flushed. Rejects with `FENCED` if somebody else
   * leads or has written, `REQUEST_TOO_LARGE` or `INVALID_ARGUMENT` before anything is written, or
   * else with an error after which it is unknown whether the writes happened: the caller must
   * stop and load again.
   */
  commit(
    leadership: Leadership,
    expectedRevision: number,
    writes: readonly StorageWrite[],
  ): Promise<number>;
  /** Lets others see that this candidate waits or leads, for as long as it lives. */
  announce(candidateId: string, address: string): Promise<void>;
  /** Addresses of all candidates that live, whoever leads among them. */
  candidates(): Promise<string[]>;
  close(): Promise<void>;
}

export function fenced(message: string): RekindleError {
  return new RekindleError('FENCED', message);
}

/** Refuses what no storage takes, before anything is written. */
export function checkWrites(writes: readonly StorageWrite[]): void {
  let bytes = 0;
  for (const { key, value } of writes) {
    if (key.length === 0 || key.startsWith('!')) {
      throw new RekindleError('INVALID_ARGUMENT', `"${key}" is no key of the coordinator state`);
    }
    bytes += Buffer.byteLength(key);
    if (value !== undefined) bytes += Buffer.byteLength(JSON.stringify(value));
  }
  if (bytes > COMMIT_BYTES_MAX) {
    throw new RekindleError(
      'REQUEST_TOO_LARGE',
      `a change of ${bytes} B is larger than one commit (${COMMIT_BYTES_MAX} B)`,
    );
  }
}

/**
 * `ExternalStorage` for simulations, with the conditions of the real ones (the conformance suite
 * says so): one store, and a handle for each process whose calls are late, whose answers get lost
 * and are asked for again, as the client of etcd does it. A commit may also fail without telling
 * whether it was done, as a disk does.
 */

import {
  type CampaignResult,
  type Candidacy,
  checkWrites,
  type ExternalStorage,
  fenced,
  type Leadership,
  type StorageChange,
  type StorageContent,
  type StorageWatcher,
  type StorageWrite,
} from '../../src/coordinator/external-storage/external-storage.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { SimulatedProcess } from './simulated-time.js';

export interface SimulatedCommit {
  readonly revision: number;
  readonly leadership: Leadership;
  readonly writes: readonly StorageWrite[];
}

interface Watch {
  readonly process: SimulatedProcess;
  readonly watcher: StorageWatcher;
  over: boolean;
  /** Changes come in order. */
  arrivesAtMs: number;
}

export class SimulatedStore {
  leader: Leadership | null = null;
  revision = 0;
  readonly records = new Map<string, unknown>();
  readonly candidates = new Map<SimulatedProcess, string>();
  /** Told of each commit at once. */
  onCommit: (commit: SimulatedCommit) => void = () => undefined;
  private modification = 0;
  private leaderVersion = 0;
  private newestCommitId = 0;
  private readonly changes: { position: number; change: StorageChange }[] = [];
  private readonly watches = new Set<Watch>();

  content(): StorageContent {
    const keys = [...this.records.keys()].sort();
    const { revision, modification: position, leader, leaderVersion: version } = this;
    const pairs = keys.map((key) => ({ key, value: structuredClone(this.records.get(key)) }));
    return { revision, position, leaderState: { version, leader }, pairs };
  }

  watch(process: SimulatedProcess, position: number, watcher: StorageWatcher): () => void {
    const watch: Watch = { process, watcher, over: false, arrivesAtMs: 0 };
    this.watches.add(watch);
    for (const past of this.changes) if (past.position > position) this.tell(watch, past.change);
    return () => {
      watch.over = true;
      this.watches.delete(watch);
    };
  }

  campaign(found: Leadership | null, candidacy: Candidacy): CampaignResult {
    if (this.leader?.version === found?.version) {
      this.lead({ ...candidacy, version: this.modification + 1 });
    }
    if (this.leader === null) throw new RekindleError('RETRY', 'the leader has resigned');
    return { leader: this.leader, revision: this.revision };
  }

  confirm(leadership: Leadership): void {
    if (this.leader?.version !== leadership.version) throw fenced('somebody else leads');
  }

  /** Also for a lease that has run out. */
  resign(leadership: Leadership): void {
    if (this.leader?.version === leadership.version) this.lead(null);
  }

  commit(
    leadership: Leadership,
    expectedRevision: number,
    writes: readonly StorageWrite[],
    commitId: number,
  ): number {
    checkWrites(writes);
    // The answer of an earlier attempt was lost.
    if (this.newestCommitId === commitId) return this.revision;
    this.confirm(leadership);
    if (this.revision !== expectedRevision) throw fenced('somebody else has written');
    this.modification++;
    this.revision = this.modification;
    this.newestCommitId = commitId;
    const copies = structuredClone([...writes]);
    for (const { key, value } of copies) {
      if (value === undefined) this.records.delete(key);
      else this.records.set(key, value);
    }
    this.onCommit({ revision: this.revision, leadership, writes: copies });
    const commit = { revision: this.revision, writes: copies };
    this.changed({ commit, leaderState: undefined });
    return this.revision;
  }

  private lead(leader: Leadership | null): void {
    this.modification++;
    this.leader = leader;
    this.leaderVersion = this.modification;
    this.changed({ commit: null, leaderState: { version: this.modification, leader } });
  }

  private changed(change: StorageChange): void {
    this.changes.push({ position: this.modification, change });
    for (const watch of this.watches) this.tell(watch, change);
  }

  private tell(watch: Watch, change: StorageChange): void {
    const { process, watcher } = watch;
    const { time } = process;
    watch.arrivesAtMs = Math.max(watch.arrivesAtMs, time.nowMs + time.between(0, 5));
    time.at(watch.arrivesAtMs, () => {
      process.deliver(() => {
        if (!watch.over) watcher.changed(structuredClone(change));
      });
    });
  }
}

export interface StorageFaults {
  /** Longest way there, and back. */
  delayMs: number;
  /** Answers that get lost, and are asked for again. */
  lost: number;
  /** Commits that fail, done or not. */
  unknown: number;
}

const ASK_AGAIN_MS = 200;
let commits = 0;

export class SimulatedStorage implements ExternalStorage {
  constructor(
    private readonly store: SimulatedStore,
    private readonly process: SimulatedProcess,
    /** Looked at in each call. */
    readonly faults: StorageFaults,
  ) {}

  list = (): Promise<StorageContent> => this.ask(() => this.store.content());

  watch(position: number, watcher: StorageWatcher): () => void {
    return this.store.watch(this.process, position, watcher);
  }

  campaign(found: Leadership | null, candidacy: Candidacy): Promise<CampaignResult> {
    return this.ask(() => this.store.campaign(found, candidacy));
  }

  confirm(leadership: Leadership): Promise<void> {
    return this.ask(() => this.store.confirm(leadership));
  }

  resign(leadership: Leadership): Promise<void> {
    return this.ask(() => this.store.resign(leadership));
  }

  async commit(
    leadership: Leadership,
    expectedRevision: number,
    writes: readonly StorageWrite[],
  ): Promise<number> {
    const commitId = ++commits;
    const copies = structuredClone([...writes]);
    const { time } = this.process;
    if (!time.chance(this.faults.unknown)) {
      return this.ask(() => this.store.commit(leadership, expectedRevision, copies, commitId));
    }
    await this.ask(() => {
      if (time.chance(0.5)) this.store.commit(leadership, expectedRevision, copies, commitId);
    });
    throw new RekindleError('DISK_ERROR', 'the disk has failed in the middle');
  }

  announce(_candidateId: string, address: string): Promise<void> {
    return this.ask(() => void this.store.candidates.set(this.process, address));
  }

  candidates(): Promise<string[]> {
    return this.ask(() =>
      [...this.store.candidates].flatMap(([{ alive }, address]) => (alive ? [address] : [])),
    );
  }

  close = (): Promise<void> => Promise.resolve();

  /** What is asked is done when it arrives; who has no answer asks again. */
  private ask<T>(what: () => T): Promise<T> {
    const { process, faults } = this;
    const { time } = process;
    return new Promise((resolve, reject) => {
      time.at(time.nowMs + time.between(0, faults.delayMs), () => {
        let answer: () => void;
        try {
          const value = what();
          answer = () => resolve(value);
        } catch (error) {
          answer = () => reject(error);
        }
        const backMs = time.between(0, faults.delayMs);
        if (time.chance(faults.lost)) {
          time.at(time.nowMs + ASK_AGAIN_MS, () => {
            process.deliver(() => this.ask(what).then(resolve, reject));
          });
        } else time.at(time.nowMs + backMs, () => process.deliver(answer));
      });
    });
  }
}

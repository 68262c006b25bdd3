/**
 * The coordinator's state as typed records and how it maps to storage keys (docs/formats.md §5).
 * It holds what is committed and nothing else: `apply` is called after a commit is flushed, with
 * exactly the writes of that commit.
 *
 * Which changes are allowed is decided in `server-list.ts`, `tables.ts` and `recovery-record.ts`.
 */
import { invariant, RekindleError } from '../rpc/errors.js';
import type {
  Durability,
  LossReport,
  RecoveryTablet,
  ServerEntry,
  ServerList,
  SlotRange,
  TableInfo,
  TabletInfo,
} from '../rpc/messages.js';
import type { StoragePair, StorageWrite } from './external-storage/external-storage.js';

export interface ClusterRecord {
  clusterId: string;
  /** Grows by one with every start of a coordinator. */
  term: number;
  nextServerIndex: number;
  /** Upper half of new server ids; grows when the state is restored from a copy. */
  serverGeneration: number;
  nextTableId: number;
  nextRecoveryId: number;
  serverListVersion: number;
  replicas: number;
  durability: Durability;
  allowSameHost: boolean;
  /** Operation ids of the newest drops that found their table, oldest first. */
  recentDrops: string[];
  /** The same of splits; absent before the first. */
  recentSplits?: string[];
}

export interface ServerRecord extends ServerEntry {
  nonce: string;
  /** Open replicas below this (segment, epoch) prove nothing about this server's log. */
  minOpenSegmentId: number;
  minOpenEpoch: number;
  /** It is being emptied (docs/drain.md); absent: it is not. */
  drain?: DrainRecord;
}

export interface DrainRecord {
  /** drained: it owned nothing, and no master needed a replica of it, at that commit. */
  state: 'draining' | 'drained';
  startedAtMs: number;
}

export interface TabletRecord extends SlotRange {
  serverId: number;
  ctimeSegmentId: number;
  /**
   * The recovery or migration that gave it to its owner; 0: none. Answers a repeated "did you
   * commit?", and orders the owners of a slot: it grows with each, but for a merge (0).
   */
  recoveryId: number;
  partitionId: number;
}

export interface TableRecord {
  tableId: number;
  name: string;
  state: 'creating' | 'normal' | 'dropping';
  tablets: TabletRecord[];
}

export interface PartitionRecord {
  partitionId: number;
  tablets: RecoveryTablet[];
  /** As the table statistics had it. */
  bytes: number;
  /** The recovery master; null until one was chosen. */
  serverId: number | null;
  /** Grows with every choice of a recovery master. */
  generation: number;
  state: 'waiting' | 'running' | 'done';
}

/** Absent: replicas are placed at random. */
export interface CopysetRecord {
  scatterWidth: number;
  /** Server ids of each group, ascending. */
  sets: number[][];
}

export interface RecoveryRecord {
  recoveryId: number;
  crashedServerId: number;
  /** When the crash was first suspected and when it was committed. */
  suspectedAtMs: number;
  crashedAtMs: number;
  /** null until the plan is committed. */
  partitions: PartitionRecord[] | null;
  /** What the log may lack, as operators have accepted. */
  lost: AcceptedLoss;
}

export interface AcceptedLoss {
  head: boolean;
  /** Ascending. */
  segmentIds: number[];
}

/** A backup that has crashed and whose disk has not come back: it may hold what others lack. */
export interface AbsentRecord {
  serverId: number;
  host: string;
  address: string;
  crashedAtMs: number;
  /** Masters with ids from this on joined after its crash. */
  nextServerId: number;
}

/** A tablet on its way to another master (docs/migration.md). */
export interface MigrationRecord extends SlotRange {
  /** From the same counter as recovery ids. */
  migrationId: number;
  sourceServerId: number;
  targetServerId: number;
  /** Of the tablet at the source. */
  ctimeSegmentId: number;
  /**
   * running: the source owns it; committed: the target does, the source has yet to forget it;
   * aborting: the source owns it, both have yet to hear that nothing comes of it.
   */
  state: 'running' | 'committed' | 'aborting';
  reason: string | null;
  startedAtMs: number;
}

/** What a decision wants to be committed, and what its caller is told when it is. */
export interface Decision<T> {
  readonly writes: StorageWrite[];
  readonly result: T;
}

export const clusterKey = 'cluster';
export const copysetKey = 'copysets';
export const serverKey = (serverId: number): string => `servers/${serverId}`;
export const tableKey = (tableId: number): string => `tables/${tableId}`;
export const recoveryKey = (recoveryId: number): string => `recoveries/${recoveryId}`;
export const migrationKey = (migrationId: number): string => `migrations/${migrationId}`;
export const absentKey = (serverId: number): string => `absent/${serverId}`;
export const lossKey = (lossId: number): string => `losses/${lossId}`;

export class CoordinatorState {
  private clusterRecord: ClusterRecord | null = null;
  private copysetRecord: CopysetRecord | null = null;
  readonly servers = new Map<number, ServerRecord>();
  readonly tables = new Map<number, TableRecord>();
  readonly recoveries = new Map<number, RecoveryRecord>();
  readonly migrations = new Map<number, MigrationRecord>();
  readonly absent = new Map<number, AbsentRecord>();
  /** What was given up, for ever. */
  readonly losses = new Map<number, LossReport>();

  static from(pairs: readonly StoragePair[]): CoordinatorState {
    const state = new CoordinatorState();
    state.apply(pairs);
    return state;
  }

  /** False for a storage that has never had a coordinator. */
  get exists(): boolean {
    return this.clusterRecord !== null;
  }

  get cluster(): ClusterRecord {
    invariant(this.clusterRecord !== null, 'the cluster record is written before all others');
    return this.clusterRecord;
  }

  get copysets(): CopysetRecord | null {
    return this.copysetRecord;
  }

  /** Takes over the writes of a flushed commit. Records are replaced, never changed in place. */
  apply(writes: readonly StorageWrite[]): void {
    for (const { key, value } of writes) {
      const [kind, id] = key.split('/');
      if (kind === clusterKey) this.clusterRecord = value as ClusterRecord;
      else if (kind === copysetKey)
        this.copysetRecord = (value as CopysetRecord | undefined) ?? null;
      else if (kind === 'servers') replace(this.servers, Number(id), value);
      else if (kind === 'tables') replace(this.tables, Number(id), value);
      else if (kind === 'recoveries') replace(this.recoveries, Number(id), value);
      else if (kind === 'migrations') replace(this.migrations, Number(id), value);
      else if (kind === 'absent') replace(this.absent, Number(id), value);
      else if (kind === 'losses') replace(this.losses, Number(id), value);
      else throw new RekindleError('INTERNAL', `unknown key in the coordinator state: ${key}`);
    }
  }

  pairs(): StoragePair[] {
    const pairs: StoragePair[] = [{ key: clusterKey, value: this.cluster }];
    if (this.copysets !== null) pairs.push({ key: copysetKey, value: this.copysets });
    for (const server of this.servers.values()) {
      pairs.push({ key: serverKey(server.serverId), value: server });
    }
    for (const table of this.tables.values()) {
      pairs.push({ key: tableKey(table.tableId), value: table });
    }
    for (const recovery of this.recoveries.values()) {
      pairs.push({ key: recoveryKey(recovery.recoveryId), value: recovery });
    }
    for (const migration of this.migrations.values()) {
      pairs.push({ key: migrationKey(migration.migrationId), value: migration });
    }
    for (const absent of this.absent.values()) {
      pairs.push({ key: absentKey(absent.serverId), value: absent });
    }
    for (const loss of this.losses.values()) {
      pairs.push({ key: lossKey(loss.lossId), value: loss });
    }
    return pairs;
  }

  isUp(serverId: number): boolean {
    return this.servers.get(serverId)?.status === 'up';
  }

  /** Nothing of a table or of a recovery is there, or on its way there or away. */
  ownsNothing(serverId: number): boolean {
    const tables = [...this.tables.values()];
    const migrations = [...this.migrations.values()];
    const partitions = [...this.recoveries.values()].flatMap((each) => each.partitions ?? []);
    return !(
      tables.some(({ tablets }) => tablets.some((tablet) => tablet.serverId === serverId)) ||
      migrations.some((m) => m.sourceServerId === serverId || m.targetServerId === serverId) ||
      partitions.some((each) => each.serverId === serverId && each.state !== 'done')
    );
  }

  upServers(): ServerRecord[] {
    return [...this.servers.values()]
      .filter(({ status }) => status === 'up')
      .sort((a, b) => a.serverId - b.serverId);
  }

  serverList(): ServerList {
    const { clusterId, term, replicas, durability, allowSameHost, serverListVersion } =
      this.cluster;
    const servers = [...this.servers.values()].sort((a, b) => a.serverId - b.serverId);
    return {
      version: serverListVersion,
      clusterId,
      term,
      replicas,
      durability,
      allowSameHost,
      copysets: this.copysets?.sets ?? [],
      servers: servers.map(serverEntry),
    };
  }

  /** The table of this name that clients can see. A dropped one is gone from its commit on. */
  tableNamed(name: string): TableRecord | undefined {
    for (const table of this.tables.values()) {
      if (table.name === name && table.state !== 'dropping') return table;
    }
    return undefined;
  }

  recoveryOf(crashedServerId: number): RecoveryRecord | undefined {
    for (const recovery of this.recoveries.values()) {
      if (recovery.crashedServerId === crashedServerId) return recovery;
    }
    return undefined;
  }

  /** Tablets that a server owns in tables that exist for clients. */
  tabletsOf(serverId: number): TabletRecord[] {
    const tablets: TabletRecord[] = [];
    for (const table of this.tables.values()) {
      if (table.state !== 'normal') continue;
      for (const tablet of table.tablets) if (tablet.serverId === serverId) tablets.push(tablet);
    }
    return tablets;
  }

  tableInfo(table: TableRecord): TableInfo {
    const tablets = table.tablets.map((tablet): TabletInfo => {
      const owner = this.servers.get(tablet.serverId);
      const up = owner?.status === 'up';
      return {
        tableId: tablet.tableId,
        startSlot: tablet.startSlot,
        endSlot: tablet.endSlot,
        serverId: tablet.serverId,
        address: up ? owner.address : null,
        status: table.state === 'creating' ? 'creating' : up ? 'normal' : 'recovering',
      };
    });
    return { tableId: table.tableId, name: table.name, tablets };
  }

  tableInfos(): TableInfo[] {
    return [...this.tables.values()]
      .filter(({ state }) => state !== 'dropping')
      .sort((a, b) => a.tableId - b.tableId)
      .map((table) => this.tableInfo(table));
  }
}

function replace<T>(records: Map<number, T>, id: number, value: unknown): void {
  invariant(Number.isSafeInteger(id), 'ids in storage keys are numbers');
  if (value === undefined) records.delete(id);
  else records.set(id, value as T);
}

export function serverEntry(server: ServerRecord): ServerEntry {
  const { serverId, address, host, rack, master, backup, status, memoryBytes } = server;
  const draining = server.drain === undefined ? {} : { draining: true as const };
  return { serverId, address, host, rack, master, backup, status, ...draining, memoryBytes };
}

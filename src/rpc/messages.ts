/**
 * Shapes of the JSON bodies, request and reply by RPC name. Types only: the servers validate
 * requests with the zod schemas of `request-schemas.ts`, the SDK stays free of that dependency.
 */

export type Durability = 'fsync' | 'replicated';

export interface ServerEntry {
  serverId: number;
  /** `host:port` of its RPC endpoint. */
  address: string;
  /** Placement label; replicas of a segment never share it (unless `allowSameHost`). */
  host: string;
  rack: string | null;
  master: boolean;
  backup: boolean;
  status: 'up' | 'crashed';
  /** It gets no new tablets, and replicas only if there is no other place for them. */
  draining?: true;
  memoryBytes: number;
}

/**
 * What a server answers to a probe. `refused`: the machine at its address says that this process
 * is not there. `unknown`: nothing that would prove one or the other.
 */
export type ProbeOutcome = 'alive' | 'refused' | 'silent' | 'unknown';

/** What every server knows of the cluster. `version` grows with every change. */
export interface ServerList {
  version: number;
  clusterId: string;
  /** Term of the coordinator that issued it; servers refuse lower ones. */
  term: number;
  replicas: number;
  durability: Durability;
  allowSameHost: boolean;
  /** Groups of `replicas` backups that should hold whole segments; none: any will do. */
  copysets: number[][];
  servers: ServerEntry[];
}

/** What makes the new server list of an older one, or the whole of it. */
export interface ServerListUpdate extends Omit<ServerList, 'copysets'> {
  /** The oldest version that it makes the new list of; 0: it is whole. */
  fromVersion: number;
  /** null: as they were. */
  copysets: number[][] | null;
  /** Those that are not what they were. */
  servers: ServerEntry[];
  /** Servers that have left. */
  removed: number[];
}

/** A range of slots of a table, both ends inclusive (docs/formats.md §1). */
export interface SlotRange {
  tableId: number;
  startSlot: number;
  endSlot: number;
}

export interface TabletInfo extends SlotRange {
  serverId: number;
  /** Of the owner; null while it is unknown. */
  address: string | null;
  status: 'creating' | 'normal' | 'recovering';
}

/** How a master has a tablet. Each owner that a slot has has it by a later one. */
export interface Ownership {
  /** The recovery or migration that gave it to its owner; 0: none. */
  ownershipId: number;
  /** Of the attempts of one recovery. */
  generation: number;
}

export interface TableInfo {
  tableId: number;
  name: string;
  tablets: TabletInfo[];
}

/** A tablet of a crashed master. Entries of segments below `ctimeSegmentId` do not count. */
export interface RecoveryTablet extends SlotRange {
  ctimeSegmentId: number;
}

export interface RecoveryPartition {
  partitionId: number;
  tablets: RecoveryTablet[];
}

export interface ReplicaReport {
  segmentId: number;
  epoch: number;
  /** Certified bytes. */
  length: number;
  closed: boolean;
  primary: boolean;
  /** Open, and its backup may have acknowledged more than it has kept. */
  doubtful: boolean;
}

export interface TabletStats extends SlotRange {
  bytes: number;
  records: number;
}

/** `operationsPerSecond`: reads and writes, as sampled in the last seconds. */
export interface TabletLoad extends TabletStats {
  operationsPerSecond: number;
}

/** What an open replica says about its log (docs/formats.md §2, the opening of a head). */
export interface DigestReport {
  segmentId: number;
  epoch: number;
  segmentIds: number[];
  tabletStats: TabletStats[];
}

/** Phases as in docs/recovery.md; times in ms since the epoch of the coordinator's clock. */
export type RecoveryPhase =
  | 'detect'
  | 'fence'
  | 'plan'
  | 'read'
  | 'replay'
  | 'durable'
  | 'ownership'
  | 'release';

export interface PartitionReport {
  partitionId: number;
  serverId: number | null;
  generation: number;
  state: 'waiting' | 'running' | 'done' | 'failed';
  objects: number;
  bytes: number;
  error: string | null;
  /** ms from the start of its RECOVER to: last segment read, replayed, durable. */
  readMs: number;
  replayMs: number;
  durableMs: number;
}

/** Why a log cannot be proved complete. */
export interface LogGap {
  /** No backup has the head: which segments the log has is not known either. */
  headMissing: boolean;
  /** Segments that the head names and no backup can deliver, ascending. */
  missing: number[];
  /** Open replicas whose backups may have lost what they had acknowledged. */
  doubtful: DoubtfulSegment[];
}

export interface DoubtfulSegment {
  segmentId: number;
  /** What lies from here on may be lost. */
  fromByte: number;
  /** Backups that have the bytes before it. */
  servers: number[];
}

/** A backup that may hold what a recovery lacks. */
export interface ReplicaHolder {
  serverId: number;
  host: string;
  address: string;
  /**
   * `silent`: up, has not listed its replicas; `gone`: crashed; `emptied`: crashed, and the process
   * that has its address now came without its disk.
   */
  state: 'silent' | 'gone' | 'emptied';
}

/** An operator's decision to go on without a part of a log, as it is kept. */
export interface LossReport {
  lossId: number;
  recoveryId: number;
  /** The crashed master whose log it is, and where it ran. */
  serverId: number;
  host: string;
  address: string;
  acceptedAtMs: number;
  operator: string;
  reason: string;
  headLost: boolean;
  /** Lost from this byte on; 0: the whole segment. */
  segments: { segmentId: number; fromByte: number }[];
  /** At most so many bytes of log; null if the head is lost, since it lists the others. */
  bytesMax: number | null;
  /** Which objects may be affected. */
  tablets: (SlotRange & { table: string })[];
}

export interface RecoveryReport {
  recoveryId: number;
  crashedServerId: number;
  state: 'running' | 'done';
  startedAtMs: number;
  /** Duration of each finished phase in ms. */
  phases: { phase: RecoveryPhase; number: number; ms: number }[];
  partitions: PartitionReport[];
  segments: number;
  bytes: number;
  objects: number;
  totalMs: number;
  /** Why it does not go on, e.g. the segments that no backup has reported. */
  waitingFor: string | null;
  /** What of the log it waits for, and who may have it; null if it is not that. */
  gap: (LogGap & { holders: ReplicaHolder[] }) | null;
}

export type MigrationDataKind = 'scan' | 'delta' | 'results';

export interface MigrationReport extends SlotRange {
  migrationId: number;
  table: string;
  sourceServerId: number;
  targetServerId: number;
  /** `committed`: the target owns the tablet, the source has yet to hear of it. */
  state: 'running' | 'committed' | 'aborting' | 'done' | 'aborted';
  /** Why it was given up. */
  reason: string | null;
  startedAtMs: number;
  /** Received by the target, as far as is known. */
  objects: number;
  bytes: number;
}

/** A server that gives away all that it has (docs/drain.md). */
export interface DrainReport {
  serverId: number;
  /** `drained`: nobody needs it, its process can be stopped. */
  state: 'draining' | 'drained';
  startedAtMs: number;
  /** That it still owns. */
  tablets: number;
  /** Of other masters, on its disk; null: not known yet. */
  replicas: number | null;
  /** What has to happen next. */
  waitingFor: string | null;
}

/** The balancer, as far as it knows the loads of masters. */
export interface BalanceReport {
  enabled: boolean;
  /** `fill`: live bytes as a share of the log's memory. */
  servers: { serverId: number; fill: number; operationsPerSecond: number }[];
  /** Tablets that it has moved under this leader. */
  moves: number;
  /** Why it does nothing at present. */
  waitingFor: string | null;
}

export interface ServerStats {
  serverId: number;
  uptimeMs: number;
  rssBytes: number;
  master: Record<string, number> | null;
  backup: Record<string, number> | null;
  /** Connections, bytes, refusals, and handlers that held the event loop up. */
  endpoint: Record<string, number>;
}

export interface ClusterStatus {
  clusterId: string;
  term: number;
  /** Address of the coordinator that leads, and of those that stand by. */
  leader: string;
  standbys: string[];
  replicas: number;
  durability: Durability;
  serverListVersion: number;
  servers: ServerEntry[];
  tables: TableInfo[];
  recoveries: RecoveryReport[];
  /** Those under way, and the newest that are over. */
  migrations: MigrationReport[];
  drains: DrainReport[];
  balance: BalanceReport;
  /** All losses that were ever accepted, the newest first. */
  losses: LossReport[];
  /** Servers that hold a copy of the coordinator's newest state. */
  stateCopies: number;
  /** What does not work as it should: the cluster is degraded while there is one. */
  warnings: string[];
  /** Advice on a cluster that works. */
  notes: string[];
}

type Empty = Record<string, never>;

export interface Hello {
  protocol: { min: number; max: number };
  features: string[];
  role: 'client' | 'server' | 'coordinator' | 'tool';
  /** null: the caller does not know it yet. */
  clusterId: string | null;
  /** The caller's own id, for servers. */
  serverId: number | null;
  /** The incarnation that the caller means to talk to; null: whoever answers. */
  expectServerId: number | null;
  /** Checked in a later version. */
  credential: string | null;
}

export interface Messages {
  HELLO: {
    request: Hello;
    reply: {
      protocol: number;
      features: string[];
      role: 'server' | 'coordinator';
      clusterId: string | null;
      serverId: number | null;
    };
  };
  PING: {
    request: { callerServerId: number | null };
    /**
     * `member` is false if the answering server knows the caller as crashed or gone. `lagMs`: how
     * slow it is at present (src/ops/sluggishness.ts); it cannot be expected to answer faster.
     */
    reply: { serverListVersion: number; member: boolean; lagMs: number };
  };
  ENLIST_SERVER: {
    request: {
      /** Chosen once per process start; a repeated enlistment gets the same answer. */
      nonce: string;
      replacesId: number | null;
      /** From the server's disk; null for a fresh one. */
      clusterId: string | null;
      address: string;
      host: string;
      rack: string | null;
      master: boolean;
      backup: boolean;
      memoryBytes: number;
    };
    reply: { serverId: number; list: ServerList };
  };
  GET_SERVER_LIST: { request: Empty; reply: { list: ServerList } };
  CREATE_TABLE: {
    /** `span`: number of tablets, each on the next master; default 1. */
    request: { operationId: string; name: string; span?: number };
    reply: { table: TableInfo };
  };
  DROP_TABLE: { request: { operationId: string; name: string }; reply: { existed: boolean } };
  LIST_TABLES: { request: Empty; reply: { tables: TableInfo[] } };
  GET_TABLE: { request: { name?: string; tableId?: number }; reply: { table: TableInfo } };
  HINT_SERVER_CRASHED: { request: { serverId: number; reason: string }; reply: Empty };
  VERIFY_MEMBERSHIP: {
    request: { serverId: number };
    /** `leaseMs`: what the coordinator grants for reads; 0 if it grants nothing. */
    reply: { member: boolean; leaseMs: number };
  };
  SET_MASTER_RECOVERY_INFO: {
    request: { serverId: number; segmentId: number; epoch: number };
    reply: Empty;
  };
  RECOVERY_MASTER_FINISHED: {
    request: {
      recoveryId: number;
      partitionId: number;
      generation: number;
      serverId: number;
      ok: boolean;
      error: string | null;
      /** First segment of the new owner's log whose entries count for these tablets. */
      ctimeSegmentId: number;
      objects: number;
      bytes: number;
      readMs: number;
      replayMs: number;
      durableMs: number;
      /** The segment that it failed on, and the backups whose replicas of it are damaged. */
      unreadable?: { segmentId: number; servers: number[] };
    };
    /** false: the partition belongs to somebody else; drop it. */
    reply: { committed: boolean };
  };
  GET_STATUS: { request: Empty; reply: ClusterStatus };
  ACCEPT_LOSS: {
    /** What `serverId`, a crashed master, had in these segments is given up. */
    request: {
      serverId: number;
      head: boolean;
      segmentIds: number[];
      operator: string;
      reason: string;
    };
    reply: { loss: LossReport };
  };
  MERGE_TABLETS: {
    request: { name: string };
    /** `refused`: runs of neighbours that their master cannot make one at present. */
    reply: { table: TableInfo; merged: number; refused: number };
  };
  SPLIT_TABLET: {
    /** `slot`: the first of the upper tablet; by default the middle of the widest one. */
    request: { operationId: string; name: string; slot?: number };
    reply: { table: TableInfo };
  };
  MIGRATE_TABLET: {
    /** The tablet of the table that holds this slot. */
    request: { name: string; slot: number; targetServerId: number };
    /** 0: the target owns it. */
    reply: { migrationId: number };
  };
  MIGRATION_FINISHED: {
    request: {
      migrationId: number;
      serverId: number;
      ok: boolean;
      error: string | null;
      /** First segment of the target's log whose entries count for the tablet. */
      ctimeSegmentId: number;
      objects: number;
      bytes: number;
    };
    /** false: the tablet stays where it was; drop it. */
    reply: { committed: boolean };
  };
  DRAIN_SERVER: {
    /** `cancel`: it is a server like all others again. */
    request: { serverId: number; cancel: boolean };
    reply: Empty;
  };
  UPDATE_SERVER_LIST: {
    /** `forward`: whom the receiver is to tell, through at most `fanOut` of them. */
    request: { update: ServerListUpdate; forward: number[]; fanOut: number };
    /**
     * `version`: of the list that it has now. Of those forwarded to, all others have the new list:
     * `behind` have an older one that the update does not fit, `silent` did not answer, `untold`
     * were to be told by one that did not.
     */
    reply: {
      version: number;
      behind: { serverId: number; version: number }[];
      silent: number[];
      untold: number[];
    };
  };
  STORE_COORDINATOR_STATE: {
    /** `state`: the coordinator's key-value pairs as JSON; `crc32c` of its UTF-8 bytes. */
    request: { clusterId: string; term: number; revision: number; crc32c: number; state: string };
    reply: Empty;
  };
  GET_SERVER_STATS: { request: Empty; reply: ServerStats };
  PROBE_SERVER: {
    /** `timeoutMs`: what counts as silence; the caller knows how slow everybody is. */
    request: { serverId: number; timeoutMs: number };
    reply: { outcome: ProbeOutcome };
  };
  TAKE_TABLET_OWNERSHIP: {
    /** `name`: of the table; `ownershipId`: as the map has it (`recoveryId`). */
    request: SlotRange & { term: number; name: string; ownershipId: number };
    reply: Empty;
  };
  /**
   * `before`: a migration after which it is to be gone; what has come back since, by an ownership
   * of a later id, stays. null: whatever there is.
   */
  DROP_TABLET_OWNERSHIP: {
    request: SlotRange & { term: number; before: number | null };
    reply: Empty;
  };
  MERGE_TABLET_OWNERSHIP: {
    /** `apply`: the coordinator has committed it; else only whether it can be. */
    request: SlotRange & { term: number; apply: boolean };
    /** Entries of older segments would not count. */
    reply: { ctimeSegmentId: number };
  };
  /** `RETRY` until it is done; nothing if the range is cut there already. */
  SPLIT_TABLET_OWNERSHIP: {
    request: SlotRange & { term: number; slot: number };
    reply: Empty;
  };
  MIGRATE: {
    request: SlotRange & {
      term: number;
      /** Of the table. */
      name: string;
      migrationId: number;
      sourceServerId: number;
    };
    /** What has come so far. */
    reply: { objects: number; bytes: number };
  };
  START_MIGRATION: {
    request: SlotRange & { term: number; migrationId: number };
    /**
     * Buckets to scan, the place in the log where the first delta starts, and how the source has
     * the parts of the tablet.
     */
    reply: {
      buckets: number;
      segmentId: number;
      offset: number;
      ownerships: (SlotRange & Ownership)[];
    };
  };
  GET_MIGRATION_DATA: {
    /**
     * scan: live objects of the buckets [from, end); delta: what was appended behind offset `end`
     * of segment `from`; results: what clients above id `from` were answered.
     */
    request: { migrationId: number; kind: MigrationDataKind; from: number; end: number };
    reply: Uint8Array;
  };
  FREEZE_TABLET: { request: { migrationId: number; reads: boolean }; reply: Empty };
  END_MIGRATION: { request: { term: number; migrationId: number }; reply: Empty };
  RECOVER: {
    request: {
      term: number;
      recoveryId: number;
      generation: number;
      crashedServerId: number;
      partition: RecoveryPartition;
      /** Of all tables of the partition that there are. */
      tables: { tableId: number; name: string }[];
      /** Every segment of the log, each with the backups that hold a valid replica, best first. */
      segments: { segmentId: number; length: number; backups: number[] }[];
    };
    reply: Empty;
  };
  IS_REPLICA_NEEDED: {
    request: { backupServerId: number; segmentIds: number[] };
    reply: { needed: number[] };
  };
  GET_TABLET_LOADS: {
    request: Empty;
    /** Of the tablets that it serves, and its log memory. */
    reply: { memoryBytes: number; tablets: TabletLoad[] };
  };
  COUNT_REPLICAS: {
    request: { backupServerId: number };
    /** On that backup, of this master; as of which version of the server list. */
    reply: { serverListVersion: number; replicas: number };
  };
  REPORT_ROT: { request: { backupServerId: number; segmentIds: number[] }; reply: Empty };
  BACKUP_FREE: { request: { masterId: number; segmentIds: number[] }; reply: Empty };
  START_READING_DATA: {
    request: { term: number; recoveryId: number; crashedServerId: number };
    /** `leaseRemainderMs`: how long the newest grant to the crashed master runs on. */
    reply: { replicas: ReplicaReport[]; digests: DigestReport[]; leaseRemainderMs: number };
  };
  START_PARTITIONS: {
    request: {
      term: number;
      recoveryId: number;
      crashedServerId: number;
      partitions: RecoveryPartition[];
      /** Segments this backup is expected to serve first. */
      segmentIds: number[];
    };
    reply: Empty;
  };
  GET_RECOVERY_DATA: {
    request: {
      recoveryId: number;
      crashedServerId: number;
      segmentId: number;
      partitionId: number;
    };
    reply: Uint8Array;
  };
  RECOVERY_COMPLETE: {
    request: { term: number; recoveryId: number; crashedServerId: number };
    reply: Empty;
  };
  RENEW_LEASE: { request: { masterId: number }; reply: { leaseMs: number } };
}

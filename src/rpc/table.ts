/**
 * The RPC table: every call of the system as one row of data. Codecs, time-outs, metrics labels
 * and the documentation come from here; an opcode is never reused.
 *
 * `body`: 'json' unless docs/formats.md §3 draws the bytes. `idempotent`: the caller may send it
 * again without knowing what became of the first.
 */
import type { Messages } from './messages.js';

export type Service = 'any' | 'coordinator' | 'server' | 'master' | 'backup';

export interface RpcRow {
  readonly opcode: number;
  readonly service: Service;
  readonly request: 'json' | 'binary';
  readonly reply: 'json' | 'binary';
  readonly idempotent: boolean;
  readonly timeoutMs: number;
  readonly doc: string;
}

/** The literal types tell `JsonRpcName` which rows are JSON both ways. */
type JsonRow = RpcRow & { readonly request: 'json'; readonly reply: 'json' };

const json = (
  opcode: number,
  service: Service,
  timeoutMs: number,
  doc: string,
  idempotent = true,
): JsonRow => ({ opcode, service, request: 'json', reply: 'json', idempotent, timeoutMs, doc });

export const RPC = {
  HELLO: json(0x01, 'any', 2_000, 'Agrees on version, cluster, roles; first on a connection.'),
  PING: json(0x02, 'any', 500, 'Answers; tells whether the caller is still a member.'),

  ENLIST_SERVER: json(0x10, 'coordinator', 10_000, 'A server joins; exactly once by nonce.'),
  GET_SERVER_LIST: json(0x11, 'coordinator', 2_000, 'The present server list.'),
  CREATE_TABLE: json(0x12, 'coordinator', 15_000, 'Creates a table; idempotent by name.'),
  DROP_TABLE: json(0x13, 'coordinator', 15_000, 'Drops a table by name.'),
  LIST_TABLES: json(0x14, 'coordinator', 2_000, 'All tables with their tablets.'),
  GET_TABLE: json(0x15, 'coordinator', 2_000, 'One table with its tablets and their owners.'),
  HINT_SERVER_CRASHED: json(0x16, 'coordinator', 2_000, 'Asks to verify that a server lives.'),
  VERIFY_MEMBERSHIP: json(0x17, 'coordinator', 2_000, 'Is this server still a member?'),
  SET_MASTER_RECOVERY_INFO: json(
    0x18,
    'coordinator',
    5_000,
    'Stores the minimum open (segment, epoch) of a master; durable before the reply.',
  ),
  RECOVERY_MASTER_FINISHED: json(
    0x19,
    'coordinator',
    10_000,
    'A recovery master holds a partition durably (or failed); commits the ownership.',
  ),
  GET_STATUS: json(0x1a, 'coordinator', 2_000, 'Everything that `rekindle status` shows.'),
  ACCEPT_LOSS: json(0x1f, 'coordinator', 10_000, 'Gives up a part of a log; kept for ever.'),
  MERGE_TABLETS: json(0x20, 'coordinator', 15_000, 'Makes one of neighbours that one master has.'),
  SPLIT_TABLET: json(0x23, 'coordinator', 15_000, 'Makes two of a tablet, on its master.'),
  MIGRATE_TABLET: json(0x21, 'coordinator', 10_000, 'Starts to move a tablet to another master.'),
  MIGRATION_FINISHED: json(
    0x22,
    'coordinator',
    10_000,
    'The target of a migration holds the tablet durably (or failed); commits the ownership.',
  ),
  DRAIN_SERVER: json(0x26, 'coordinator', 10_000, 'Empties a server while it serves.'),

  UPDATE_SERVER_LIST: json(0x30, 'server', 2_000, 'What is new in the server list; passed on.'),
  STORE_COORDINATOR_STATE: json(0x31, 'server', 5_000, 'Keeps a copy of the coordinator state.'),
  GET_SERVER_STATS: json(0x32, 'server', 2_000, 'Counters and sizes of one server.'),
  PROBE_SERVER: json(0x3a, 'server', 2_000, 'Can you reach that server? Asked of a witness.'),

  EXECUTE: {
    opcode: 0x40,
    service: 'master',
    request: 'binary',
    reply: 'binary',
    idempotent: true, // by rpc id
    timeoutMs: 5_000,
    doc: 'A batch of reads, writes and removes on objects of this master.',
  },
  TAKE_TABLET_OWNERSHIP: json(0x41, 'master', 10_000, 'Makes the master serve a new tablet.'),
  DROP_TABLET_OWNERSHIP: json(0x42, 'master', 5_000, 'Makes the master forget a tablet.'),
  RECOVER: json(0x43, 'master', 5_000, 'Starts the recovery of one partition; answers at once.'),
  IS_REPLICA_NEEDED: json(0x44, 'master', 2_000, 'Which of these replicas does the log need?'),
  REPORT_ROT: json(0x46, 'master', 2_000, 'These replicas have rotted on their backup.'),
  GET_TABLET_LOADS: json(0x53, 'master', 2_000, 'Sizes and request rates of its tablets.'),
  COUNT_REPLICAS: json(0x52, 'master', 2_000, 'How many replicas has it on that backup?'),
  MERGE_TABLET_OWNERSHIP: json(0x48, 'master', 5_000, 'Could these tablets be one? Make them one.'),
  SPLIT_TABLET_OWNERSHIP: json(0x4e, 'master', 10_000, 'Keep books of two tablets from now on.'),
  MIGRATE: json(0x49, 'master', 5_000, 'Fetch a tablet from its owner; answers at once.'),
  START_MIGRATION: json(0x4a, 'master', 5_000, 'Marks where the changes of a tablet begin.'),
  GET_MIGRATION_DATA: {
    opcode: 0x4b,
    service: 'master',
    request: 'json',
    reply: 'binary',
    idempotent: true,
    timeoutMs: 10_000,
    doc: 'A piece of a tablet that is given away.',
  },
  FREEZE_TABLET: json(0x4c, 'master', 5_000, 'Refuses writes of a tablet given away, or all.'),
  END_MIGRATION: json(0x4d, 'master', 5_000, 'A migration was given up: it never happened.'),

  BACKUP_WRITE: {
    opcode: 0x60,
    service: 'backup',
    request: 'binary',
    reply: 'binary',
    idempotent: true,
    timeoutMs: 10_000,
    doc: 'Opens, extends or closes a replica; answered when durable in the chosen mode.',
  },
  BACKUP_FREE: json(0x61, 'backup', 5_000, 'Frees replicas of a master.'),
  START_READING_DATA: json(0x62, 'backup', 10_000, 'Fences a master durably, lists its replicas.'),
  START_PARTITIONS: json(0x63, 'backup', 5_000, 'Names the partitions; starts read and split.'),
  GET_RECOVERY_DATA: {
    opcode: 0x64,
    service: 'backup',
    request: 'json',
    reply: 'binary',
    idempotent: true,
    timeoutMs: 10_000,
    doc: 'One partition of one segment.',
  },
  RECOVERY_COMPLETE: json(0x65, 'backup', 5_000, 'Recovery data of a recovery may go.'),
  RENEW_LEASE: json(0x6a, 'backup', 500, 'Another grant for the read lease of a master.'),
} as const satisfies Record<string, RpcRow>;

export type RpcName = keyof typeof RPC;

/** RPCs whose request and reply are both JSON. */
export type JsonRpcName = {
  [K in RpcName]: (typeof RPC)[K]['request'] extends 'json'
    ? (typeof RPC)[K]['reply'] extends 'json'
      ? K
      : never
    : never;
}[RpcName];

export type RequestOf<K extends RpcName> = K extends keyof Messages
  ? Messages[K]['request']
  : Uint8Array;
export type ReplyOf<K extends RpcName> = K extends keyof Messages
  ? Messages[K]['reply']
  : Uint8Array;

const rowByOpcode = new Map<number, RpcName>(
  Object.entries(RPC).map(([name, { opcode }]) => [opcode, name as RpcName]),
);

/** The RPC with this opcode, if there is one. */
export function rpcByOpcode(opcode: number): RpcName | undefined {
  return rowByOpcode.get(opcode);
}

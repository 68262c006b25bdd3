/**
 * Every step of every protocol at which a fault can be injected: what is done there, how a test
 * gets there, what must come of it. docs/faults.md is made of this (write-page.ts), and
 * fault-points.test.ts plays each row with each of its kinds.
 *
 * A fault point in the code without a row here, and an RPC without one, fail a test. Whoever adds a
 * fault point adds a row. For all rows holds: no acknowledged write is lost, no read is stale, and
 * the cluster is whole again once what has ended is started again; `outcome` says what else.
 */
import { FAULT_KINDS, type FaultKind } from '../../src/rpc/fault-point.js';
import type { RpcName } from '../../src/rpc/table.js';

/** How a running cluster is brought to pass a step. */
export type Provocation =
  /** Reads and writes go on. */
  | 'load'
  /** Large values open a new head every few writes, and the cleaner works. */
  | 'heads'
  /** A table is created, used and dropped. */
  | 'table'
  /** A server dies, is recovered, and is started again. */
  | 'server-crash'
  /** A server is stopped by SIGSTOP until it is recovered, then woken; and started again. */
  | 'zombie'
  /** Neighbours on one server are made, and merged. */
  | 'merge'
  /** Tablets of the load are cut, on one server. */
  | 'split'
  /** A tablet of the load moves from one server to another and back. */
  | 'migrate'
  /** A server with tablets of the load is emptied, and is one like all others again. */
  | 'drain'
  /** A new client connects and looks tables up. */
  | 'client';

export interface Row {
  /** Page and section of docs/ where the step is described. */
  page: 'replication' | 'recovery' | 'coordinator' | 'migration' | 'drain';
  step: string;
  /** Of the fault point. */
  name: string;
  at: 'coordinator' | 'server';
  /** What has been done when it is passed. */
  what: string;
  /** With arguments, as in REKINDLE_FAULT. */
  faults: readonly string[];
  by: Provocation;
  /** A fault of every server without which the step is not passed. */
  lead: string | undefined;
  outcome: string;
  /** Kinds besides `crash` after which the process ends by itself. */
  ends: readonly FaultKind[];
  /**
   * The test that plays it, if it is not fault-points.test.ts; with a standby too, if it is a
   * coordinator's (standby-points.test.ts plays all others).
   */
  elsewhere: string | undefined;
  /** Kinds that `npm test` plays too; all others are in `npm run test:faults`. */
  short: readonly FaultKind[];
}

type Place = Pick<Row, 'page' | 'at' | 'by'>;

const step = (
  place: Place,
  name: string,
  number: string,
  what: string,
  outcome: string,
  more: Partial<Row> = {},
): Row => ({
  ...place,
  name,
  step: number,
  what,
  outcome,
  faults: ['crash', 'error', 'delay:1500'],
  ends: place.at === 'coordinator' ? ['error'] : [],
  short: [],
  lead: undefined,
  elsewhere: undefined,
  ...more,
});

const MESSAGE_FAULTS = ['crash', 'error', 'delay:1500', 'drop', 'close'];

/** An error that is not to be retried ends a server that starts, as it should. */
const START_FAULTS = ['crash', 'error:RETRY', 'delay:1500', 'drop', 'close'];

/** Request and reply of one RPC. */
const message = (
  place: Place,
  name: RpcName | `${RpcName}.${string}`,
  number: string,
  what: string,
  outcome: string,
  more: {
    faults?: readonly string[];
    corrupt?: 'request' | 'reply';
    short?: FaultKind[];
    lead?: string;
  } = {},
): Row[] =>
  (['request', 'reply'] as const).map((direction) => ({
    ...place,
    name: `${direction}-${name}`,
    step: number,
    what: direction === 'request' ? `${what}: before it is handled` : 'handled; the answer leaves',
    outcome,
    faults: [
      ...(more.faults ?? MESSAGE_FAULTS),
      ...(more.corrupt === direction ? ['corrupt' as const] : []),
    ],
    ends: [],
    lead: more.lead,
    elsewhere: undefined,
    short: direction === 'request' ? [] : (more.short ?? []),
  }));

const coordinator = (by: Provocation): Place => ({ page: 'coordinator', at: 'coordinator', by });
const replication = (by: Provocation): Place => ({ page: 'replication', at: 'server', by });
const recovery = (at: Row['at']): Place => ({ page: 'recovery', at, by: 'server-crash' });

const REDONE = 'before ★ nothing has happened: the caller repeats it';
const GOES_ON = 'after ★ the next coordinator goes on from the state';
const REPEATED = 'repeated by the caller; idempotent';
const PASS_OLD = 'the old segments are the log; the survivors are in no digest';
const PASS_NEW = 'the survivors are the log; what is left to free is freed after a restart';
const CLEANER_FAULTS: Partial<Row> = { faults: ['crash', 'delay:1500'] };
/** Of steps that wait for an answer of somebody else. */
const WAITING_FAULTS = ['crash', 'error', 'delay:1500', 'drop'];

const WRITE_ROWS: readonly Row[] = [
  ...message(
    replication('load'),
    'EXECUTE',
    '§1.1, §1.5',
    'the operations of one turn',
    'the SDK repeats them under the same numbers; executed once (§5)',
    { faults: ['crash', 'error:RETRY', 'delay:1500', 'drop', 'close'] },
  ),
  ...message(
    replication('load'),
    'BACKUP_WRITE.write',
    '§1.3, §1.4',
    'a chunk with its certificate',
    'error, corrupt: the open replica is lost, and replaced (§3); else the same bytes again',
    { corrupt: 'request' },
  ),
  ...message(
    replication('heads'),
    'BACKUP_WRITE.open',
    '§2.2',
    'the opening of a new head',
    'as above; s is closed only when all R have opened s+1 (I1)',
    { corrupt: 'request', short: ['close'] },
  ),
  ...message(
    replication('heads'),
    'BACKUP_WRITE.close',
    '§2.3',
    'the last bytes of s',
    'as above; s+1 gets data only when s is closed on all R (I3)',
    { corrupt: 'request' },
  ),
  ...message(
    { ...coordinator('server-crash'), page: 'replication' },
    'SET_MASTER_RECOVERY_INFO',
    '§3',
    'the minimum open (segment, epoch)',
    'acknowledgements of that segment wait until it is stored; repeated',
  ),
];

const DISK_ROWS: readonly Row[] = [
  step(
    replication('load'),
    'disk-write',
    '§1.4',
    'a backup writes',
    'error: its open replicas are lost, and replaced (§3); the process is started again',
    { faults: ['error', 'delay:20'] },
  ),
  step(replication('load'), 'disk-flush', '§1.4', 'a backup flushes', 'as above', {
    faults: ['error', 'delay:300'],
  }),
  step(replication('heads'), 'disk-grow', '§2.2', 'a disk is full', 'as above', {
    faults: ['error'],
  }),
  step(
    { ...replication('server-crash'), page: 'recovery' },
    'disk-read',
    '4',
    'a backup reads a segment',
    'another backup of the segment serves it',
    { faults: ['error'] },
  ),
];

const CLEANING_ROWS: readonly Row[] = [
  ...(
    [
      ['clean-1', '§6.1', 'survivors announced', PASS_OLD],
      ['clean-2', '§6.2', 'survivors closed on R backups', PASS_OLD],
      ['clean-3', '§6.3', 'commit: the next head names them', 'either digest, both complete'],
      ['clean-4', '§6.4', 'that head is durable', PASS_NEW],
      ['clean-5', '§6.5', 'no write of a cleaned segment is under way', PASS_NEW],
      ['clean-6', '§6.6', 'their memory may be reused', PASS_NEW],
      ['clean-7', '§6.7', 'backups have freed them', PASS_NEW],
    ] as const
  ).map(([name, number, what, outcome]) =>
    step(replication('heads'), name, number, what, outcome, CLEANER_FAULTS),
  ),
  ...message(
    replication('heads'),
    'BACKUP_FREE',
    '§6.7',
    'replicas of cleaned segments',
    'repeated until it answers or has left the list',
  ),
  ...message(
    replication('server-crash'),
    'IS_REPLICA_NEEDED',
    '§6',
    'a backup that restarted asks',
    'asked again later; nothing is freed without an answer',
  ),
];

const RECOVERY_ROWS: readonly Row[] = [
  step(recovery('coordinator'), 'crash-1', '1', 'a death is proved', REDONE, { short: ['crash'] }),
  step(recovery('coordinator'), 'crash-2', '1 ★', 'recovery recorded', GOES_ON),
  ...message(
    recovery('server'),
    'START_READING_DATA',
    '2',
    'fence durably, list replicas',
    'asked again every 500 ms',
  ),
  step(
    recovery('coordinator'),
    'recover-fence-1',
    '2',
    'a backup has listed',
    'it is asked again',
    { faults: WAITING_FAULTS, ends: [] },
  ),
  step(recovery('coordinator'), 'recover-plan-1', '3', 'planned', REDONE),
  step(recovery('coordinator'), 'recover-plan-2', '3 ★', 'plan stored', GOES_ON, {
    short: ['crash'],
  }),
  step(recovery('coordinator'), 'recover-plan-3', '3 ★', 'masters stored', GOES_ON),
  ...message(
    recovery('server'),
    'START_PARTITIONS',
    '4',
    'read and split',
    'that backup serves on demand, or others do',
  ),
  ...message(
    recovery('server'),
    'RECOVER',
    '4',
    'one partition',
    'sent again with the same generation; error: another master',
  ),
  step(recovery('coordinator'), 'recover-sent-1', '4', 'RECOVER was accepted', 'sent again', {
    faults: WAITING_FAULTS,
    ends: [],
  }),
  ...message(
    recovery('server'),
    'GET_RECOVERY_DATA',
    '4',
    'a partition of a segment',
    'another backup of the segment serves it',
    { corrupt: 'reply' },
  ),
  ...message(
    recovery('coordinator'),
    'RECOVERY_MASTER_FINISHED',
    '7',
    'a partition is durable',
    'repeated; answered from the map once committed',
  ),
  step(recovery('coordinator'), 'recover-own-1', '7', 'ownership asked for', REDONE, { ends: [] }),
  step(recovery('coordinator'), 'recover-own-2', '7 ★', 'ownership moved', GOES_ON, { ends: [] }),
  step(recovery('coordinator'), 'recover-release-1', '8', 'all partitions done', REDONE),
  step(recovery('coordinator'), 'recover-release-2', '8 ★', 'server released', GOES_ON),
  ...message(
    recovery('server'),
    'RECOVERY_COMPLETE',
    '8',
    'recovery data may go',
    'repeated, or found by IS_REPLICA_NEEDED',
  ),
];

/** They need damage, or a reader, that only their own tests have. */
const ROT: Partial<Row> = {
  faults: ['crash'],
  elsewhere: 'test/cluster/backup-rot-faults.test.ts',
};
const LEASE: Partial<Row> = {
  faults: ['crash'],
  elsewhere: 'test/cluster/read-lease.test.ts',
};
const ACCEPTED_LOSS: Partial<Row> = {
  faults: ['crash'],
  elsewhere: 'test/cluster/accepted-loss.test.ts',
};

const REPAIR_ROWS: readonly Row[] = [
  step(replication('load'), 'rot-1', 'rot-1', 'a backup has found rot', 'found again', ROT),
  step(replication('load'), 'rot-2', 'rot-2', 'its master is told', 'told again', ROT),
  step(replication('load'), 'rot-3', 'rot-3', 'given up; another copy is made', 'as above', ROT),
  step(replication('load'), 'rot-4', 'rot-4', 'the backup knows', 'freed by its master', ROT),
  step(
    recovery('coordinator'),
    'loss-1',
    'loss-1',
    'a loss is to be accepted',
    REDONE,
    ACCEPTED_LOSS,
  ),
  step(recovery('coordinator'), 'loss-2', 'loss-2 ★', 'recorded', GOES_ON, ACCEPTED_LOSS),
];

const GRANTED = 'reads wait for another grant; T bounds it';

const LEASE_ROWS: readonly Row[] = [
  step(recovery('server'), 'lease-1', 'leases 1', 'a grant is asked for', GRANTED, LEASE),
  step(recovery('server'), 'lease-2', 'leases 2', 'granted', GRANTED, LEASE),
  step(recovery('server'), 'lease-3', 'leases 3', 'no more grants', 'T is waited out', LEASE),
  step(recovery('server'), 'lease-4', 'leases 4', 'fenced', 'T is waited out', LEASE),
  step(recovery('coordinator'), 'lease-5', 'leases 5', 'grants are over', REDONE, { ends: [] }),
];

const COORDINATOR_ROWS: readonly Row[] = [
  step(coordinator('server-crash'), 'enlist-1', 'ENLIST_SERVER', 'asked to join', REDONE, {
    faults: ['crash', 'error:RETRY', 'delay:1500'],
    ends: [],
  }),
  step(
    coordinator('server-crash'),
    'enlist-2',
    'ENLIST_SERVER ★',
    'joined',
    'same nonce: same id',
    {
      faults: ['crash', 'error:RETRY', 'delay:1500'],
      ends: [],
    },
  ),
  ...message(
    coordinator('server-crash'),
    'ENLIST_SERVER',
    'ENLIST_SERVER',
    'a server joins',
    'same nonce: same id',
    { faults: START_FAULTS },
  ),
  ...message(coordinator('server-crash'), 'GET_SERVER_LIST', 'start', 'the settings', REPEATED, {
    faults: START_FAULTS,
  }),
  ...message(
    { ...coordinator('server-crash'), at: 'server' },
    'UPDATE_SERVER_LIST',
    'list',
    'the new list',
    'repeated until the server has it or is dead',
  ),
  ...message(
    { ...coordinator('server-crash'), at: 'server' },
    'STORE_COORDINATOR_STATE',
    'copies',
    'a copy of the state',
    'repeated; nothing waits for copies',
  ),
  ...message(
    // A server that is killed is found by its refusals, often before anybody hints.
    coordinator('zombie'),
    'HINT_SERVER_CRASHED',
    'who is dead',
    'a suspicion',
    'only a hint: pings of the coordinator find it too',
  ),
  ...message(
    { ...coordinator('load'), at: 'server' },
    'PING',
    'who is dead',
    'is it alive?',
    'suspected and probed; one lost ping kills nobody',
    { faults: ['crash', 'error', 'delay:700', 'drop', 'close'] },
  ),
  ...message(
    coordinator('zombie'),
    'VERIFY_MEMBERSHIP',
    'who is dead',
    'am I still a member?',
    'asked again; until it is answered the master serves nothing',
  ),
  step(coordinator('table'), 'create-1', 'CREATE_TABLE', 'asked to create', REDONE, { ends: [] }),
  step(coordinator('table'), 'create-2', 'CREATE_TABLE ★', '`creating` stored', GOES_ON, {
    ends: [],
    short: ['crash'],
  }),
  step(coordinator('table'), 'create-3', 'CREATE_TABLE', 'masters have their tablets', GOES_ON),
  step(coordinator('table'), 'create-4', 'CREATE_TABLE ★', '`normal` stored', GOES_ON, {
    ends: [],
  }),
  step(coordinator('table'), 'drop-1', 'DROP_TABLE', 'asked to drop', REDONE, { ends: [] }),
  step(coordinator('table'), 'drop-2', 'DROP_TABLE ★', '`dropping` stored', GOES_ON, { ends: [] }),
  step(coordinator('table'), 'drop-3', 'DROP_TABLE', 'masters have forgotten', GOES_ON),
  ...message(coordinator('table'), 'CREATE_TABLE', 'CREATE_TABLE', 'a client asks', REPEATED),
  ...message(coordinator('table'), 'DROP_TABLE', 'DROP_TABLE', 'a client asks', REPEATED),
  ...message(
    { ...coordinator('table'), at: 'server' },
    'TAKE_TABLET_OWNERSHIP',
    'CREATE_TABLE',
    'a new tablet',
    'repeated; a master that dies is replaced',
  ),
  ...message(
    { ...coordinator('table'), at: 'server' },
    'DROP_TABLET_OWNERSHIP',
    'DROP_TABLE',
    'a tablet to forget',
    'repeated until it is acknowledged',
  ),
  ...message(coordinator('client'), 'GET_TABLE', 'map', 'a client looks up', REPEATED),
];

const MERGE_ROWS: readonly Row[] = [
  step(coordinator('merge'), 'merge-1', 'MERGE_TABLETS', 'asked to merge', REDONE, { ends: [] }),
  step(coordinator('merge'), 'merge-2', 'MERGE_TABLETS', 'the owner can', REDONE, {
    faults: WAITING_FAULTS,
    ends: [],
  }),
  step(coordinator('merge'), 'merge-3', 'MERGE_TABLETS ★', 'one tablet', GOES_ON, { ends: [] }),
  step(coordinator('merge'), 'merge-4', 'MERGE_TABLETS', 'the owner knows', GOES_ON, {
    faults: WAITING_FAULTS,
    ends: [],
  }),
  ...message(coordinator('merge'), 'MERGE_TABLETS', 'MERGE_TABLETS', 'a client asks', REPEATED),
  ...message(
    { ...coordinator('merge'), at: 'server' },
    'MERGE_TABLET_OWNERSHIP',
    'MERGE_TABLETS',
    'the owner is asked, then told',
    'asked: nothing has happened; told: it keeps finer books until it is told again',
  ),
];

const SPLIT_ROWS: readonly Row[] = [
  step(coordinator('split'), 'split-1', 'SPLIT_TABLET', 'asked to split', REDONE, { ends: [] }),
  step(coordinator('split'), 'split-2', 'SPLIT_TABLET', 'the owner has', REDONE, { ends: [] }),
  step(coordinator('split'), 'split-3', 'SPLIT_TABLET ★', 'two tablets', GOES_ON, { ends: [] }),
  ...message(coordinator('split'), 'SPLIT_TABLET', 'SPLIT_TABLET', 'a client asks', REPEATED),
  ...message(
    { ...coordinator('split'), at: 'server' },
    'SPLIT_TABLET_OWNERSHIP',
    'SPLIT_TABLET',
    'the owner keeps books of two',
    'asked again; without a commit it keeps finer books until the tablet moves or is merged',
  ),
];

const migration = (at: Row['at']): Place => ({ page: 'migration', at, by: 'migrate' });
const STAYS = 'before ★ the source has it; what the target got is dropped';
const MOVED = 'after ★ the target has it; the source is told to forget it';

const MIGRATION_ROWS: readonly Row[] = [
  step(migration('coordinator'), 'migrate-1', '1', 'asked to move', REDONE, { ends: [] }),
  step(migration('coordinator'), 'migrate-2', '1 ★', 'recorded', GOES_ON, { ends: [] }),
  step(migration('server'), 'migrate-3', '5', 'the target has nearly all', STAYS, {
    faults: WAITING_FAULTS,
  }),
  step(migration('server'), 'migrate-4', '8', 'the source serves no reads', STAYS, {
    faults: WAITING_FAULTS,
  }),
  step(migration('coordinator'), 'migrate-5', '9', 'all is durable at the target', STAYS, {
    ends: [],
  }),
  step(migration('coordinator'), 'migrate-6', '9 ★', 'the target owns it', MOVED, { ends: [] }),
  step(migration('coordinator'), 'migrate-7', '10', 'both know how it ended', GOES_ON, {
    faults: WAITING_FAULTS,
    ends: ['error', 'drop'],
  }),
  ...message(migration('coordinator'), 'MIGRATE_TABLET', '1', 'a client asks', REPEATED),
  ...message(migration('server'), 'MIGRATE', '2', 'the target is to fetch it', 'sent each second'),
  ...message(migration('server'), 'START_MIGRATION', '3', 'the source marks its log', STAYS),
  ...message(migration('server'), 'GET_MIGRATION_DATA', '4', 'a piece', STAYS, {
    corrupt: 'reply',
  }),
  ...message(migration('server'), 'FREEZE_TABLET', '6, 8', 'no writes, then no reads', STAYS),
  ...message(
    migration('coordinator'),
    'MIGRATION_FINISHED',
    '9',
    'all is durable at the target',
    'repeated; answered from the map once committed',
  ),
  ...message(
    migration('server'),
    'END_MIGRATION',
    '9',
    'it was given up',
    'repeated until it is answered; the source serves on, the target drops what it has',
    { lead: 'migrate-3=error*1000' },
  ),
];

const drain = (at: Row['at']): Place => ({ page: 'drain', at, by: 'drain' });

const DRAIN_ROWS: readonly Row[] = [
  step(drain('coordinator'), 'drain-1', '1', 'asked to drain', REDONE, { ends: [] }),
  step(drain('coordinator'), 'drain-2', '1 ★', 'recorded', GOES_ON, { ends: [] }),
  step(drain('coordinator'), 'drain-3', '4', 'nothing is left there', REDONE),
  step(drain('coordinator'), 'drain-4', '4 ★', '`drained` stored', GOES_ON),
  ...message(drain('coordinator'), 'DRAIN_SERVER', '1', 'an operator asks', REPEATED),
  ...message(drain('server'), 'COUNT_REPLICAS', '3', 'has it replicas there?', 'asked again'),
];

export const CATALOGUE: readonly Row[] = [
  ...WRITE_ROWS,
  ...DISK_ROWS,
  ...CLEANING_ROWS,
  ...RECOVERY_ROWS,
  ...COORDINATOR_ROWS,
  ...MERGE_ROWS,
  ...SPLIT_ROWS,
  ...MIGRATION_ROWS,
  ...DRAIN_ROWS,
  ...REPAIR_ROWS,
  ...LEASE_ROWS,
];

/** RPCs without rows: nothing that is kept depends on them. */
export const EXEMPT: Partial<Record<RpcName, string>> = {
  HELLO: 'part of a connection: `close` covers its loss',
  PROBE_SERVER: 'one of two witnesses; without an answer another one is asked',
  RENEW_LEASE: 'its ends are the steps `lease-1` and `lease-2`',
  REPORT_ROT: 'its ends are the steps `rot-1` to `rot-4`',
  ACCEPT_LOSS: 'its ends are the steps `loss-1` and `loss-2`',
  LIST_TABLES: 'for people: `rekindle table list`',
  GET_STATUS: 'for people: `rekindle status`',
  GET_SERVER_STATS: 'for people: counters',
  GET_TABLET_LOADS: 'for the balancer, which asks again in its next turn',
};

export interface Case {
  row: Row;
  /** As in REKINDLE_FAULT, without the name. */
  fault: string;
  kind: FaultKind;
}

export const CASES: readonly Case[] = CATALOGUE.flatMap((row) =>
  row.faults.map((fault) => {
    const kind = FAULT_KINDS.find((each) => fault.split(':')[0] === each);
    if (kind === undefined) throw new RangeError(`${row.name}: no kind of fault in "${fault}"`);
    return { row, fault, kind };
  }),
);

/** The leader's ends: each is played with its state in LMDB, restarted, and in etcd, replaced. */
export const LEADER_CRASHES: readonly Case[] = CASES.filter(
  ({ row, kind }) => row.at === 'coordinator' && kind === 'crash',
);

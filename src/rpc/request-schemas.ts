/**
 * Shapes of all JSON requests as zod schemas, for servers: nothing reaches a handler that does not
 * match `messages.ts`, which the compiler compares with this table. The SDK does not import it.
 */
import { z } from 'zod';
import { RekindleError } from './errors.js';
import type { Messages } from './messages.js';

/** A number below 2^53, as all ids and versions are. */
const id = z.int().nonnegative();
const count = z.number().nonnegative();
const slot = z.int().min(0).max(0xffff_ffff);
const text = z.string().max(1024);
const tableName = z.string().min(1).max(255);
const empty = z.object({});

const slotRange = { tableId: id, startSlot: slot, endSlot: slot };
const recoveryTablet = z.object({ ...slotRange, ctimeSegmentId: id });
const partition = z.object({ partitionId: id, tablets: z.array(recoveryTablet).max(65_536) });
const segmentIds = z.array(id).max(1_000_000);

const serverEntry = z.object({
  serverId: id,
  address: text,
  host: text,
  rack: text.nullable(),
  master: z.boolean(),
  backup: z.boolean(),
  status: z.enum(['up', 'crashed']),
  draining: z.literal(true).exactOptional(),
  memoryBytes: count,
});

const serverListUpdate = z.object({
  version: id,
  fromVersion: id,
  clusterId: text,
  term: id,
  replicas: id,
  durability: z.enum(['fsync', 'replicated']),
  allowSameHost: z.boolean(),
  copysets: z.array(z.array(id).max(8)).max(1_000_000).nullable(),
  servers: z.array(serverEntry).max(100_000),
  removed: z.array(id).max(100_000),
});

type RequestSchemas = { [K in keyof Messages]: z.ZodType<Messages[K]['request']> };

export const REQUEST_SCHEMAS: RequestSchemas = {
  HELLO: z.object({
    protocol: z.object({ min: id, max: id }),
    features: z.array(z.string().max(64)).max(64),
    role: z.enum(['client', 'server', 'coordinator', 'tool']),
    clusterId: text.nullable(),
    serverId: id.nullable(),
    expectServerId: id.nullable(),
    credential: z.string().max(8192).nullable(),
  }),
  PING: z.object({ callerServerId: id.nullable() }),
  ENLIST_SERVER: z.object({
    nonce: text.min(1),
    replacesId: id.nullable(),
    clusterId: text.nullable(),
    address: text.min(1),
    host: text.min(1),
    rack: text.nullable(),
    master: z.boolean(),
    backup: z.boolean(),
    memoryBytes: count,
  }),
  GET_SERVER_LIST: empty,
  CREATE_TABLE: z.object({
    operationId: text.min(1),
    name: tableName,
    span: z.int().min(1).max(65_536).exactOptional(),
  }),
  DROP_TABLE: z.object({ operationId: text.min(1), name: tableName }),
  LIST_TABLES: empty,
  GET_TABLE: z.object({ name: tableName.exactOptional(), tableId: id.exactOptional() }),
  HINT_SERVER_CRASHED: z.object({ serverId: id, reason: text }),
  VERIFY_MEMBERSHIP: z.object({ serverId: id }),
  SET_MASTER_RECOVERY_INFO: z.object({ serverId: id, segmentId: id, epoch: id }),
  RECOVERY_MASTER_FINISHED: z.object({
    recoveryId: id,
    partitionId: id,
    generation: id,
    serverId: id,
    ok: z.boolean(),
    error: z.string().max(65_536).nullable(),
    ctimeSegmentId: id,
    objects: count,
    bytes: count,
    readMs: count,
    replayMs: count,
    durableMs: count,
    unreadable: z.object({ segmentId: id, servers: z.array(id).max(1024) }).exactOptional(),
  }),
  GET_STATUS: empty,
  ACCEPT_LOSS: z.object({
    serverId: id,
    head: z.boolean(),
    segmentIds,
    operator: text.min(1),
    reason: text,
  }),
  MERGE_TABLETS: z.object({ name: tableName }),
  SPLIT_TABLET: z.object({
    operationId: text.min(1),
    name: tableName,
    slot: slot.min(1).exactOptional(),
  }),
  MIGRATE_TABLET: z.object({ name: tableName, slot, targetServerId: id }),
  MIGRATION_FINISHED: z.object({
    migrationId: id,
    serverId: id,
    ok: z.boolean(),
    error: z.string().max(65_536).nullable(),
    ctimeSegmentId: id,
    objects: count,
    bytes: count,
  }),
  DRAIN_SERVER: z.object({ serverId: id, cancel: z.boolean() }),
  UPDATE_SERVER_LIST: z.object({
    update: serverListUpdate,
    forward: z.array(id).max(100_000),
    fanOut: z.int().min(1).max(1_000),
  }),
  STORE_COORDINATOR_STATE: z.object({
    clusterId: text,
    term: id,
    revision: id,
    crc32c: z.int().min(0).max(0xffff_ffff),
    state: z.string(),
  }),
  GET_SERVER_STATS: empty,
  TAKE_TABLET_OWNERSHIP: z.object({ ...slotRange, term: id, name: tableName, ownershipId: id }),
  DROP_TABLET_OWNERSHIP: z.object({ ...slotRange, term: id, before: id.nullable() }),
  MERGE_TABLET_OWNERSHIP: z.object({ ...slotRange, term: id, apply: z.boolean() }),
  SPLIT_TABLET_OWNERSHIP: z.object({ ...slotRange, term: id, slot: slot.min(1) }),
  MIGRATE: z.object({
    ...slotRange,
    term: id,
    name: tableName,
    migrationId: id,
    sourceServerId: id,
  }),
  START_MIGRATION: z.object({ ...slotRange, term: id, migrationId: id }),
  GET_MIGRATION_DATA: z.object({
    migrationId: id,
    kind: z.enum(['scan', 'delta', 'results']),
    from: id,
    end: id,
  }),
  FREEZE_TABLET: z.object({ migrationId: id, reads: z.boolean() }),
  END_MIGRATION: z.object({ term: id, migrationId: id }),
  RECOVER: z.object({
    term: id,
    recoveryId: id,
    generation: id,
    crashedServerId: id,
    partition,
    tables: z.array(z.object({ tableId: id, name: tableName })).max(65_536),
    segments: z
      .array(z.object({ segmentId: id, length: id, backups: z.array(id).max(1024) }))
      .max(1_000_000),
  }),
  IS_REPLICA_NEEDED: z.object({ backupServerId: id, segmentIds }),
  GET_TABLET_LOADS: empty,
  COUNT_REPLICAS: z.object({ backupServerId: id }),
  REPORT_ROT: z.object({ backupServerId: id, segmentIds }),
  BACKUP_FREE: z.object({ masterId: id, segmentIds }),
  START_READING_DATA: z.object({ term: id, recoveryId: id, crashedServerId: id }),
  START_PARTITIONS: z.object({
    term: id,
    recoveryId: id,
    crashedServerId: id,
    partitions: z.array(partition).max(65_536),
    segmentIds,
  }),
  GET_RECOVERY_DATA: z.object({
    recoveryId: id,
    crashedServerId: id,
    segmentId: id,
    partitionId: id,
  }),
  RECOVERY_COMPLETE: z.object({ term: id, recoveryId: id, crashedServerId: id }),
  RENEW_LEASE: z.object({ masterId: id }),
  PROBE_SERVER: z.object({ serverId: id, timeoutMs: z.number().min(1).max(10_000) }),
};

/** Requests that grow with the cluster; no other is longer than a few kilobytes. */
const LARGE_REQUESTS: ReadonlySet<keyof Messages> = new Set<keyof Messages>([
  'UPDATE_SERVER_LIST',
  'STORE_COORDINATOR_STATE',
  'RECOVER',
  'IS_REPLICA_NEEDED',
  'REPORT_ROT',
  'BACKUP_FREE',
  'START_PARTITIONS',
  'ACCEPT_LOSS',
]);
const SMALL_REQUEST_BYTES_MAX = 64 * 1024;
const NESTING_MAX = 64;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const [OPEN_LIST, OPEN_OBJECT, CLOSE_LIST, CLOSE_OBJECT] = [0x5b, 0x7b, 0x5d, 0x7d];

/**
 * `JSON.parse` takes seconds for millions of brackets, in which a server answers no ping and is
 * declared crashed: one message of a stranger would do. So deep ones are refused unparsed.
 */
function isTooDeep(body: Uint8Array): boolean {
  let depth = 0;
  let inString = false;
  for (let at = 0; at < body.length; at++) {
    const byte = body[at]!;
    if (byte === QUOTE) inString = !inString;
    else if (inString) at += byte === BACKSLASH ? 1 : 0;
    else if (byte === OPEN_LIST || byte === OPEN_OBJECT) depth += 1;
    else if (byte === CLOSE_LIST || byte === CLOSE_OBJECT) depth -= 1;
    if (depth > NESTING_MAX) return true;
  }
  return false;
}

function bodyProblem(name: keyof Messages, body: Uint8Array): string | null {
  if (body.length <= SMALL_REQUEST_BYTES_MAX) return null;
  if (!LARGE_REQUESTS.has(name)) {
    return `${body.length} bytes, a request has at most ${SMALL_REQUEST_BYTES_MAX}`;
  }
  return isTooDeep(body) ? `nested deeper than ${NESTING_MAX}` : null;
}

/** Parses and checks a JSON request body. Throws `MALFORMED_REQUEST` that says what is wrong. */
export function parseRequest<K extends keyof Messages>(
  name: K,
  body: Uint8Array,
): Messages[K]['request'] {
  const problem = bodyProblem(name, body);
  if (problem !== null) throw new RekindleError('MALFORMED_REQUEST', `${name}: ${problem}`);
  let json: unknown = {};
  if (body.length > 0) {
    try {
      json = JSON.parse(Buffer.from(body.buffer, body.byteOffset, body.byteLength).toString());
    } catch (cause) {
      throw new RekindleError('MALFORMED_REQUEST', `${name}: body is not JSON`, { cause });
    }
  }
  const result = REQUEST_SCHEMAS[name].safeParse(json);
  if (result.success) return result.data as Messages[K]['request'];
  const issue = result.error.issues[0];
  const path = issue === undefined ? '' : issue.path.join('.');
  throw new RekindleError(
    'MALFORMED_REQUEST',
    `${name}: ${path === '' ? '' : `${path}: `}${issue?.message ?? 'invalid'}`,
  );
}

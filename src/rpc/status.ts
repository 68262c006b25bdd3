/**
 * Status codes on the wire, shared with `native/core/src/status.rs` (a test compares the two).
 *
 * Numbers are never reused. `retryable`: the SDK may try again by itself. `outcome`: what a caller
 * may conclude about a mutation that ended so.
 */

export type Outcome = 'not-applied' | 'unknown';

interface StatusRow {
  readonly number: number;
  readonly retryable: boolean;
  readonly outcome: Outcome;
}

const row = (number: number, retryable = false, outcome: Outcome = 'not-applied'): StatusRow => ({
  number,
  retryable,
  outcome,
});

export const STATUS = {
  OK: row(0),
  UNKNOWN_TABLET: row(1, true),
  TABLE_NOT_FOUND: row(2),
  OBJECT_NOT_FOUND: row(3),
  OBJECT_EXISTS: row(4),
  WRONG_VERSION: row(5),
  RETRY: row(6, true),
  OUT_OF_MEMORY: row(7, true),
  INVALID_KEY: row(8),
  VALUE_TOO_LARGE: row(9),
  STALE_RPC: row(10, false, 'unknown'),
  MALFORMED_REQUEST: row(11),
  UNSUPPORTED_OPCODE: row(12),
  WRONG_SERVER: row(13, true),
  WRONG_CLUSTER: row(14),
  PROTOCOL_MISMATCH: row(15),
  NOT_ENOUGH_BACKUPS: row(16, true),
  CALLER_NOT_IN_CLUSTER: row(17),
  FENCED: row(18),
  REPLICA_UNKNOWN: row(19),
  REPLICA_CLOSED: row(20),
  NO_FREE_FRAME: row(21, true),
  SEGMENT_OVERFLOW: row(22),
  CHECKSUM_MISMATCH: row(23),
  RECOVERY_UNKNOWN: row(24),
  SEGMENT_NOT_READY: row(25, true),
  DISK_ERROR: row(26, false, 'unknown'),
  TIMEOUT: row(27, true, 'unknown'),
  CONNECTION_LOST: row(28, true, 'unknown'),
  COORDINATOR_UNAVAILABLE: row(29, true),
  INTERNAL: row(30, false, 'unknown'),
  SHUTTING_DOWN: row(31, true),
  INVALID_ARGUMENT: row(32),
  REQUEST_TOO_LARGE: row(33),
  UNAUTHENTICATED: row(34),
  ABORTED: row(35, false, 'unknown'),
  CLIENT_CLOSED: row(36, false, 'unknown'),
} as const satisfies Record<string, StatusRow>;

export type StatusCode = keyof typeof STATUS;

const codeByNumber = new Map<number, StatusCode>(
  Object.entries(STATUS).map(([code, { number }]) => [number, code as StatusCode]),
);

/** The name of a status number; `INTERNAL` for a number that this version does not know. */
export function statusCode(number: number): StatusCode {
  return codeByNumber.get(number) ?? 'INTERNAL';
}

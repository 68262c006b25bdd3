/**
 * Faults of messages, at the server side of every RPC: `request-<RPC>` before it is handled,
 * `reply-<RPC>` when it has been handled and its answer would leave. A reply that is lost and a
 * process that dies after a commit are the same step seen by two sides, and both are here.
 *
 * BACKUP_WRITE is three steps of one protocol: `BACKUP_WRITE.open`, `.write` and `.close`.
 * Nothing here runs unless faults are armed (fault-point.ts).
 */
import { RekindleError } from './errors.js';
import { takeFault } from './fault-point.js';
import type { RpcName } from './table.js';

/** What may become of a message. */
export interface MessageEnds {
  deliver(body: Uint8Array): void;
  /** Answers with an error instead. */
  fail(error: RekindleError): void;
  /** Nobody will hear of it. */
  lose(): void;
  /** The connection that it came on is lost too. */
  close(): void;
}

const BACKUP_WRITE_FLAGS_AT = 40;
const FLAG_OPEN = 1;
const FLAG_CLOSE = 2;

/** The RPC, and of BACKUP_WRITE the step. */
export function messageStep(name: RpcName, body: Uint8Array): string {
  if (name !== 'BACKUP_WRITE') return name;
  const flags = body[BACKUP_WRITE_FLAGS_AT] ?? 0;
  return `${name}.${flags & FLAG_CLOSE ? 'close' : flags & FLAG_OPEN ? 'open' : 'write'}`;
}

/** Delivers a message, or lets the fault that is armed for it have its way. */
export function passMessage(name: string, body: Uint8Array, ends: MessageEnds): void {
  const fault = takeFault(name);
  switch (fault?.kind) {
    case undefined:
      ends.deliver(body);
      return;
    case 'crash':
      return;
    case 'delay': {
      // The bytes belong to a buffer that is used again when the handler returns.
      const copy = Uint8Array.from(body);
      setTimeout(() => ends.deliver(copy), fault.delayMs);
      return;
    }
    case 'error':
      ends.fail(new RekindleError(fault.errorCode, `injected at ${name}`));
      return;
    case 'drop':
      ends.lose();
      return;
    case 'close':
      ends.lose();
      ends.close();
      return;
    case 'corrupt': {
      const copy = Uint8Array.from(body);
      const last = copy.length - 1;
      copy[last] = (copy[last] ?? 0) ^ 0xff;
      ends.deliver(copy);
    }
  }
}

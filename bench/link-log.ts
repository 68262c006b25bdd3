/**
 * The log of a real master, cut into the pieces in which it is replicated: what the sender of
 * `rekindle bench link` has to send. Bytes stay in the core's memory; a message is its header and
 * a view of them, as replica-manager-runtime.ts makes it.
 *
 * Certificates are made once, here: a master sums each byte once for all R replicas.
 */
import { encodeBackupWriteHeader } from '../src/master/replica-manager-runtime.js';
import type { MasterCore } from '../src/native/contract.js';
import { loadAddon } from '../src/native/index.js';
import { invariant } from '../src/rpc/errors.js';
import { encodeExecuteRequest, OP_WRITE } from '../src/rpc/execute-codec.js';
import { checkReply } from './core-execute.js';
import { Dataset } from './dataset.js';

const MEMORY_BYTES = 128 * 2 ** 20;
/** The log is filled up to here, so that the cleaner has nothing to do. */
const FILLED_BYTES = 56 * 2 ** 20;
const BATCH_BYTES = 256 * 1024;
const TABLE = 1;
export const MASTER_ID = 1;

/** One BACKUP_WRITE's worth of a segment. */
interface Piece {
  offset: number;
  end: number;
  checksum: number;
}

export interface LogSegment {
  readonly segmentId: number;
  readonly pieces: readonly Piece[];
}

export interface LinkLogOptions {
  /** Of the values of the objects. */
  valueBytes: number;
  /** Most bytes of a piece; one object at least. */
  pieceBytes: number;
}

export class LinkLog {
  readonly segments: readonly LogSegment[];
  readonly #core: MasterCore;

  constructor({ valueBytes, pieceBytes }: LinkLogOptions) {
    const { MasterCore } = loadAddon();
    this.#core = new MasterCore({
      serverId: MASTER_ID,
      memoryBytes: MEMORY_BYTES,
      replayThreads: 1,
      replicated: true,
      diskExpansionFactor: 1,
    });
    this.#core.takeTablet({ tableId: TABLE, startSlot: 0, endSlot: 0xffff_ffff });
    this.#core.openLog();
    this.#fill(valueBytes);
    // The head is left out: it still grows.
    const closed = this.#core.headsAfter(0).slice(0, -1);
    this.segments = closed.map((segmentId) => this.#cut(segmentId, pieceBytes));
  }

  #fill(valueBytes: number): void {
    const dataset = new Dataset('object', 1, valueBytes);
    const reply = new Uint8Array(BATCH_BYTES);
    const results = new Float64Array(3);
    const count = Math.ceil(BATCH_BYTES / valueBytes);
    const value = dataset.value(0);
    for (let written = 0; this.#core.appendedPosition() < FILLED_BYTES; written += count) {
      const operations = Array.from({ length: count }, (_, index) => ({
        op: OP_WRITE,
        reject: 0,
        tableId: TABLE,
        rpcId: written + index + 1,
        givenVersion: 0,
        key: Buffer.from(dataset.key(written + index)),
        value,
      }));
      const body = encodeExecuteRequest({ clientId: 1, ackId: written, operations });
      this.#core.execute(body, reply, 0, results);
      checkReply(reply);
    }
  }

  #cut(segmentId: number, pieceBytes: number): LogSegment {
    const results = new Float64Array(4);
    const pieces: Piece[] = [];
    this.#core.segmentState(segmentId, results);
    const [segmentBytes = 0, closed] = results;
    invariant(closed === 1, 'segments below the head are closed');
    for (let offset = 0; offset < segmentBytes; ) {
      this.#core.chunk(segmentId, offset, pieceBytes, results);
      const [end = 0, checksum = 0] = results;
      pieces.push({ offset, end, checksum });
      offset = end;
    }
    return { segmentId, pieces };
  }

  /** The parts of a BACKUP_WRITE; the backup knows the replica as one of segment `replicaId`. */
  message(segment: LogSegment, index: number, replicaId: number): Uint8Array[] {
    const piece = segment.pieces[index];
    invariant(piece !== undefined, 'a piece of the segment');
    const { offset, end, checksum } = piece;
    // Not put together from parts: V8 takes longer for that than for all the rest.
    const write = {
      segmentId: replicaId,
      replicaIndex: 1,
      serverId: 0,
      token: 0,
      epoch: 0,
      offset,
      end,
      checksum,
      open: index === 0,
      close: index === segment.pieces.length - 1,
      certified: true,
    };
    const header = encodeBackupWriteHeader(MASTER_ID, write, false);
    return [header, this.#core.segmentBytes(segment.segmentId, offset, end)];
  }

  close(): void {
    this.#core.close();
  }
}

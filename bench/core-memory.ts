/**
 * A process of its own that fills a master through N-API with objects of a 16-byte key and 100
 * bytes, on log memory that they fill to 90 %, and prints what the process then occupies as JSON.
 * Everything counts: log memory, hash table, Node itself.
 *
 * Usage: node core-memory.js OBJECTS
 */
import { readFileSync } from 'node:fs';
import { encodeExecuteRequest, OP_WRITE } from '../src/rpc/execute-codec.js';
import { checkReply, openMaster, untilTouched } from './core-execute.js';

export interface MemoryReport {
  /** Resident memory of the process. */
  rssBytes: number;
  /** Keys and values. */
  dataBytes: number;
  writesPerSecond: number;
}

const KEY_BYTES = 16;
const VALUE_BYTES = 100;
/** Header, key and value, padded to 8. */
const ENTRY_BYTES = 152;
const SEGMENT_BYTES = 8 * 2 ** 20;
const UTILISATION = 0.9;
const OPERATIONS = 250;
const ACK_ID_AT = 8;
const OPERATION_AT = 24;
/** Header, key and value of an operation, padded as those of an entry are. */
const OPERATION_BYTES = ENTRY_BYTES;
const RPC_ID_AT = 16;
const KEY_AT = 32;

function template(): Buffer {
  return encodeExecuteRequest({
    clientId: 1,
    ackId: 0,
    operations: Array.from({ length: OPERATIONS }, (_, i) => ({
      op: OP_WRITE,
      reject: 0,
      tableId: 1,
      rpcId: i + 1,
      givenVersion: 0,
      key: Buffer.alloc(KEY_BYTES, 'object:'),
      value: Buffer.alloc(VALUE_BYTES, i),
    })),
  });
}

async function fill(objects: number): Promise<MemoryReport> {
  const segments = Math.ceil((objects * ENTRY_BYTES) / UTILISATION / SEGMENT_BYTES);
  const master = openMaster(segments * SEGMENT_BYTES);
  const body = template();
  const reply = new Uint8Array(2 ** 16);
  const results = new Float64Array(3);
  const start = performance.now();
  for (let written = 0; written < objects; written += OPERATIONS) {
    body.writeUInt32LE(written, ACK_ID_AT);
    for (let i = 0; i < OPERATIONS; i++) {
      const at = OPERATION_AT + i * OPERATION_BYTES;
      body.writeUInt32LE(written + i + 1, at + RPC_ID_AT);
      body.writeUInt32LE(written + i, at + KEY_AT + KEY_BYTES - 4);
    }
    master.execute(body, reply, 0, results);
    checkReply(reply);
  }
  const seconds = (performance.now() - start) / 1000;
  await untilTouched(master);
  const found = master.stats().objects;
  if (found !== objects) throw new Error(`${found} objects instead of ${objects}`);
  const residentKb = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1];
  const report = {
    rssBytes: residentKb === undefined ? process.memoryUsage.rss() : Number(residentKb) * 1024,
    dataBytes: objects * (KEY_BYTES + VALUE_BYTES),
    writesPerSecond: objects / seconds,
  };
  master.close();
  return report;
}

const objects = Number(process.argv[2]);
if (!Number.isInteger(objects) || objects < 1 || objects % OPERATIONS !== 0) {
  throw new Error(`usage: core-memory.js OBJECTS (a multiple of ${OPERATIONS})`);
}
process.stdout.write(`${JSON.stringify(await fill(objects))}\n`);

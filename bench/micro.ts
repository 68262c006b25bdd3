/**
 * `npm run bench:micro`: single calls on one core, with benchmark.js: the N-API border (EXECUTE
 * bodies of 1 to 256 operations on a master without backups), CRC-32C, the key hash in TypeScript
 * and native, the frame and EXECUTE codecs. Says what a message costs, not what a cluster does.
 */
import Benchmark from 'benchmark';
import { loadAddon } from '../src/native/index.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { encodeExecuteRequest, OP_READ, OP_WRITE } from '../src/rpc/execute-codec.js';
import { emptyHeader, HEADER_BYTES, readHeader, writeHeader } from '../src/rpc/frame.js';
import { hashKey } from '../src/rpc/key-hash.js';
import { machineLine } from './report.js';

interface Case {
  name: string;
  /** Operations that one call stands for. */
  operations: number;
  run(): void;
}

const TABLE = 1;
const MEMORY_BYTES = 512 * 2 ** 20;
/** The same keys again and again would fill the log with dead objects: write in a small share. */
const WRITES_MAX = 1_000_000;

function body(op: number, operations: number): Buffer {
  return encodeExecuteRequest({
    clientId: 1,
    ackId: 0,
    operations: Array.from({ length: operations }, (_, i) => ({
      op,
      reject: 0,
      tableId: TABLE,
      rpcId: 0,
      givenVersion: 0,
      key: Buffer.from(`key:${i}`),
      value: op === OP_WRITE ? Buffer.alloc(100, i) : null,
    })),
  });
}

function cases(): { all: Case[]; close(): void } {
  const addon = loadAddon();
  const master = new addon.MasterCore({ serverId: 1, memoryBytes: MEMORY_BYTES, replayThreads: 1 });
  master.takeTablet({ tableId: TABLE, startSlot: 0, endSlot: 0xffff_ffff });
  master.openLog();
  const reply = new Uint8Array(2 ** 20);
  const results = new Float64Array(2);
  const execute = (request: Uint8Array): void => master.execute(request, reply, 0, results);
  execute(body(OP_WRITE, 256));
  let writes = 0;
  const batches = [1, 16, 64, 256];
  const reads = batches.map((operations): Case => {
    const request = body(OP_READ, operations);
    return { name: `execute ${operations} reads`, operations, run: () => execute(request) };
  });
  const written = batches.map((operations): Case => {
    const request = body(OP_WRITE, operations);
    const run = (): void => {
      writes += operations;
      if (writes <= WRITES_MAX) execute(request);
    };
    return { name: `execute ${operations} writes of 100 B`, operations, run };
  });
  const key = Buffer.from('object:000000001');
  const kilobyte = Buffer.alloc(1024, 7);
  const header = new Uint8Array(HEADER_BYTES);
  const parsed = emptyHeader();
  const others: Case[] = [
    { name: 'key hash, TypeScript', operations: 1, run: () => void hashKey(TABLE, key) },
    { name: 'key hash, native', operations: 1, run: () => void addon.keyHash(TABLE, key) },
    { name: 'crc32c of 1 KB, native', operations: 1, run: () => void addon.crc32c(kilobyte) },
    {
      name: 'frame header, write and read',
      operations: 1,
      run: () => {
        writeHeader(header, 0, 0x40, 0, 1, 0);
        readHeader(header, parsed);
      },
    },
    { name: 'encode 64 reads', operations: 64, run: () => void body(OP_READ, 64) },
  ];
  return { all: [...reads, ...written, ...others], close: () => master.close() };
}

const { all, close } = cases();
const rows: (string | number)[][] = [];
for (const each of all) {
  const bench = new Benchmark(each.name, () => each.run(), { maxTime: 1 });
  bench.run();
  if (bench.error !== undefined) throw bench.error;
  const perCallNs = bench.stats.mean * 1e9;
  rows.push([
    each.name,
    formatCount(Math.round(perCallNs)),
    formatCount(Math.round((each.operations * 1e9) / perCallNs)),
    `±${bench.stats.rme.toFixed(1)} %`,
  ]);
}
close();
process.stdout.write(
  `${machineLine()}\n\n${textTable(['call', 'ns a call', 'operations/s', 'error'], rows)}\n`,
);

/**
 * `npm run bench:micro`: single calls on one core, with benchmark.js: the N-API border (EXECUTE
 * bodies of 1 to 256 operations on a master without backups), CRC-32C, the key hash in TypeScript
 * and native, the frame and EXECUTE codecs. Says what a message costs, not what a cluster does.
 */
import Benchmark from 'benchmark';
import type { MasterCore } from '../src/native/contract.js';
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
const MEMORY_BYTES = 256 * 2 ** 20;
const WRITES = 500_000;
const batches = [1, 16, 64, 256] as const;

function body(op: number, operations: number): Buffer {
  return encodeExecuteRequest({
    clientId: 1,
    ackId: 0,
    operations: Array.from({ length: operations }, (_, i) => ({
      op,
      reject: 0,
      tableId: TABLE,
      rpcId: op === OP_WRITE ? i + 1 : 0,
      givenVersion: 0,
      key: Buffer.from(`key:${i.toString().padStart(4, '0')}`),
      value: op === OP_WRITE ? Buffer.alloc(100, i) : null,
    })),
  });
}

const EXECUTE_HEADER_BYTES = 24;
const ACK_ID_AT = 8;
const RPC_ID_AT = 16;
const WRITE_BYTES = 32 + 8 + 104;

/** Gives the writes of a body new rpc ids after `acknowledged`: an old id is not executed again. */
function renumber(request: Buffer, operations: number, acknowledged: number): void {
  request.writeUInt32LE(acknowledged, ACK_ID_AT);
  for (let i = 0; i < operations; i++) {
    const at = EXECUTE_HEADER_BYTES + i * WRITE_BYTES + RPC_ID_AT;
    request.writeUInt32LE(acknowledged + i + 1, at);
  }
}

function openMaster(): MasterCore {
  const { MasterCore } = loadAddon();
  const master = new MasterCore({
    serverId: 1,
    memoryBytes: MEMORY_BYTES,
    replayThreads: 1,
    replicated: false,
    diskExpansionFactor: 2,
  });
  master.takeTablet({ tableId: TABLE, startSlot: 0, endSlot: 0xffff_ffff });
  master.openLog();
  return master;
}

function readCases(master: MasterCore): Case[] {
  const reply = new Uint8Array(2 ** 20);
  const results = new Float64Array(3);
  master.execute(body(OP_WRITE, 256), reply, 0, results);
  return batches.map((operations) => {
    const request = body(OP_READ, operations);
    const run = (): void => master.execute(request, reply, 0, results);
    return { name: `execute ${operations} reads`, operations, run };
  });
}

function otherCases(): Case[] {
  const addon = loadAddon();
  const key = Buffer.from('object:000000001');
  const kilobyte = Buffer.alloc(1024, 7);
  const header = new Uint8Array(HEADER_BYTES);
  const parsed = emptyHeader();
  return [
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
}

type Row = (string | number)[];

function row(name: string, operations: number, perCallNs: number, error: string): Row {
  const perSecond = Math.round((operations * 1e9) / perCallNs);
  return [name, formatCount(Math.round(perCallNs)), formatCount(perSecond), error];
}

function measure({ name, operations, run }: Case): Row {
  const bench = new Benchmark(name, run, { maxTime: 1 });
  bench.run();
  if (bench.error !== undefined) throw bench.error;
  return row(name, operations, bench.stats.mean * 1e9, `±${bench.stats.rme.toFixed(1)} %`);
}

/** A fixed number on a fresh master: every write takes log memory; benchmark.js would use it up. */
function measureWrites(operations: number): Row {
  const master = openMaster();
  const reply = new Uint8Array(2 ** 20);
  const results = new Float64Array(3);
  const request = body(OP_WRITE, operations);
  const start = performance.now();
  let writes = 0;
  for (; writes < WRITES; writes += operations) {
    renumber(request, operations, writes);
    master.execute(request, reply, 0, results);
  }
  const perCallNs = ((performance.now() - start) * 1e6 * operations) / writes;
  master.close();
  return row(`execute ${operations} writes of 100 B`, operations, perCallNs, '–');
}

const master = openMaster();
const reads = readCases(master).map(measure);
master.close();
const rows = [...reads, ...batches.map(measureWrites), ...otherCases().map(measure)];
process.stdout.write(
  `${machineLine()}\n\n${textTable(['call', 'ns a call', 'operations/s', 'error'], rows)}\n`,
);

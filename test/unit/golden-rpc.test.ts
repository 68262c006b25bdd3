/** Vectors of `test/golden` for messages and keys; native/core/tests/golden.rs checks them too. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  decodeExecuteRequest,
  ExecuteReplyReader,
  encodeExecuteReply,
  encodeExecuteRequest,
  operationBytes,
  writeOperation,
} from '../../src/rpc/execute-codec.js';
import { emptyHeader, readHeader, writeHeader } from '../../src/rpc/frame.js';
import { hashKey, hashText, KEY_BYTES_MAX, KeyHash, NOT_ASCII } from '../../src/rpc/key-hash.js';
import { bytesOf, golden, hexOf } from './golden-vectors.js';

interface KeyVector {
  tableId: string;
  key?: string;
  keyRepeat?: { byte: number; count: number };
  hash: string;
  slot: number;
}

test('key hashes equal their vectors', () => {
  for (const vector of golden<{ vectors: KeyVector[] }>('key-hash').vectors) {
    const { keyRepeat } = vector;
    const key =
      keyRepeat === undefined
        ? bytesOf(vector.key ?? '')
        : Buffer.alloc(keyRepeat.count, keyRepeat.byte);
    assert.equal(hashKey(Number(vector.tableId), key), vector.slot);
    const hash = BigInt(KeyHash.low) | (BigInt(KeyHash.slot) << 32n);
    assert.equal(hash, BigInt(vector.hash), `table ${vector.tableId}, key ${vector.key}`);
  }
});

test('a string that is ASCII hashes and is encoded as its bytes do; others say so', () => {
  for (const length of [1, 5, 16, 31, 32, 33, 300, KEY_BYTES_MAX]) {
    const text = 'key\x00 ~\x7f:'.repeat(Math.ceil(length / 8)).slice(0, length);
    const key = Buffer.from(text);
    assert.equal(hashText(2 ** 40 + 7, text), hashKey(2 ** 40 + 7, key), `${length} characters`);
    const encoded = [text, key].map((each) => {
      const target = Buffer.alloc(operationBytes(length, 3), 0xff);
      const rest = { op: 2, reject: 0, tableId: 5, rpcId: 6, givenVersion: 0 };
      writeOperation(target, 0, { ...rest, key: each, value: Buffer.from('abc') });
      return target;
    });
    assert.deepEqual(encoded[0], encoded[1]);
  }
  for (const text of ['é', 'ascii, then \u{1f600}', '\x80', 'x'.repeat(KEY_BYTES_MAX + 1)]) {
    assert.equal(hashText(1, text), NOT_ASCII);
  }
});

test('key hashes equal the reference function where the halves of the table id are equal', () => {
  const equalHalves = (seed: number): number => seed * 2 ** 32 + seed;
  const hash = (seed: number, key: string): string => {
    hashKey(equalHalves(seed), Buffer.from(key));
    return ((BigInt(KeyHash.slot) << 32n) | BigInt(KeyHash.low)).toString(16);
  };
  assert.equal(hash(0, ''), '0');
  assert.equal(hash(1, 'a'), '1c5281c549db9b04');
  assert.equal(hash(0, 'Hello, world!'), 'f0638dfc26acdba7');
  assert.equal(hash(7, 'The quick brown fox jumps over the lazy dog'), 'ebefeaf9461c020f');
});

interface HeaderVector {
  kind: number;
  opcode: number;
  status: number;
  callId: number;
  deadlineMs: number;
  bytes: string;
}

test('message headers equal their vectors, both ways', () => {
  for (const { bytes: expected, ...fields } of golden<{ vectors: HeaderVector[] }>('header')
    .vectors) {
    const message = Buffer.alloc(16);
    const { kind, opcode, status, callId, deadlineMs } = fields;
    writeHeader(message, kind, opcode, status, callId, deadlineMs);
    assert.equal(hexOf(message), expected);
    const header = emptyHeader();
    assert.equal(readHeader(message, header), null);
    assert.deepEqual(header, fields);
  }
});

test('headers that are cut off or foreign are refused', () => {
  const header = emptyHeader();
  const good = bytesOf('524b0100400000000100000088130000');
  for (const [at, value] of [
    [0, 0x53],
    [1, 0],
    [2, 2],
    [3, 3],
  ] as const) {
    const bad = Buffer.from(good);
    bad[at] = value;
    assert.equal(typeof readHeader(bad, header), 'string', `byte ${at} = ${value}`);
  }
  assert.equal(typeof readHeader(good.subarray(0, 15), header), 'string');
});

interface ExecuteVectors {
  request: {
    clientId: number;
    ackId: number;
    operations: {
      op: number;
      reject: number;
      tableId: number;
      rpcId: number;
      givenVersion: number;
      key: string;
      value: string | null;
    }[];
    bytes: string;
  };
  reply: {
    results: { status: number; retryAfterMs: number; version: number; value: string }[];
    bytes: string;
  };
}

test('EXECUTE requests equal their vectors, both ways', () => {
  const { request } = golden<ExecuteVectors>('execute');
  const operations = request.operations.map((operation) => ({
    ...operation,
    key: bytesOf(operation.key),
    value: operation.value === null ? null : bytesOf(operation.value),
  }));
  const { clientId, ackId } = request;
  assert.equal(hexOf(encodeExecuteRequest({ clientId, ackId, operations })), request.bytes);
  const decoded = decodeExecuteRequest(bytesOf(request.bytes));
  assert.deepEqual(
    decoded.operations.map((operation) => ({
      ...operation,
      key: hexOf(operation.key),
      value: operation.value === null ? null : hexOf(operation.value),
    })),
    request.operations,
  );
  assert.deepEqual([decoded.clientId, decoded.ackId], [clientId, ackId]);
});

test('EXECUTE requests that are cut off anywhere are refused', () => {
  const whole = bytesOf(golden<ExecuteVectors>('execute').request.bytes);
  for (let length = 0; length < whole.length; length++) {
    assert.throws(() => decodeExecuteRequest(whole.subarray(0, length)), {
      code: 'MALFORMED_REQUEST',
    });
  }
});

test('EXECUTE replies equal their vectors, both ways', () => {
  const { reply } = golden<ExecuteVectors>('execute');
  const results = reply.results.map((each) => ({ ...each, value: bytesOf(each.value) }));
  assert.equal(hexOf(encodeExecuteReply(results)), reply.bytes);
  const reader = new ExecuteReplyReader(bytesOf(reply.bytes));
  assert.equal(reader.count, reply.results.length);
  for (const expected of reply.results) {
    reader.next();
    const { status, retryAfterMs, version } = reader;
    assert.deepEqual(
      { status, retryAfterMs, version, value: hexOf(reader.takeValue(false)) },
      expected,
    );
  }
});

/**
 * What makes the next message to a master: reads apart from writes, operations of one key in their
 * order, nothing that waits for ever.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bytes } from '../../src/client/codec.js';
import { Operation, TableCall } from '../../src/client/operation.js';
import {
  MESSAGE_OPERATIONS_MAX,
  MESSAGES_IN_FLIGHT_MAX,
  type Message,
  OperationLanes,
} from '../../src/client/operation-lanes.js';
import type { TableEntry } from '../../src/client/table-map.js';
import { OP_READ, OP_REMOVE, OP_WRITE } from '../../src/rpc/execute-codec.js';
import { hashKey } from '../../src/rpc/key-hash.js';

const table: TableEntry = {
  name: 't',
  tableId: 1,
  tablets: [],
  parked: new Set(),
  refreshing: false,
  refreshes: 0,
  refreshedAtMs: 0,
};
class Forgotten extends TableCall {
  done = (): undefined => undefined;
  failed = (): undefined => undefined;
}
const call = new Forgotten(table, bytes, 'value', 1e9);

function operation(op: number, name: string, valueBytes = 0): Operation {
  const key = Buffer.from(name);
  const value = op === OP_WRITE ? Buffer.alloc(valueBytes) : null;
  const made = new Operation(call, 0, op, 0, 0, key, value);
  made.slot = hashKey(1, key);
  return made;
}

const get = (key: string): Operation => operation(OP_READ, key);
const put = (key: string, valueBytes?: number): Operation => operation(OP_WRITE, key, valueBytes);

function lanesWith(...operations: Operation[]): OperationLanes {
  const lanes = new OperationLanes(() => Number.POSITIVE_INFINITY);
  for (const each of operations) lanes.push(each);
  return lanes;
}

function takeAll(lanes: OperationLanes): Message[] {
  const messages: Message[] = [];
  for (let next = lanes.next(); next !== null; next = lanes.next()) messages.push(next);
  assert.equal(lanes.ready, false);
  return messages;
}

/** As `lane: operation key, …`. */
function written(messages: readonly Message[]): string[] {
  const names = { [OP_READ]: 'get', [OP_WRITE]: 'put', [OP_REMOVE]: 'delete' } as const;
  return messages.map(({ lane, operations }) => {
    const each = operations.map(
      ({ op, key }) => `${names[op as 1 | 2 | 3]} ${Buffer.from(key).toString()}`,
    );
    return `${lane}: ${each.join(', ')}`;
  });
}

test('reads and writes of different keys travel apart, reads first', () => {
  const lanes = lanesWith(put('a'), get('b'), put('c'), get('d'), operation(OP_REMOVE, 'e'));
  assert.deepEqual(written(takeAll(lanes)), [
    'reads: get b, get d',
    'writes: put a, put c, delete e',
  ]);
});

test('operations of one key and turn keep their order', () => {
  const one = lanesWith(put('k'), get('k'), get('other'), put('k'), get('k'));
  assert.deepEqual(written(takeAll(one)), [
    'reads: get other',
    'writes: put k, get k, put k, get k',
  ]);
  const other = lanesWith(get('k'), put('k'), get('k'), operation(OP_REMOVE, 'k'), get('k'));
  assert.deepEqual(written(takeAll(other)), [
    'reads: get k',
    'writes: put k, get k, delete k, get k',
  ]);
});

test('a read of a key whose write is not answered holds up no other read', () => {
  const lanes = lanesWith(put('k'));
  const [write] = takeAll(lanes) as [Message];
  lanes.push(get('k'));
  lanes.push(get('other'));
  const messages = takeAll(lanes);
  assert.deepEqual(written(messages), ['reads: get other', 'writes: get k']);
  lanes.ended(write);
  // That the read is under way is no reason for others to wait.
  lanes.push(get('k'));
  assert.deepEqual(written(takeAll(lanes)), ['reads: get k']);
});

test('each lane has a limit of its own, and what is behind it stays in order', () => {
  const lanes = lanesWith();
  const reads: Message[] = [];
  for (let i = 0; i < MESSAGES_IN_FLIGHT_MAX; i++) {
    lanes.push(get(`r${i}`));
    reads.push(...takeAll(lanes));
  }
  lanes.push(put('before'));
  lanes.push(get('k'));
  lanes.push(put('k'));
  const writes = takeAll(lanes);
  assert.deepEqual(written(writes), ['writes: put before'], 'no write overtakes a read');
  lanes.ended(reads[0]!);
  const rest = takeAll(lanes);
  assert.deepEqual(written(rest), ['reads: get k', 'writes: put k']);

  for (let i = rest.length; i < MESSAGES_IN_FLIGHT_MAX; i++) {
    lanes.push(put(`w${i}`));
    writes.push(...takeAll(lanes));
  }
  for (const each of [...reads.slice(1), rest[0]!]) lanes.ended(each);
  assert.equal(lanes.messagesInFlight, MESSAGES_IN_FLIGHT_MAX);
  for (const each of [put('l'), get('l'), get('free')]) lanes.push(each);
  assert.deepEqual(written(takeAll(lanes)), ['reads: get free']);
  // Also behind a read that waits there.
  lanes.ended(writes[0]!);
  lanes.ended(writes[1]!);
  assert.equal(lanes.empty, false);
  assert.deepEqual(written(takeAll(lanes)), ['writes: put l, get l']);
  assert.equal(lanes.empty, true);
});

test('messages are bounded in operations and bytes', () => {
  const many = Array.from({ length: MESSAGE_OPERATIONS_MAX + 1 }, (_, i) => get(`k${i}`));
  assert.deepEqual(
    takeAll(lanesWith(...many)).map(({ operations }) => operations.length),
    [MESSAGE_OPERATIONS_MAX, 1],
  );
  const large = takeAll(lanesWith(put('a', 1_048_576), put('b', 700_000), put('c', 300_000)));
  assert.deepEqual(written(large), ['writes: put a', 'writes: put b, put c']);
});

test('a mutation waits for an rpc id in its place, behind it what has one', () => {
  let idsFree = 1;
  const lanes = new OperationLanes(() => idsFree);
  for (const each of [put('a'), put('k'), get('k'), get('l')]) lanes.push(each);
  const [reads, first] = [lanes.next()!, lanes.next()!];
  assert.deepEqual(written([reads, first]), ['reads: get l', 'writes: put a']);
  idsFree = 0;
  assert.deepEqual(takeAll(lanes), []);
  // Refused, and sent again: the window may be waiting for just this one.
  const again = first.operations[0]!;
  again.rpcId = 1;
  lanes.ended(first);
  lanes.push(again);
  lanes.push(get('a'));
  assert.deepEqual(written(takeAll(lanes)), ['writes: put a']);
  lanes.push(get('k'));
  assert.deepEqual(takeAll(lanes), []);
  idsFree = 1;
  assert.deepEqual(written(takeAll(lanes)), ['writes: put k, get k, get a, get k']);
});

test('what has ended is not sent, and holds nothing up', () => {
  const [read, write] = [get('k'), put('k')];
  const lanes = lanesWith(read, write, put('l'));
  read.ended = true;
  write.ended = true;
  assert.deepEqual(written(takeAll(lanes)), ['writes: put l']);
  const others = lanesWith(put('k'), get('k'), get('l'));
  const lost = [others.shift(), others.shift(), others.shift(), others.shift()];
  assert.deepEqual(
    lost.map((each) => each?.key.toString()),
    ['l', 'k', 'k', undefined],
  );
});

interface Play {
  readonly lanes: OperationLanes;
  readonly inFlight: Message[];
  /** Called and neither left nor ended, oldest first. */
  readonly waiting: Operation[];
  idsFree: number;
}

/** A message leaves: the rules hold for each of its operations. */
function leave(play: Play, message: Message, why: string): void {
  const unanswered = play.inFlight.flatMap(({ operations }) => operations);
  for (const each of message.operations) {
    const name = each.key.toString();
    const first = play.waiting.findIndex(({ key }) => key.toString() === name);
    assert.equal(play.waiting[first], each, `${name} in its order, ${why}`);
    play.waiting.splice(first, 1);
    if (each.isMutation) {
      assert.equal(message.lane, 'writes', why);
      play.idsFree -= 1;
      assert.ok(play.idsFree >= 0, why);
      each.rpcId = 1;
    } else if (message.lane === 'reads') {
      const write = unanswered.find((other) => other.isMutation && other.key.toString() === name);
      assert.equal(write?.key.toString(), undefined, `a read would wait, ${why}`);
    }
  }
  play.inFlight.push(message);
  for (const lane of ['reads', 'writes']) {
    const count = play.inFlight.filter((each) => each.lane === lane).length;
    assert.ok(count <= MESSAGES_IN_FLIGHT_MAX, why);
  }
}

test('random loads: the order of each key, no read that must wait among reads, all leave', () => {
  const seed = Number(process.env.SEED ?? 20_261_122);
  const why = `SEED=${seed} npm test`;
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const play: Play = {
    lanes: new OperationLanes(() => play.idsFree),
    inFlight: [],
    waiting: [],
    idsFree: 16,
  };
  const end = (index: number): void => {
    const [message] = play.inFlight.splice(index, 1) as [Message];
    play.lanes.ended(message);
    play.idsFree += message.operations.filter(({ isMutation }) => isMutation).length;
  };
  let withReads = 0;
  for (let step = 0; step < 30_000; step++) {
    const kinds = random(2) === 0 ? [OP_READ] : [OP_READ, OP_WRITE, OP_REMOVE];
    for (let count = random(6); count > 0; count--) {
      const made = operation(kinds[random(kinds.length)]!, `k${random(12)}`, random(300_000));
      play.waiting.push(made);
      play.lanes.push(made);
    }
    if (play.waiting.length > 0 && random(20) === 0) {
      const [aborted] = play.waiting.splice(random(play.waiting.length), 1);
      aborted!.ended = true;
    }
    for (let next = play.lanes.next(); next !== null; next = play.lanes.next()) {
      if (next.lane === 'reads') withReads += 1;
      leave(play, next, why);
    }
    // The answers of one lane come in order, as a master's do.
    if (play.inFlight.length > 0 && random(3) > 0) {
      const { lane } = play.inFlight[random(play.inFlight.length)]!;
      end(play.inFlight.findIndex((each) => each.lane === lane));
    }
  }
  assert.ok(withReads > 1_000, 'reads travel alone');
  for (let left = play.waiting.length; play.inFlight.length > 0; left = play.waiting.length) {
    while (play.inFlight.length > 0) end(0);
    for (let next = play.lanes.next(); next !== null; next = play.lanes.next()) {
      leave(play, next, why);
    }
    assert.ok(play.waiting.length < left || left === 0, `some leave, ${why}`);
  }
  assert.ok(play.lanes.empty && play.waiting.length === 0, why);
});

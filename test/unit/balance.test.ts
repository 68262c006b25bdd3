/** What the balancer decides, and how masters find out which tablets are asked for. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  BUSY_PER_SECOND,
  decideBalance,
  FILL_GAP,
  fillOf,
  rateOf,
  type ServerLoad,
} from '../../src/coordinator/balance.js';
import { RequestSampler } from '../../src/master/request-sampler.js';
import { encodeExecuteRequest, OP_READ } from '../../src/rpc/execute-codec.js';
import { hashKey } from '../../src/rpc/key-hash.js';
import type { TabletLoad } from '../../src/rpc/messages.js';
import { randomFrom } from './replicated-log-disk.js';

const MEMORY = 1_000;

const tablet = (tableId: number, bytes: number, operationsPerSecond = 0): TabletLoad => ({
  ...{ tableId, startSlot: 0, endSlot: 2 ** 32 - 1 },
  ...{ bytes, records: 1, operationsPerSecond },
});

const server = (serverId: number, ...tablets: TabletLoad[]): ServerLoad => ({
  serverId,
  memoryBytes: MEMORY,
  tablets,
});

const any = (): boolean => true;

function applied(servers: readonly ServerLoad[], move: ReturnType<typeof decideBalance>) {
  return servers.map((each): ServerLoad => {
    const { tablet: moved, fromServerId, toServerId } = move ?? assert.fail('there is a move');
    const tablets = each.tablets.filter((one) => each.serverId !== fromServerId || one !== moved);
    return { ...each, tablets: each.serverId === toServerId ? [...tablets, moved] : tablets };
  });
}

test('a full server gives to the emptiest one what makes both most equal', () => {
  const servers = [server(1, tablet(1, 300), tablet(2, 200), tablet(3, 50)), server(2), server(3)];
  const move = decideBalance(servers, any);
  assert.deepEqual(
    [move?.tablet.tableId, move?.fromServerId, move?.toServerId, move?.reason],
    [1, 1, 2, 'memory'],
  );
  assert.equal(decideBalance(servers, ({ tableId }) => tableId === 3)?.tablet.tableId, 3);
  assert.equal(
    decideBalance(servers, () => false),
    null,
  );
});

test('one large tablet stays where it is, and small differences too', () => {
  assert.equal(decideBalance([server(1, tablet(1, 900)), server(2), server(3)], any), null);
  const equal = [server(1, tablet(1, 300), tablet(2, 50)), server(2, tablet(3, 260))];
  assert.equal(decideBalance(equal, any), null);
  assert.equal(decideBalance([], any), null);
  assert.equal(decideBalance([server(1, tablet(1, 900))], any), null);
});

test('a busy server gives requests away, but none that would upset memory', () => {
  const hot = BUSY_PER_SECOND;
  const servers = [server(1, tablet(1, 10, hot), tablet(2, 10, hot)), server(2, tablet(3, 20))];
  const move = decideBalance(servers, any);
  assert.deepEqual([move?.fromServerId, move?.toServerId, move?.reason], [1, 2, 'requests']);
  const idle = [server(1, tablet(1, 10, 90), tablet(2, 10, 90)), server(2, tablet(3, 20))];
  assert.equal(decideBalance(idle, any), null);
  const large = [server(1, tablet(1, 80, hot), tablet(2, 80, hot)), server(2, tablet(3, 160))];
  assert.equal(decideBalance(large, any), null);
});

test('moves come to an end, and leave no gap that a tablet could fill', () => {
  const random = randomFrom(7);
  for (let run = 0; run < 200; run++) {
    let tableId = 0;
    let servers = Array.from({ length: 2 + Math.floor(random() * 6) }, (_, at) => {
      const tablets = Array.from({ length: Math.floor(random() * 8) }, () => {
        tableId += 1;
        return tablet(tableId, Math.floor(random() * 120), Math.floor(random() * 9_000));
      });
      return server(at + 1, ...tablets);
    });
    let moves = 0;
    for (; moves < 200; moves++) {
      const move = decideBalance(servers, any);
      if (move === null) break;
      servers = applied(servers, move);
    }
    assert.ok(moves < 200, `run ${run}: ${JSON.stringify(servers)}`);
    const fills = servers.map(fillOf);
    const [low, high] = [Math.min(...fills), Math.max(...fills)];
    const fullest = servers.find((each) => fillOf(each) === high);
    const smallest = Math.min(...(fullest?.tablets ?? []).map(({ bytes }) => bytes)) / MEMORY;
    assert.ok(high - low < FILL_GAP || low + smallest > high - FILL_GAP, `run ${run}`);
  }
});

test('samples tell which tablet the operations of a master are for', () => {
  const sampler = new RequestSampler(0);
  const half = 2 ** 31;
  const tablets = [
    { tableId: 2, startSlot: half, endSlot: 2 ** 32 - 1, bytes: 2, records: 1 },
    { tableId: 2, startSlot: 0, endSlot: half - 1, bytes: 1, records: 1 },
    { tableId: 1, startSlot: 0, endSlot: 2 ** 32 - 1, bytes: 3, records: 1 },
  ];
  const body = (tableId: number, key: string, count: number): Buffer => {
    const operation = { op: OP_READ, reject: 0, tableId, rpcId: 0, givenVersion: 0, value: null };
    const operations = Array.from({ length: count }, () => ({
      ...operation,
      key: Buffer.from(key),
    }));
    return encodeExecuteRequest({ clientId: 1, ackId: 0, operations });
  };
  const keys = Array.from({ length: 64 }, (_, i) => `key-${i}`);
  const low = keys.find((key) => hashKey(2, Buffer.from(key)) < half) ?? assert.fail();
  const high = keys.find((key) => hashKey(2, Buffer.from(key)) >= half) ?? assert.fail();
  let nowMs = 10_000;
  for (; nowMs < 18_000; nowMs += 1) {
    sampler.note(body(2, nowMs % 4 < 2 ? low : high, 3), nowMs);
    sampler.note(Buffer.from('not a message of this kind'), nowMs);
    sampler.note(Buffer.alloc(2), nowMs);
  }
  const loads = sampler.loads(tablets, nowMs);
  assert.deepEqual(
    loads.map(({ tableId, startSlot, bytes }) => [tableId, startSlot, bytes]),
    [
      [1, 0, 3],
      [2, 0, 1],
      [2, half, 2],
    ],
  );
  assert.equal(loads[0]?.operationsPerSecond, 0);
  const sum = rateOf({ serverId: 1, memoryBytes: 1, tablets: loads });
  assert.ok(sum >= 2_900, `${sum} of 3,000 operations a second`);
  for (const { operationsPerSecond } of loads.slice(1)) assert.ok(operationsPerSecond > 1_000);
  assert.ok(rateOf({ serverId: 1, memoryBytes: 1, tablets: sampler.loads(tablets, 40_000) }) === 0);
});

/**
 * The whole coordinator: joining, tables, a crash with its recovery, a restart in the middle,
 * refusals, the end of its leadership.
 */
import assert from 'node:assert/strict';
import { rm } from 'node:fs/promises';
import { test } from 'node:test';
import { Coordinator } from '../../src/coordinator/coordinator.js';
import { LmdbStorage } from '../../src/coordinator/external-storage/lmdb.js';
import { restoreState } from '../../src/coordinator/state-copy.js';
import type { RekindleError } from '../../src/rpc/errors.js';
import {
  type FakeCluster,
  FakeEndpoint,
  FakeServer,
  hasCode,
  until,
  winLead,
  withCluster,
} from './coordinator-scene.js';

test('until the state is loaded everything answers RETRY', () =>
  withCluster(async (cluster) => {
    await cluster.stop();
    cluster.endpoint = new FakeEndpoint();
    const storage = await cluster.open();
    cluster.coordinator = new Coordinator(cluster.options(storage));
    assert.equal(cluster.coordinator.clusterId, null);
    for (const name of cluster.endpoint.handlers.keys()) {
      const call = cluster.endpoint.call(name as 'GET_STATUS', {});
      await assert.rejects(call, hasCode('RETRY'), name);
    }
    await cluster.coordinator.start(await winLead(storage));
    assert.equal((await cluster.status()).term, 2);
  }));

test('servers join, get each list, hold copies; a table is created, shown and dropped', () =>
  withCluster(async (cluster) => {
    const create = { operationId: 'c1', name: 't', span: 3 };
    await assert.rejects(
      cluster.endpoint.call('CREATE_TABLE', create),
      hasCode('NOT_ENOUGH_BACKUPS'),
    );
    await cluster.add(5);
    const { table } = await cluster.endpoint.call('CREATE_TABLE', create);
    assert.deepEqual(
      table.tablets.map(({ status }) => status),
      ['normal', 'normal', 'normal'],
    );
    assert.equal(
      cluster.servers.reduce((sum, { tablets }) => sum + tablets.length, 0),
      3,
    );
    const found = await cluster.endpoint.call('GET_TABLE', { name: 't' });
    assert.deepEqual(found.table, table);
    await until('all have the list', () =>
      cluster.servers.every(({ list }) => list?.servers.length === 5),
    );
    await until('all hold the newest copy', async () => (await cluster.status()).stateCopies === 5);
    assert.deepEqual((await cluster.status()).warnings, []);

    const drop = { operationId: 'd1', name: 't' };
    assert.deepEqual(await cluster.endpoint.call('DROP_TABLE', drop), { existed: true });
    assert.deepEqual(await cluster.endpoint.call('DROP_TABLE', drop), { existed: true });
    assert.equal(
      cluster.servers.reduce((sum, { tablets }) => sum + tablets.length, 0),
      0,
    );
    await assert.rejects(
      cluster.endpoint.call('GET_TABLE', { tableId: table.tableId }),
      hasCode('TABLE_NOT_FOUND'),
    );
  }));

test('a killed server is noticed, recovered and leaves the list; its report stays', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    const create = { operationId: 'c', name: 't' };
    const { table } = await cluster.endpoint.call('CREATE_TABLE', create);
    const dead = cluster.owner(table.tablets[0]?.serverId);
    await until('it is watched', () => [...cluster.links.values()].every((l) => l.connected));
    cluster.kill(dead);
    await until('it is gone', async () => (await cluster.status()).servers.length === 4);
    const [report] = (await cluster.status()).recoveries;
    assert.equal(report?.state, 'done');
    assert.equal(report?.crashedServerId, dead.serverId);
    assert.deepEqual(
      report?.phases.map(({ number }) => number),
      [1, 2, 3, 4, 5, 6, 7, 8],
    );
    assert.equal(report?.objects, 10);
    const now = await cluster.endpoint.call('GET_TABLE', { name: 't' });
    assert.equal(now.table.tablets[0]?.status, 'normal');
    assert.notEqual(now.table.tablets[0]?.serverId, dead.serverId);
    const ping = await cluster.endpoint.call('PING', { callerServerId: dead.serverId });
    assert.equal(ping.member, false);
    const living = cluster.servers.filter(({ alive }) => alive);
    await until('backups hear of the end', () => living.every((s) => s.completed.length === 1));
  }));

test('no tablet changes hands before the last grant to its owner is over', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    const create = { operationId: 'c', name: 't' };
    const dead = cluster.owner(
      (await cluster.endpoint.call('CREATE_TABLE', create)).table.tablets[0]?.serverId,
    );
    for (const server of cluster.servers) server.leaseRemainderMs = 290;
    const startMs = performance.now();
    cluster.kill(dead);
    await until('it is recovered', async () => (await cluster.status()).servers.length === 4);
    assert.ok(performance.now() - startMs >= 290);
  }));

test('a server that does not know its new id yet is not taken for dead', () =>
  withCluster(async (cluster) => {
    const server = new FakeServer(cluster, 1);
    cluster.servers.push(server);
    const serverId = await server.enlist();
    server.serverId = 0;
    const hint = { serverId, reason: 'test' };
    await cluster.endpoint.call('HINT_SERVER_CRASHED', hint);
    for (let turn = 0; turn < 20; turn++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      assert.ok((await cluster.endpoint.call('VERIFY_MEMBERSHIP', { serverId })).member);
    }
    server.serverId = serverId;
    await until('it has the list', () => server.list?.servers.length === 1);
    server.serverId = serverId + 1;
    await until('another process has its address', async () => {
      const { member } = await cluster.endpoint.call('VERIFY_MEMBERSHIP', { serverId });
      return !member;
    });
  }));

test('a coordinator that restarts in the middle of a recovery finishes it', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    const create = { operationId: 'c', name: 't', span: 2 };
    const { table } = await cluster.endpoint.call('CREATE_TABLE', create);
    const dead = cluster.owner(table.tablets[0]?.serverId);
    for (const server of cluster.servers) server.finishes = false;
    cluster.kill(dead);
    const hint = { serverId: dead.serverId, reason: 'test' };
    await cluster.endpoint.call('HINT_SERVER_CRASHED', hint);
    await until('a partition is out', () => cluster.servers.some((s) => s.recovers.length > 0));
    const { tableId } = table;
    const before = await cluster.endpoint.call('GET_TABLE', { tableId });
    assert.equal(before.table.tablets[0]?.status, 'recovering');
    assert.equal(before.table.tablets[0]?.address, null);
    await cluster.stop();

    for (const server of cluster.servers) server.finishes = true;
    await cluster.start();
    await until('recovered', async () => (await cluster.status()).servers.length === 4);
    const after = await cluster.endpoint.call('GET_TABLE', { tableId });
    assert.ok(after.table.tablets.every(({ status }) => status === 'normal'));
    assert.ok(cluster.faults.includes('recover-plan-2'));
  }));

test('a restarted coordinator finds out by itself who died while it was away', () =>
  withCluster(async (cluster) => {
    await cluster.add(5);
    await cluster.endpoint.call('CREATE_TABLE', { operationId: 'c', name: 't', span: 5 });
    await cluster.stop();
    const [, dead] = cluster.servers;
    assert.ok(dead);
    dead.alive = false;
    await cluster.start();
    await until('recovered', async () => (await cluster.status()).servers.length === 4);
    const { tables } = await cluster.endpoint.call('LIST_TABLES', {});
    assert.ok(tables[0]?.tablets.every(({ serverId }) => serverId !== dead.serverId));
  }));

test('an empty coordinator takes over the copy that a server holds', () =>
  withCluster(async (cluster) => {
    await cluster.add(3);
    await cluster.endpoint.call('CREATE_TABLE', { operationId: 'c', name: 'kept' });
    await until('copies', async () => (await cluster.status()).stateCopies === 3);
    const { clusterId } = await cluster.status();
    const copy = cluster.servers[0]?.stateCopy;
    await cluster.stop();
    await rm(cluster.directory, { recursive: true });

    await cluster.start();
    const data = { ...enlistWithData(clusterId) };
    await assert.rejects(cluster.endpoint.call('ENLIST_SERVER', data), hasCode('WRONG_CLUSTER'));
    await cluster.stop();
    const storage = await LmdbStorage.open(cluster.directory);
    await restoreState(storage, await winLead(storage), JSON.stringify(copy));
    await storage.close();
    await cluster.start();
    const status = await cluster.status();
    assert.equal(status.clusterId, clusterId);
    assert.deepEqual(
      status.tables.map(({ name }) => name),
      ['kept'],
    );
    const { serverId } = await cluster.endpoint.call('ENLIST_SERVER', data);
    assert.ok(serverId > 2 ** 32, 'an id of a new generation');
  }));

function enlistWithData(clusterId: string) {
  return {
    nonce: 'other',
    replacesId: null,
    clusterId,
    address: '127.0.0.1:9000',
    host: 'other',
    rack: null,
    master: true,
    backup: true,
    memoryBytes: 1,
  };
}

test('a deposed coordinator changes nothing, grants no lease, and stops', () =>
  withCluster(async (cluster) => {
    await cluster.add(2);
    const { storage } = cluster;
    assert.ok(storage);
    const { leaderState, revision } = await storage.list();
    const other = { term: 9, candidateId: 'other', address: '127.0.0.1:9009' };
    const won = await storage.campaign(leaderState.leader, other);
    assert.equal(won.leader.candidateId, 'other');
    assert.equal(won.revision, revision);
    const serverId = cluster.servers[0]?.serverId ?? 0;
    const lease = cluster.endpoint.call('VERIFY_MEMBERSHIP', { serverId });
    await assert.rejects(lease, hasCode('CONNECTION_LOST'));
    assert.equal((cluster.fatal as RekindleError | null)?.code, 'FENCED');
    await assert.rejects(cluster.status(), hasCode('SHUTTING_DOWN'));
    assert.equal((await storage.list()).revision, revision);
    cluster.fatal = null;
  }));

test('the first commit of a deposed coordinator fails, and its caller may try elsewhere', () =>
  withCluster(async (cluster) => {
    await cluster.add(1);
    const { storage } = cluster;
    assert.ok(storage);
    const other = { term: 9, candidateId: 'other', address: '127.0.0.1:9009' };
    await storage.campaign((await storage.list()).leaderState.leader, other);
    const another = new FakeServer(cluster, 9);
    const first = another.enlist();
    // It waits for its turn, and is not begun.
    const second = new FakeServer(cluster, 10).enlist();
    const refused = assert.rejects(second, hasCode('SHUTTING_DOWN'));
    await assert.rejects(first, hasCode('CONNECTION_LOST'));
    await refused;
    assert.equal((cluster.fatal as RekindleError | null)?.code, 'FENCED');
    cluster.fatal = null;
  }));

/** Calls until it is answered or the coordinator hangs; a hung call is made again later. */
async function answered(cluster: FakeCluster, work: () => Promise<unknown>): Promise<boolean> {
  let done = false;
  const ended = work().then(() => {
    done = true;
  });
  await Promise.race([
    ended,
    until('an answer or the fault', () => done || cluster.faults.includes(cluster.hangAt ?? '')),
  ]);
  return done;
}

const FAULT_POINTS = [
  ...['enlist-1', 'enlist-2', 'create-1', 'create-2', 'create-3', 'create-4'],
  ...['drop-1', 'drop-2', 'drop-3', 'crash-1', 'crash-2', 'recover-fence-1'],
  ...['recover-plan-1', 'recover-plan-2', 'recover-plan-3', 'recover-sent-1'],
  ...['recover-own-1', 'recover-own-2', 'recover-release-1', 'recover-release-2'],
];

for (const name of FAULT_POINTS) {
  test(`killed at ${name}, the next coordinator finishes what was begun`, () =>
    withCluster(async (cluster) => {
      const restart = async (): Promise<void> => {
        await cluster.stop();
        cluster.hangAt = null;
        await cluster.start();
      };
      const perform = async (work: () => Promise<unknown>): Promise<void> => {
        if (await answered(cluster, work)) return;
        await restart();
        await work();
      };
      cluster.hangAt = name;
      for (let n = 1; n <= 5; n++) {
        const server = new FakeServer(cluster, n);
        cluster.servers.push(server);
        await perform(() => server.enlist());
      }
      assert.equal((await cluster.status()).servers.length, 5, 'no ghost servers');
      const create = (tableName: string) => () =>
        cluster.endpoint.call('CREATE_TABLE', { operationId: tableName, name: tableName, span: 5 });
      await perform(create('kept'));
      await perform(create('dropped'));
      await perform(async () => {
        const drop = { operationId: 'drop', name: 'dropped' };
        assert.deepEqual(await cluster.endpoint.call('DROP_TABLE', drop), { existed: true });
      });
      const dead = cluster.servers[2];
      assert.ok(dead);
      cluster.kill(dead);
      const hint = { serverId: dead.serverId, reason: 'test' };
      await cluster.endpoint.call('HINT_SERVER_CRASHED', hint);
      const recovered = async (): Promise<boolean> => {
        const { servers, tables } = await cluster.status();
        const owners = tables.flatMap(({ tablets }) => tablets.map(({ status }) => status));
        return servers.length === 4 && owners.every((status) => status === 'normal');
      };
      await until(
        'recovered or at the fault',
        async () =>
          (cluster.hangAt !== null && cluster.faults.includes(cluster.hangAt)) ||
          (await recovered()),
      );
      if (cluster.hangAt !== null) await restart();
      await until('recovered', recovered);
      assert.ok(cluster.faults.includes(name), 'the fault point was passed');
      const { tables } = await cluster.status();
      assert.deepEqual(
        tables.map((table) => table.name),
        ['kept'],
      );
      await until('the dropped table is gone everywhere', () =>
        cluster.servers.every(
          ({ alive, tablets }) => !alive || tablets.every((tablet) => tablet.startsWith('1:')),
        ),
      );
    }));
}

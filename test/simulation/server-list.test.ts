/**
 * The server list on its way to 1,000 servers: the real pusher and the real forwarders on simulated
 * network and time. What the leader sends, how long it takes, and that everybody has the same list
 * in the end, whoever dies and whatever is lost.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Membership } from '../../src/cluster/membership.js';
import { takeServerList } from '../../src/cluster/server-list-forwarder.js';
import { decideStart } from '../../src/coordinator/cluster-start.js';
import type { CoordinatorContext } from '../../src/coordinator/context.js';
import { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { decideCrash, decideEnlist, decideRelease } from '../../src/coordinator/server-list.js';
import { LIST_FAN_OUT } from '../../src/coordinator/server-list-push.js';
import { ServerListPusher } from '../../src/coordinator/server-list-pusher.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { JsonRpcName, RequestOf } from '../../src/rpc/table.js';
import { applied, enlistRequest } from '../unit/coordinator-decisions.js';
import { SimulatedNetwork, type SimulatedNode } from './simulated-network.js';
import { SimulatedProcess, SimulatedTime } from './simulated-time.js';

const SERVERS = 1_000;
/** 8 + 64 + 512 + 416. */
const HOPS = 4;
const DELAY_MS = 10;

class Server implements SimulatedNode {
  readonly nonce = '';
  readonly process: SimulatedProcess;
  readonly membership = new Membership();
  private readonly pool;

  constructor(
    network: SimulatedNetwork,
    readonly serverId: number,
    readonly address: string,
  ) {
    this.process = new SimulatedProcess(network.time, address);
    const peer = () => ({ role: 'server' as const, serverId, remoteAddress: '' });
    this.pool = network.pool(this.process, peer);
    network.nodes.set(address, this);
  }

  answer(name: JsonRpcName, request: unknown): unknown {
    assert.equal(name, 'UPDATE_SERVER_LIST');
    const directory = this.membership.directory(this.pool);
    const log = { debug: () => undefined };
    return takeServerList(request as RequestOf<typeof name>, this.membership, directory, log);
  }
}

class Leader {
  readonly time = new SimulatedTime(5);
  readonly network = new SimulatedNetwork(this.time);
  readonly state = new CoordinatorState();
  readonly servers = new Map<number, Server>();
  messages = 0;
  bytes = 0;
  private pusher: ServerListPusher;
  private joined = 0;

  constructor() {
    this.network.faults.delayMs = DELAY_MS;
    applied(this.state, decideStart(this.state, { replicas: 2 }, 'c'));
    for (let n = 0; n < SERVERS; n++) this.join();
    for (const { membership } of this.servers.values()) membership.apply(this.state.serverList());
    this.pusher = this.lead();
  }

  /** A successor knows what is committed, and nothing of what was told. */
  lead(): ServerListPusher {
    const process = new SimulatedProcess(this.time, `leader ${this.time.nowMs}`);
    const pool = this.network.pool(process, () => ({
      ...{ role: 'coordinator', serverId: null, remoteAddress: '' },
    }));
    applied(this.state, decideStart(this.state, {}, 'c'));
    const context = {
      ...{ state: this.state, clock: process.clock, after: process.clock.after },
      log: () => undefined,
      call: async (serverId: number, name: 'UPDATE_SERVER_LIST', request: object, options = {}) => {
        const server = this.state.servers.get(serverId);
        if (server?.status !== 'up') throw new RekindleError('CONNECTION_LOST', 'it is not up');
        this.messages++;
        this.bytes += JSON.stringify(request).length;
        const link = pool.link(server.address, serverId);
        return link.call(name, request as RequestOf<typeof name>, options);
      },
      background: (promise: Promise<unknown>) => {
        promise.catch((error: unknown) => assert.fail(String(error)));
      },
    } as unknown as CoordinatorContext;
    this.pusher = new ServerListPusher(context);
    this.pusher.kick();
    return this.pusher;
  }

  join(): void {
    const request = enlistRequest(++this.joined);
    const { serverId } = applied(this.state, decideEnlist(this.state, request, 0));
    this.servers.set(serverId, new Server(this.network, serverId, request.address));
  }

  kick(): void {
    this.messages = 0;
    this.bytes = 0;
    this.pusher.kick();
  }

  /** Dead, and nobody has noticed. */
  kill(count: number): number[] {
    const up = [...this.servers.keys()].filter((id) => this.servers.get(id)?.process.alive);
    return Array.from({ length: count }, () => {
      const [serverId = 0] = up.splice(this.time.below(up.length), 1);
      this.network.kill(this.servers.get(serverId)?.address ?? '');
      return serverId;
    });
  }

  crash(serverId: number): void {
    applied(this.state, decideCrash(this.state, serverId, 0, 0));
  }

  release(serverId: number): void {
    const { recoveryId } = this.state.recoveryOf(serverId) ?? { recoveryId: 0 };
    assert.ok(applied(this.state, decideRelease(this.state, recoveryId)));
  }

  alive(): Server[] {
    return [...this.servers.values()].filter(({ process }) => process.alive);
  }

  /** How long it takes until all that live have the list of the moment. */
  async spread(msMax: number): Promise<number> {
    const beginMs = this.time.nowMs;
    const { serverListVersion } = this.state.cluster;
    let atMs = Number.POSITIVE_INFINITY;
    const all = (): boolean => {
      const have = this.alive().every((each) => each.membership.version === serverListVersion);
      if (have) atMs = Math.min(atMs, this.time.nowMs);
      return have;
    };
    for (let ms = 0; ms < msMax && !all(); ms += DELAY_MS) {
      await this.time.run(this.time.nowMs + DELAY_MS);
    }
    assert.ok(all(), `not in ${msMax} ms`);
    const { term: _, ...list } = this.state.serverList();
    for (const { membership } of this.alive()) {
      const { term: __, ...has } = membership.list ?? { term: 0 };
      assert.deepEqual(has, list);
    }
    return atMs - beginMs;
  }
}

test('1,000 servers hear of a change in four hops; the leader sends eight messages', async () => {
  const leader = new Leader();
  await leader.time.run(1_000);
  assert.equal(leader.messages, LIST_FAN_OUT, 'a new leader tells its term');
  const [dead = 0] = leader.kill(1);
  leader.crash(dead);
  leader.kick();
  const tookMs = await leader.spread(1_000);
  assert.ok(tookMs <= (HOPS + 1) * DELAY_MS, `${tookMs} ms`);
  // All of it has been confirmed: nothing more is sent.
  await leader.time.run(leader.time.nowMs + 5_000);
  assert.equal(leader.messages, LIST_FAN_OUT);
  const wholeBytes = JSON.stringify(leader.state.serverList()).length;
  assert.ok(leader.bytes < 15_000, `${leader.bytes} bytes`);
  assert.ok(leader.bytes * 1_000 < wholeBytes * SERVERS, `a list has ${wholeBytes} bytes`);
});

test('deaths that nobody has noticed cost a message or two each', async () => {
  const leader = new Leader();
  await leader.time.run(1_000);
  const dead = leader.kill(50);
  leader.crash(dead.pop() as number);
  leader.kick();
  await leader.spread(3_000);
  const { messages } = leader;
  assert.ok(messages <= LIST_FAN_OUT * 8, `${messages} messages`);
  // Until they are declared crashed they are asked again, and tell nobody.
  for (const serverId of dead) leader.crash(serverId);
  leader.kick();
  await leader.spread(1_000);
  assert.ok(leader.messages <= 2 * LIST_FAN_OUT, `${leader.messages} messages`);
});

test('what is lost on the way is sent again, and old lists become whole ones', async () => {
  const leader = new Leader();
  await leader.time.run(1_000);
  leader.network.faults.lost = 0.03;
  for (let round = 0; round < 3; round++) {
    const [serverId = 0] = leader.kill(1);
    leader.crash(serverId);
    leader.kick();
    await leader.time.run(leader.time.nowMs + 20);
    leader.release(serverId);
    leader.join();
    leader.kick();
    await leader.spread(20_000);
    assert.ok(leader.messages <= 200, `${leader.messages} messages`);
    // The next leader does not know who has what.
    if (round % 2 === 0) leader.lead();
  }
  leader.network.faults.lost = 0;
  for (const { process } of leader.alive().slice(0, 300)) process.pause();
  const [gone = 0] = leader.kill(1);
  leader.crash(gone);
  leader.kick();
  await leader.time.run(leader.time.nowMs + 3_000);
  leader.lead();
  for (const { process } of leader.alive()) process.resume();
  await leader.spread(20_000);
});

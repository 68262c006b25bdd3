/**
 * Calls between simulated processes. Each comes late, and never before an earlier one of the same
 * caller to the same address, as on a connection; it may come twice, its answer may be lost, it may
 * get lost itself. Calls of a process that has died meanwhile arrive all the same.
 */
import { asRekindleError, RekindleError } from '../../src/rpc/errors.js';
import { type JsonRpcName, type ReplyOf, type RequestOf, RPC } from '../../src/rpc/table.js';
import type { CallOptions, LinkPool, Peer, RpcLink } from '../../src/rpc/transport.js';
import type { SimulatedProcess, SimulatedTime } from './simulated-time.js';

/** Who answers at an address. */
export interface SimulatedNode {
  readonly process: SimulatedProcess;
  readonly serverId: number | null;
  readonly nonce: string;
  answer(
    name: JsonRpcName,
    request: unknown,
    call: { peer: Peer; deadlineMs: number },
  ): Promise<unknown> | unknown;
}

export interface NetworkFaults {
  delayMs: number;
  /** Calls that are lost, on their way there or back. */
  lost: number;
  /** Calls that come twice. */
  twice: number;
}

interface Call {
  readonly from: SimulatedProcess;
  readonly peer: Peer;
  readonly address: string;
  readonly expectServerId: number | null;
  readonly name: JsonRpcName;
  readonly request: unknown;
  readonly timeoutMs: number;
}

export class SimulatedNetwork {
  readonly faults: NetworkFaults = { delayMs: 2, lost: 0, twice: 0 };
  readonly nodes = new Map<string, SimulatedNode>();
  /** Pairs `caller address` that do not reach one another. */
  readonly cuts = new Set<string>();
  private readonly arrivesAtMs = new Map<string, number>();
  /** Calls that a process has taken and not answered: they end with it. */
  private readonly open = new Map<SimulatedProcess, Set<(error: RekindleError) => void>>();
  private readonly pools = new Set<SimulatedLinkPool>();

  constructor(readonly time: SimulatedTime) {}

  pool(process: SimulatedProcess, peer: () => Peer): SimulatedLinkPool {
    const pool = new SimulatedLinkPool(this, process, peer);
    this.pools.add(pool);
    return pool;
  }

  /** The process at this address ends: its connections do, too. */
  kill(address: string): void {
    const node = this.nodes.get(address);
    if (node === undefined) return;
    const { process } = node;
    process.kill();
    this.nodes.delete(address);
    const lost = new RekindleError('CONNECTION_LOST', `the connection to ${address} was lost`);
    for (const fail of this.open.get(process) ?? []) fail(lost);
    this.open.delete(process);
    for (const pool of this.pools) {
      if (pool.process === process) this.pools.delete(pool);
      else pool.lose(address, lost);
    }
  }

  cut(caller: SimulatedProcess, address: string): boolean {
    return this.cuts.has(`${caller.name} ${address}`);
  }

  call(call: Call): Promise<unknown> {
    const { time, faults } = this;
    const { from, address, timeoutMs } = call;
    return new Promise((resolve, reject) => {
      let over = false;
      const end = (settle: () => void): void => {
        const backMs = time.between(0, faults.delayMs);
        time.at(time.nowMs + backMs, () => {
          from.deliver(() => {
            if (over) return;
            over = true;
            cancel();
            settle();
          });
        });
      };
      const cancel = from.clock.after(timeoutMs, () => {
        over = true;
        reject(new RekindleError('TIMEOUT', `${call.name} was not answered in ${timeoutMs} ms`));
      });
      if (this.cut(from, address) || time.chance(faults.lost)) {
        if (time.chance(0.5)) end(() => reject(new RekindleError('CONNECTION_LOST', 'lost')));
        return;
      }
      const way = `${from.name} ${address}`;
      const atMs = Math.max(
        this.arrivesAtMs.get(way) ?? 0,
        time.nowMs + time.between(0, faults.delayMs),
      );
      this.arrivesAtMs.set(way, atMs);
      time.at(atMs, () => {
        const reply = (value: unknown): void => end(() => resolve(value));
        this.arrive(call, reply, (error) => end(() => reject(error)));
      });
    });
  }

  private arrive(
    call: Call,
    reply: (value: unknown) => void,
    fail: (error: RekindleError) => void,
  ): void {
    const { time } = this;
    const node = this.nodes.get(call.address);
    if (node === undefined) {
      const cause = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED' });
      fail(new RekindleError('CONNECTION_LOST', 'refused', { cause, outcome: 'not-applied' }));
      return;
    }
    const { process } = node;
    const open = this.open.get(process) ?? new Set();
    this.open.set(process, open);
    open.add(fail);
    const ended = (settle: () => void): void => {
      if (!open.delete(fail) || time.chance(this.faults.lost)) return;
      settle();
    };
    process.deliver(() => {
      this.execute(node, call).then(
        (value) => ended(() => reply(value)),
        (error: unknown) => ended(() => fail(asRekindleError(error))),
      );
      if (!time.chance(this.faults.twice)) return;
      // Nobody hears what becomes of it.
      void Promise.allSettled([this.execute(node, call)]);
    });
  }

  private async execute(node: SimulatedNode, call: Call): Promise<unknown> {
    const { name, request, expectServerId, peer, timeoutMs } = call;
    if (expectServerId !== null && node.serverId !== expectServerId) {
      const { serverId, nonce } = node;
      const details = serverId === null ? { serverId, nonce } : { serverId };
      throw new RekindleError('WRONG_SERVER', 'another server', { details });
    }
    const deadlineMs = this.time.nowMs + timeoutMs;
    return structuredClone(await node.answer(name, structuredClone(request), { peer, deadlineMs }));
  }
}

class SimulatedLink implements RpcLink {
  connected = false;
  readonly remote = null;
  readonly outstandingBytes = 0;
  private readonly listeners: ((error: RekindleError) => void)[] = [];

  constructor(
    private readonly pool: SimulatedLinkPool,
    readonly address: string,
    readonly expectServerId: number | null,
  ) {}

  async call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    options: CallOptions = {},
  ): Promise<ReplyOf<K>> {
    const { network, process, peer } = this.pool;
    const { address, expectServerId } = this;
    const timeoutMs = options.timeoutMs ?? RPC[name].timeoutMs;
    const call = { from: process, peer: peer(), address, expectServerId, name, request, timeoutMs };
    try {
      const reply = await network.call(call);
      this.connected = true;
      return reply as ReplyOf<K>;
    } catch (error) {
      if (asRekindleError(error).code === 'CONNECTION_LOST') this.lose(asRekindleError(error));
      throw error;
    }
  }

  onLost(listener: (error: RekindleError) => void): void {
    this.listeners.push(listener);
  }

  lose(error: RekindleError): void {
    if (!this.connected) return;
    this.connected = false;
    for (const listener of this.listeners) this.pool.process.deliver(() => listener(error));
  }

  close(): void {
    this.connected = false;
  }

  callBinary = (): Promise<Uint8Array> => Promise.reject(new Error('no binary calls'));
  connect = (): Promise<void> => Promise.reject(new Error('calls connect'));
  flush = (): void => undefined;
}

export class SimulatedLinkPool implements LinkPool {
  private readonly links = new Map<string, SimulatedLink>();

  constructor(
    readonly network: SimulatedNetwork,
    readonly process: SimulatedProcess,
    readonly peer: () => Peer,
  ) {}

  link(address: string, expectServerId: number | null = null): RpcLink {
    const key = `${address} ${expectServerId}`;
    const link = this.links.get(key) ?? new SimulatedLink(this, address, expectServerId);
    this.links.set(key, link);
    return link;
  }

  drop(address: string, expectServerId?: number): void {
    for (const [key, link] of this.links) {
      if (link.address !== address) continue;
      if (expectServerId === undefined || link.expectServerId === expectServerId)
        this.links.delete(key);
    }
  }

  lose(address: string, error: RekindleError): void {
    const { time } = this.process;
    for (const link of this.links.values()) {
      if (link.address === address) time.at(time.nowMs + 1, () => link.lose(error));
    }
  }

  close(): void {
    this.links.clear();
  }
}

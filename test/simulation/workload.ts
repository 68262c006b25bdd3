/**
 * Clients and operators of a simulated cluster: each does one operation after the other, repeats it
 * until there is an answer, and remembers what it was told. What was acknowledged is looked up in
 * the committed state at once, and at the end.
 */
import assert from 'node:assert/strict';
import type { CoordinatorState } from '../../src/coordinator/coordinator-state.js';
import { asRekindleError } from '../../src/rpc/errors.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../../src/rpc/table.js';
import { SimulatedCaller } from './simulated-caller.js';
import type { SimulatedNetwork } from './simulated-network.js';
import { SimulatedProcess } from './simulated-time.js';

export interface WorkloadWorld {
  readonly network: SimulatedNetwork;
  readonly coordinators: readonly string[];
  /** As committed last. */
  readonly state: CoordinatorState;
  /** Operations are no longer begun. */
  readonly over: boolean;
  broken(what: string): void;
}

/** Answers after which an operation has definitely come to nothing. */
const REFUSALS = new Set(['TABLE_NOT_FOUND', 'INVALID_ARGUMENT', 'RECOVERY_UNKNOWN']);
const SLOTS = 2 ** 32;

export class Workload {
  /** Operations that are under way. */
  open = 0;
  done = 0;
  private names = 0;
  private readonly process: SimulatedProcess;
  private readonly caller: SimulatedCaller;
  /** Tables that exist as far as is known, and what was told of them: nobody else's. */
  private readonly tables = new Map<string, number>();
  private readonly dropped = new Set<number>();
  private readonly losses = new Set<number>();

  constructor(
    private readonly world: WorkloadWorld,
    private readonly name: string,
  ) {
    const { network, coordinators } = world;
    this.process = new SimulatedProcess(network.time, name);
    const peer = () => ({ role: 'client' as const, serverId: null, remoteAddress: '' });
    const pool = network.pool(this.process, peer);
    this.caller = new SimulatedCaller(pool, this.process, coordinators);
    void this.run();
    void this.operate();
  }

  private async run(): Promise<void> {
    const { time } = this.process;
    for (;;) {
      await this.process.sleep(time.between(0, 300));
      if (this.world.over) break;
      this.open++;
      try {
        await this.operation();
      } catch (error) {
        const { code } = asRekindleError(error);
        if (!REFUSALS.has(code)) this.world.broken(`${this.name}: ${(error as Error).stack}`);
      }
      this.open--;
      this.done++;
    }
  }

  /** What is on no disk waits for somebody to say so; operations may wait for that. */
  private async operate(): Promise<void> {
    for (;;) {
      await this.process.sleep(1_000);
      if (!this.world.over) continue;
      await this.acceptLosses().catch((error: unknown) => {
        if (!REFUSALS.has(asRekindleError(error).code)) this.world.broken(String(error));
      });
    }
  }

  private operation(): Promise<void> {
    const { time } = this.process;
    const [table] = this.tables.keys();
    if (table === undefined || this.tables.size < 2) return this.create();
    const name = time.pick([...this.tables.keys()]);
    const dice = time.below(100);
    if (dice < 8) return this.create();
    if (dice < 16) return this.drop(name);
    if (dice < 36) return this.split(name);
    if (dice < 48) return this.merge(name);
    if (dice < 80) return this.migrate(name);
    if (dice < 88) return this.drain();
    return this.acceptLosses();
  }

  private call<K extends JsonRpcName>(name: K, request: RequestOf<K>): Promise<ReplyOf<K>> {
    return this.caller.call(name, request);
  }

  private async create(): Promise<void> {
    const { time } = this.process;
    const name = `${this.name}-${this.names++ % 4}`;
    if (this.tables.has(name)) return;
    const span = 1 + time.below(4);
    const { table } = await this.call('CREATE_TABLE', { operationId: this.id(), name, span });
    assert.ok(!this.dropped.has(table.tableId), 'a dropped table is not found again');
    assert.equal(this.world.state.tables.get(table.tableId)?.state, 'normal', 'created: visible');
    this.tables.set(name, table.tableId);
  }

  private async drop(name: string): Promise<void> {
    const tableId = this.tables.get(name) as number;
    const request = { operationId: this.id(), name };
    const { existed } = await this.call('DROP_TABLE', request);
    assert.ok(existed, `${name} was there`);
    this.dropped.add(tableId);
    this.tables.delete(name);
    assert.notEqual(this.world.state.tables.get(tableId)?.state, 'normal', 'dropped: gone');
    // A repeat that comes late does not hit another table of that name.
    if (!this.process.time.chance(0.5)) return;
    await this.create();
    const again = await this.call('DROP_TABLE', request);
    assert.ok(again.existed, 'a repeat is answered as the first was');
    this.check();
  }

  private async split(name: string): Promise<void> {
    const { time } = this.process;
    const slot = time.chance(0.5) ? 1 + time.below(SLOTS - 1) : null;
    const request = { operationId: this.id(), name, ...(slot === null ? {} : { slot }) };
    const { table } = await this.call('SPLIT_TABLET', request);
    assert.equal(table.tableId, this.tables.get(name));
    if (slot !== null)
      assert.ok(
        table.tablets.some(({ startSlot }) => startSlot === slot),
        'cut',
      );
  }

  private async merge(name: string): Promise<void> {
    const { table } = await this.call('MERGE_TABLETS', { name });
    assert.equal(table.tableId, this.tables.get(name));
  }

  private async migrate(name: string): Promise<void> {
    const { time } = this.process;
    const up = this.world.state.upServers();
    if (up.length === 0) return;
    const targetServerId = time.pick(up).serverId;
    const slot = time.below(SLOTS);
    await this.call('MIGRATE_TABLET', { name, slot, targetServerId });
  }

  private async drain(): Promise<void> {
    const up = this.world.state.upServers();
    if (up.length === 0) return;
    const { serverId, drain } = this.process.time.pick(up);
    await this.call('DRAIN_SERVER', { serverId, cancel: drain !== undefined });
  }

  /** What nobody will bring any more is given up. */
  private async acceptLosses(): Promise<void> {
    const { recoveries } = await this.call('GET_STATUS', {});
    for (const { crashedServerId: serverId, gap } of recoveries) {
      if (gap === null || gap.missing.length === 0) continue;
      const request = {
        ...{ serverId, head: false, segmentIds: gap.missing },
        ...{ operator: this.name, reason: 'simulated' },
      };
      const { loss } = await this.call('ACCEPT_LOSS', request);
      this.losses.add(loss.lossId);
      assert.ok(this.world.state.losses.has(loss.lossId), 'a loss is recorded');
    }
  }

  /** Nobody but this client touches its tables: all that it was told must still be true. */
  check(): void {
    const { state } = this.world;
    for (const [name, tableId] of this.tables) {
      const table = state.tables.get(tableId);
      assert.ok(table?.name === name && table.state === 'normal', `${name} is there`);
    }
    for (const tableId of this.dropped) {
      assert.notEqual(state.tables.get(tableId)?.state, 'normal', 'what was dropped stays so');
    }
    for (const lossId of this.losses) assert.ok(state.losses.has(lossId));
  }

  private id(): string {
    return `${this.name}/${this.done}/${this.process.time.below(2 ** 31)}`;
  }
}

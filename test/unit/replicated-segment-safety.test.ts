/**
 * Random histories of a master's log on backups that lose acknowledgements, fill up, break and
 * crash, with a recovery tried from a random choice of disks after every step.
 *
 * Safety: whatever a recovery calls complete covers everything that was called durable.
 * Ordering: a close only after the next head is open everywhere (I1), data of s+1 only after s was
 * closed everywhere (I3), a closed replica never changes (I4).
 * Liveness: once the faults end, everything appended becomes durable.
 */
import assert from 'node:assert/strict';
import test from 'node:test';
import { ReplicaManager, type ReplicaManagerEffect } from '../../src/master/replica-manager.js';
import type { SegmentWrite } from '../../src/master/replicated-segment.js';
import type { ServerList } from '../../src/rpc/messages.js';
import type { StatusCode } from '../../src/rpc/status.js';

const R = 3;
const openingBytes = 100;
const ownServerId = 1;

/** mulberry32: small, seeded, good enough to drive a test. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface DiskReplica {
  received: number;
  certified: number;
  epoch: number;
  closed: boolean;
}

interface Disk {
  serverId: number;
  alive: boolean;
  replicas: Map<number, DiskReplica>;
}

interface Segment {
  id: number;
  position: number;
  appended: number;
  closed: boolean;
  side: boolean;
}

class World {
  readonly random: () => number;
  readonly manager: ReplicaManager;
  readonly disks = new Map<number, Disk>();
  readonly segments: Segment[] = [];
  readonly heads: Segment[] = [];
  minOpen = { segmentId: 0, epoch: 0 };
  nowMs = 0;
  durable = 0;
  listVersion = 0;
  nextServerId = 2;
  faults = true;
  complete = 0;
  requests: SegmentWrite[] = [];
  answers: { write: SegmentWrite; code: StatusCode | null }[] = [];
  stores: { segmentId: number; epoch: number }[] = [];
  /** Segments that were closed on R disks at one moment. */
  readonly closedEverywhere = new Set<number>();
  /** Heads whose opening was certified on R disks at one moment. */
  readonly openedEverywhere = new Set<number>();

  constructor(seed: number) {
    this.random = randomFrom(seed);
    this.manager = new ReplicaManager({
      serverId: ownServerId,
      replicas: R,
      random: this.random,
      source: (segmentId, from, bytesMax) => {
        const segment = this.segment(segmentId);
        const end = from === 0 ? openingBytes : Math.min(from + bytesMax, segment.appended);
        return { end, checksum: end };
      },
    });
    for (let i = 0; i < 6; i += 1) this.addServer();
    this.pushList();
    this.openHead();
  }

  segment(id: number): Segment {
    const found = this.segments.find((segment) => segment.id === id);
    assert.ok(found);
    return found;
  }

  below(n: number): number {
    return Math.floor(this.random() * n);
  }

  addServer(): void {
    const serverId = this.nextServerId;
    this.nextServerId += 1;
    this.disks.set(serverId, { serverId, alive: true, replicas: new Map() });
  }

  pushList(): void {
    this.listVersion += 1;
    const entry = (serverId: number, host: string) => ({
      serverId,
      address: `${host}:1`,
      host,
      rack: null,
      master: true,
      backup: true,
      status: 'up' as const,
      memoryBytes: 1,
    });
    const alive = [...this.disks.values()].filter((disk) => disk.alive);
    const list: ServerList = {
      version: this.listVersion,
      clusterId: 'c',
      term: 1,
      replicas: R,
      durability: 'fsync',
      allowSameHost: false,
      servers: [
        entry(ownServerId, 'own'),
        ...alive.map((d) => entry(d.serverId, `h${d.serverId}`)),
      ],
    };
    this.perform(this.manager.step({ kind: 'serverList', list }, this.nowMs));
  }

  openHead(): void {
    const last = this.heads.at(-1);
    const segment: Segment = {
      id: this.segments.length + 1,
      position: last === undefined ? 0 : last.position + last.appended,
      appended: openingBytes,
      closed: false,
      side: false,
    };
    this.segments.push(segment);
    this.heads.push(segment);
    this.perform(
      this.manager.step(
        {
          kind: 'headOpened',
          segmentId: segment.id,
          position: segment.position,
          openingBytes,
        },
        this.nowMs,
      ),
    );
    if (last === undefined) return;
    last.closed = true;
    this.reportGrowth(last);
  }

  openSide(): void {
    const id = this.segments.length + 1;
    const segment = { id, position: -1, appended: openingBytes, closed: false, side: true };
    this.segments.push(segment);
    this.perform(
      this.manager.step({ kind: 'sideOpened', segmentId: id, openingBytes }, this.nowMs),
    );
    segment.appended += this.below(3_000_000);
    segment.closed = true;
    this.reportGrowth(segment);
  }

  append(): void {
    const head = this.heads.at(-1);
    assert.ok(head);
    head.appended += 1 + this.below(this.random() < 0.1 ? 3_000_000 : 2_000);
    this.reportGrowth(head);
  }

  reportGrowth(segment: Segment): void {
    const { id: segmentId, appended: appendedBytes, closed } = segment;
    this.perform(
      this.manager.step({ kind: 'extended', segmentId, appendedBytes, closed }, this.nowMs),
    );
  }

  perform(effects: ReplicaManagerEffect[]): void {
    for (const effect of effects) {
      if (effect.kind === 'send') this.requests.push(effect.write);
      else if (effect.kind === 'storeRecoveryInfo') this.stores.push(effect);
    }
    const durable = this.manager.durablePosition;
    assert.ok(durable >= this.durable, 'the durable position never goes back');
    this.durable = durable;
  }

  /** A backup takes a request; its answer may get lost. */
  deliver(write: SegmentWrite): void {
    const disk = this.disks.get(write.serverId);
    assert.ok(disk);
    if (!disk.alive) {
      this.answers.push({ write, code: 'CONNECTION_LOST' });
      return;
    }
    const code = this.store(disk, write);
    const lost = this.faults && this.random() < 0.1;
    this.answers.push({ write, code: lost ? 'TIMEOUT' : code });
  }

  store(disk: Disk, write: SegmentWrite): StatusCode | null {
    if (this.faults && write.open && this.random() < 0.1 && !disk.replicas.has(write.segmentId)) {
      return 'NO_FREE_FRAME';
    }
    if (this.faults && this.random() < 0.01) {
      return 'DISK_ERROR';
    }
    const segment = this.segment(write.segmentId);
    const index = this.heads.indexOf(segment);
    const preceding = index > 0 ? this.heads[index - 1] : undefined;
    if (preceding !== undefined && write.end > openingBytes) {
      assert.ok(this.closedEverywhere.has(preceding.id), 'I3: data only behind a closed segment');
    }
    let replica = disk.replicas.get(write.segmentId);
    if (replica === undefined) {
      if (!write.open) return 'REPLICA_UNKNOWN';
      replica = { received: 0, certified: 0, epoch: write.epoch, closed: false };
      disk.replicas.set(write.segmentId, replica);
    }
    if (replica.closed) {
      assert.ok(write.close && write.end === replica.certified, 'I4: a closed replica stays');
      return 'REPLICA_CLOSED';
    }
    assert.ok(write.offset <= replica.received, 'no gaps');
    assert.ok(write.epoch >= replica.epoch, 'epochs only grow');
    replica.received = Math.max(replica.received, write.end);
    replica.epoch = write.epoch;
    if (write.certified) replica.certified = Math.max(replica.certified, write.end);
    const holders = [...this.disks.values()].filter(
      (d) => (d.replicas.get(segment.id)?.certified ?? 0) >= openingBytes,
    );
    if (holders.length >= R) this.openedEverywhere.add(segment.id);
    if (write.close) {
      const following = segment.side ? undefined : this.heads[index + 1];
      assert.ok(
        segment.side || (following !== undefined && this.openedEverywhere.has(following.id)),
        'I1: a head is closed only when the next one is open everywhere',
      );
      assert.equal(write.end, segment.appended, 'a close carries everything');
      assert.ok(write.certified, 'a close is certified');
      replica.closed = true;
      const copies = [...this.disks.values()].filter((d) => d.replicas.get(segment.id)?.closed);
      if (copies.length >= R) this.closedEverywhere.add(segment.id);
    }
    return null;
  }

  answer(index: number): void {
    const [answer] = this.answers.splice(index, 1);
    if (answer === undefined) return;
    const { write, code } = answer;
    this.perform(
      this.manager.step(
        code === null ? { kind: 'acked', write } : { kind: 'failed', write, code },
        this.nowMs,
      ),
    );
  }

  storeRecoveryInfo(): void {
    const store = this.stores.shift();
    if (store === undefined) return;
    const { segmentId, epoch } = store;
    assert.ok(segmentId >= this.minOpen.segmentId, 'recovery info only grows');
    this.minOpen = { segmentId, epoch };
    this.perform(this.manager.step({ kind: 'recoveryInfoStored', segmentId, epoch }, this.nowMs));
  }

  crash(): void {
    const alive = [...this.disks.values()].filter((disk) => disk.alive);
    const victim = alive[this.below(alive.length)];
    if (victim === undefined) return;
    victim.alive = false;
    this.addServer();
  }

  step(): void {
    this.nowMs += 5 + this.below(30);
    const dice = this.random();
    if (dice < 0.25) this.append();
    else if (dice < 0.28) this.openHead();
    else if (dice < 0.285) this.openSide();
    else if (dice < 0.295 && this.faults) this.crash();
    else if (dice < 0.33) this.pushList();
    else if (dice < 0.37) this.storeRecoveryInfo();
    else if (dice < 0.68 && this.requests.length > 0) {
      const [write] = this.requests.splice(this.below(this.requests.length), 1);
      if (write !== undefined) this.deliver(write);
    } else this.answer(this.below(Math.max(1, this.answers.length)));
    this.perform(this.manager.step({ kind: 'tick' }, this.nowMs));
  }

  /** originals 2(b) with whatever disks happen to be there; null: the log is not complete. */
  recoveredPosition(disks: Disk[]): number | null {
    const { minOpen } = this;
    const valid = (id: number, replica: DiskReplica): boolean =>
      replica.closed ||
      (replica.certified > 0 &&
        (id > minOpen.segmentId || (id === minOpen.segmentId && replica.epoch >= minOpen.epoch)));
    const copies = (id: number): DiskReplica[] =>
      disks.flatMap((disk) => {
        const replica = disk.replicas.get(id);
        return replica !== undefined && valid(id, replica) ? [replica] : [];
      });
    const head = this.heads.find(({ id }) => copies(id).some((replica) => !replica.closed));
    if (head === undefined) return null;
    for (const { id } of this.heads) {
      if (id >= head.id) break;
      if (!copies(id).some((replica) => replica.closed)) return null;
    }
    const best = copies(head.id).sort(
      (a, b) =>
        Number(b.closed) - Number(a.closed) || b.epoch - a.epoch || b.certified - a.certified,
    )[0];
    return best === undefined ? null : head.position + best.certified;
  }

  checkRecovery(): void {
    const disks = [...this.disks.values()].filter(() => this.random() < 0.5);
    const position = this.recoveredPosition(disks);
    if (position === null) return;
    this.complete += 1;
    assert.ok(position >= this.durable, `recovered ${position} of ${this.durable} durable bytes`);
  }

  checkSides(): void {
    for (const { id, side } of this.segments) {
      if (!side || this.manager.segment(id)?.closeCommitted !== true) continue;
      assert.ok(this.closedEverywhere.has(id), 'a replicated side segment is closed on R disks');
    }
  }

  /** No more faults: everything must become durable within a bounded number of steps. */
  settle(): void {
    this.faults = false;
    const last = this.heads.at(-1);
    assert.ok(last);
    const end = (): number => last.position + last.appended;
    for (let round = 0; round < 20_000 && this.durable < end(); round += 1) {
      this.nowMs += 20;
      if (round % 50 === 0) this.pushList();
      for (const write of this.requests.splice(0)) this.deliver(write);
      while (this.answers.length > 0) this.answer(0);
      this.storeRecoveryInfo();
      this.perform(this.manager.step({ kind: 'tick' }, this.nowMs));
    }
    assert.equal(this.durable, end(), 'everything appended becomes durable');
  }
}

test('a complete recovery covers every durable byte, in random histories', () => {
  const fixed = process.env.REKINDLE_SEED;
  const first = fixed === undefined ? Date.now() % 1_000_000 : Number(fixed);
  const runs = fixed === undefined ? 60 : 1;
  let complete = 0;
  let durable = 0;
  for (let seed = first; seed < first + runs; seed += 1) {
    const world = new World(seed);
    try {
      for (let step = 0; step < 1_500; step += 1) {
        world.step();
        world.checkRecovery();
        if (step % 50 === 0) world.checkSides();
      }
      world.settle();
      world.checkSides();
    } catch (error) {
      console.error(`repeat: REKINDLE_SEED=${seed} node --test ${import.meta.filename}`);
      throw error;
    }
    complete += world.complete;
    durable += world.durable;
  }
  // A test that never recovers anything would prove nothing.
  assert.ok(complete > runs, 'recoveries were complete at times');
  assert.ok(durable > 0);
});

test('a backup that the list does not know yet is told to keep everything', () => {
  const world = new World(1);
  world.faults = false;
  world.settle();
  world.openHead();
  world.settle();
  const segment = world.manager.segment(1);
  assert.ok(segment?.synced);
  // A backup restarts under a new id: the master still counts what its former id held.
  world.addServer();
  const newcomer = world.nextServerId - 1;
  assert.deepEqual(world.manager.neededReplicas(newcomer, [1]), [1]);
  world.pushList();
  assert.deepEqual(world.manager.neededReplicas(newcomer, [1]), []);
});

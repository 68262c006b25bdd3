/**
 * A log on backups that lose acknowledgements, fill up, break, crash and are drained, drawn
 * from a seed: heads, side segments, cleaning passes and compactions, with a recovery tried from a
 * random choice of disks. Replicas are lengths and generations of content, no bytes. A backup that
 * lost a segment forgets it when it is told to, and may be chosen for it again; what a failing disk
 * did not free comes back when the backup restarts.
 *
 * Safety: whatever a recovery calls complete covers everything that was called durable: each head,
 * and each side segment that a durable digest has named, itself or in a survivor of its cleaning.
 * Ordering: a close only after the next head is open everywhere (I1), data of s+1 only after s was
 * closed everywhere (I3), a closed replica never changes (I4), a replica has one content.
 * Leases: once some disks are fenced with which a recovery is complete, the master never again has
 * a set of lease holders without one of them.
 * Liveness: once the faults end, all becomes durable, passes end, drained backups have nothing.
 */
import assert from 'node:assert/strict';
import {
  ReplicaManager,
  type ReplicaManagerEffect,
  type ReplicaManagerEvent,
} from '../../src/master/replica-manager.js';
import type { SegmentWrite } from '../../src/master/replicated-segment.js';
import type { ServerList } from '../../src/rpc/messages.js';
import type { StatusCode } from '../../src/rpc/status.js';
import {
  byRank,
  contentBytes,
  type Disk,
  type DiskReplica,
  ended,
  findOn,
  newDisk,
  openingBytes,
  type Pass,
  randomFrom,
  type Segment,
} from './replicated-log-disk.js';

const R = 3;
const ownServerId = 1;
/** A checksum names the generation of the content and the end: what a disk can tell apart. */
const generationStep = 2 ** 32;

export class World {
  readonly random: () => number;
  readonly manager: ReplicaManager;
  readonly disks = new Map<number, Disk>();
  readonly segments = new Map<number, Segment>();
  readonly heads: Segment[] = [];
  /** What the next digest names. */
  readonly log = new Set<number>();
  passes: Pass[] = [];
  passesEnded = 0;
  compactions = 0;
  /** Side segments that a durable digest has named. */
  readonly sidesNeeded = new Set<number>();
  readonly unpins = new Set<number>();
  minOpen = { segmentId: 0, epoch: 0 };
  nowMs = 0;
  durable = 0;
  listVersion = 0;
  nextServerId = 2;
  faults = true;
  complete = 0;
  /** Null: the master is not being recovered. */
  fenced: ReadonlySet<number> | null = null;
  requests: SegmentWrite[] = [];
  answers: { write: SegmentWrite; code: StatusCode | null }[] = [];
  stores: { segmentId: number; epoch: number }[] = [];
  /** BACKUP_FREEs of lost replicas that are under way. */
  losses: { segmentId: number; serverId: number }[] = [];
  reused = 0;
  left = 0;
  /** The head that the manager wants to be followed by another one. */
  rollWanted = 0;
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
        assert.ok(!segment.freed, 'nothing is read from memory that was given back');
        if (from === 0) segment.pinned = true;
        assert.ok(segment.pinned, 'only a pinned segment is read');
        const segmentBytes = segment.closed ? contentBytes(segment) : segment.appended;
        const end = from === 0 ? openingBytes : Math.min(from + bytesMax, segmentBytes);
        const checksum = (segment.lengths.length - 1) * generationStep + end;
        return { end, checksum, segmentBytes };
      },
    });
    for (let i = 0; i < 6; i += 1) this.addServer();
    this.pushList();
    this.openHead();
  }

  segment(id: number): Segment {
    const found = this.segments.get(id);
    assert.ok(found);
    return found;
  }

  newSegment(side: boolean, position: number): Segment {
    const segment: Segment = {
      id: this.segments.size + 1,
      position,
      appended: openingBytes,
      closed: false,
      side,
      lengths: [openingBytes],
      pinned: true,
      freed: false,
      items: new Set(),
      digest: [],
    };
    segment.items.add(segment.id);
    this.segments.set(segment.id, segment);
    return segment;
  }

  below(n: number): number {
    return Math.floor(this.random() * n);
  }

  addServer(): void {
    const serverId = this.nextServerId;
    this.nextServerId += 1;
    this.disks.set(serverId, newDisk(serverId));
  }

  pushList(): void {
    // The next list would not have the master any more; an older one may still be on its way.
    if (this.fenced !== null && this.random() < 0.9) return;
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
      copysets: [],
      servers: [
        entry(ownServerId, 'own'),
        ...alive.map((d) => ({
          ...entry(d.serverId, `h${d.serverId}`),
          ...(d.draining ? { draining: true as const } : {}),
        })),
      ],
    };
    this.perform(this.manager.step([{ kind: 'serverList', list }], this.nowMs));
  }

  openHead(): void {
    const last = this.heads.at(-1);
    const segment = this.newSegment(false, last === undefined ? 0 : last.position + last.appended);
    this.heads.push(segment);
    this.log.add(segment.id);
    for (const pass of this.passes) {
      if (pass.state !== 'committed') continue;
      pass.state = 'inDigest';
      pass.position = segment.position + openingBytes;
      this.log.add(pass.survivor.id);
      for (const { id } of pass.cleaned) this.log.delete(id);
    }
    segment.digest = [...this.log].sort((a, b) => a - b);
    const { id: segmentId, position } = segment;
    this.apply({ kind: 'headOpened', segmentId, position, openingBytes });
    if (last === undefined) return;
    this.close(last);
  }

  close(segment: Segment): void {
    segment.closed = true;
    segment.lengths = [segment.appended];
    this.reportGrowth(segment);
  }

  /** A pass of the cleaner; without segments to clean it is the side segment of a recovery. */
  startPass(cleaned: Segment[]): void {
    const survivor = this.newSegment(true, -1);
    this.apply({ kind: 'sideOpened', segmentId: survivor.id, openingBytes });
    survivor.appended += this.below(3_000_000);
    for (const { items } of cleaned) for (const item of items) survivor.items.add(item);
    this.passes.push({ survivor, cleaned, state: 'replicating', position: 0, frees: [] });
    this.close(survivor);
  }

  clean(): void {
    const busy = new Set(this.passes.flatMap(({ cleaned }) => cleaned));
    const candidates = [...this.log]
      .map((id) => this.segment(id))
      .filter((segment) => segment.closed && !busy.has(segment));
    const cleaned: Segment[] = [];
    for (let wanted = 1 + this.below(4); wanted > 0 && candidates.length > 0; wanted -= 1) {
      cleaned.push(...candidates.splice(this.below(candidates.length), 1));
    }
    if (cleaned.length > 0) this.startPass(cleaned);
  }

  /** What the cleaner driver does, without its waits. */
  advancePasses(): void {
    for (const pass of this.passes) {
      const { survivor, cleaned } = pass;
      const replicated = this.manager.segment(survivor.id);
      assert.ok(replicated, 'a survivor is known while its pass runs');
      if (pass.state === 'replicating' && replicated.closeCommitted) pass.state = 'committed';
      if (pass.state === 'inDigest' && this.durable >= pass.position) {
        if (replicated.lostOpenReplica) {
          const head = this.manager.firstOpenHead;
          assert.ok(head);
          this.raiseMinOpen({ segmentId: head.segmentId, epoch: 0 });
        }
        if (cleaned.length === 0) this.sidesNeeded.add(survivor.id);
        for (const { id } of cleaned) this.release(id, pass);
        pass.state = 'draining';
      }
      const quiet = cleaned.every(({ id }) => !this.writesUnderWay(id));
      if (pass.state === 'draining' && quiet) this.endPass(pass);
    }
    this.passes = this.passes.filter((pass) => pass.state !== 'draining' || !ended(pass));
  }

  release(segmentId: number, pass: Pass): void {
    this.unpins.delete(segmentId);
    this.apply({ kind: 'released', segmentId }, pass.frees);
  }

  endPass(pass: Pass): void {
    for (const segment of pass.cleaned) segment.freed = true;
    for (const { serverId, segmentId } of pass.frees) {
      // A backup may be dead, or deaf: what it keeps must do no harm.
      const disk = this.disks.get(serverId);
      if (disk?.alive === true && this.random() < 0.9) disk.replicas.delete(segmentId);
    }
    this.passesEnded += 1;
    pass.frees = [];
    pass.cleaned = [];
    pass.position = -1;
  }

  writesUnderWay(segmentId: number): boolean {
    return (
      this.requests.some((write) => write.segmentId === segmentId) ||
      this.answers.some(({ write }) => write.segmentId === segmentId)
    );
  }

  unpinQuiet(): void {
    for (const id of this.unpins) {
      if (this.writesUnderWay(id)) continue;
      this.unpins.delete(id);
      if (this.manager.segment(id)?.synced === true) this.segment(id).pinned = false;
    }
  }

  compact(): void {
    const loose = [...this.segments.values()].filter(({ pinned, freed }) => !pinned && !freed);
    const segment = loose[this.below(loose.length)];
    if (segment === undefined) return;
    const bytes = contentBytes(segment) - openingBytes;
    segment.lengths.push(openingBytes + this.below(bytes + 1));
    this.compactions += 1;
  }

  append(): void {
    const head = this.heads.at(-1);
    assert.ok(head);
    head.appended += 1 + this.below(this.random() < 0.1 ? 3_000_000 : 2_000);
    this.reportGrowth(head);
  }

  reportGrowth(segment: Segment): void {
    const { id: segmentId, appended: appendedBytes, closed } = segment;
    this.apply({ kind: 'extended', segmentId, appendedBytes, closed });
  }

  apply(event: ReplicaManagerEvent, frees = this.losses): void {
    this.perform(this.manager.step([event], this.nowMs), frees);
  }

  perform(effects: ReplicaManagerEffect[], frees = this.losses): void {
    for (const effect of effects) {
      if (effect.kind === 'send') this.requests.push(effect.write);
      else if (effect.kind === 'storeRecoveryInfo') this.stores.push(effect);
      else if (effect.kind === 'free') frees.push(effect);
      else if (effect.kind === 'unpin') this.unpins.add(effect.segmentId);
      else if (effect.kind === 'rollHead') this.rollWanted = effect.segmentId;
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
    const code = this.fenced?.has(disk.serverId) ? 'FENCED' : this.store(disk, write);
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
      const { epoch } = write;
      replica = {
        received: 0,
        certified: 0,
        epoch,
        closed: false,
        generation: null,
        rotten: false,
      };
      disk.replicas.set(write.segmentId, replica);
      if (disk.unfreed.has(write.segmentId)) this.reused += 1;
    }
    if (replica.closed) {
      assert.ok(write.close && write.end === replica.certified, 'I4: a closed replica stays');
      return 'REPLICA_CLOSED';
    }
    assert.ok(write.offset <= replica.received, 'no gaps');
    assert.ok(write.epoch >= replica.epoch, 'epochs only grow');
    if (write.end > 0) {
      const generation = Math.floor(write.checksum / generationStep);
      assert.ok(replica.generation === null || replica.generation === generation, 'one content');
      replica.generation = generation;
    }
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
      assert.equal(write.end, segment.lengths[replica.generation ?? -1], 'a close is whole');
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
        [code === null ? { kind: 'acked', write } : { kind: 'failed', write, code }],
        this.nowMs,
      ),
    );
  }

  /**
   * A backup is told to free what it lost, on the connection on which it was written to: what was
   * sent before comes before. Its disk may keep it. The answer may never come.
   */
  freeLost(): void {
    const [loss] = this.losses.splice(this.below(this.losses.length), 1);
    if (loss === undefined) return;
    const { segmentId, serverId } = loss;
    const disk = this.disks.get(serverId);
    if (disk?.alive !== true) return;
    const sentBefore = (write: SegmentWrite): boolean =>
      write.segmentId === segmentId && write.serverId === serverId;
    for (const write of this.requests.filter(sentBefore)) this.deliver(write);
    this.requests = this.requests.filter((write) => !sentBefore(write));
    const replica = disk.replicas.get(segmentId);
    disk.replicas.delete(segmentId);
    if (replica !== undefined && this.random() < 0.5) {
      disk.unfreed.set(segmentId, [...(disk.unfreed.get(segmentId) ?? []), replica]);
    }
    if (disk.draining && replica?.closed === true) this.left += 1;
    this.apply({ kind: 'freed', segmentId, serverId });
  }

  /** The scrub of a backup finds a damaged replica. */
  rot(): void {
    const alive = [...this.disks.values()].filter((disk) => disk.alive);
    const disk = alive[this.below(alive.length)];
    const closed = [...(disk?.replicas ?? [])].filter(([, replica]) => replica.closed);
    const [segmentId, replica] = closed[this.below(closed.length)] ?? [];
    if (disk === undefined || segmentId === undefined || replica === undefined) return;
    replica.rotten = true;
    this.apply({ kind: 'rotten', segmentId, serverId: disk.serverId });
  }

  /** At most two at a time: the others can take what they have. */
  drain(): void {
    const alive = [...this.disks.values()].filter((disk) => disk.alive);
    const draining = alive.filter((disk) => disk.draining);
    const disk = draining.length < 2 ? alive[this.below(alive.length)] : draining[this.below(2)];
    if (disk !== undefined) disk.draining = !disk.draining;
  }

  rollHead(): void {
    if (this.rollWanted === this.heads.at(-1)?.id) this.openHead();
  }

  /** What the log still has on backups that are drained. */
  onDraining(): number {
    const draining = [...this.disks.values()].filter((disk) => disk.alive && disk.draining);
    return draining.reduce((n, d) => n + this.manager.replicasOn(d.serverId).replicas, 0);
  }

  storeRecoveryInfo(): void {
    const store = this.stores.shift();
    if (store === undefined) return;
    const { segmentId, epoch } = store;
    // The coordinator takes nothing more from a server that is not up.
    if (this.fenced !== null) return;
    this.raiseMinOpen({ segmentId, epoch });
    this.apply({ kind: 'recoveryInfoStored', segmentId, epoch });
  }

  raiseMinOpen(to: { segmentId: number; epoch: number }): void {
    const { segmentId, epoch } = this.minOpen;
    if (to.segmentId > segmentId || (to.segmentId === segmentId && to.epoch > epoch)) {
      this.minOpen = to;
    }
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
    else if (dice < 0.285) this.startPass([]);
    else if (dice < 0.288) this.clean();
    else if (dice < 0.291) this.compact();
    else if (dice < 0.3 && this.faults) this.crash();
    else if (dice < 0.304 && this.faults) this.rot();
    else if (dice < 0.306 && this.faults) this.drain();
    else if (dice < 0.315) this.freeLost();
    else if (dice < 0.33) this.pushList();
    else if (dice < 0.37) this.storeRecoveryInfo();
    else if (dice < 0.68 && this.requests.length > 0) {
      const [write] = this.requests.splice(this.below(this.requests.length), 1);
      if (write !== undefined) this.deliver(write);
    } else this.answer(this.below(Math.max(1, this.answers.length)));
    this.apply({ kind: 'tick' });
    if (this.random() < 0.5) this.rollHead();
    this.advancePasses();
    this.unpinQuiet();
  }

  /** docs/recovery.md, phase 2, with these disks; null: the log is not complete. */
  recover(disks: Disk[]): { items: Set<number>; position: number; headId: number } | null {
    const { minOpen } = this;
    const valid = (id: number, replica: DiskReplica): boolean =>
      replica.closed ||
      (replica.certified > 0 &&
        (id > minOpen.segmentId || (id === minOpen.segmentId && replica.epoch >= minOpen.epoch)));
    const restarted = new Set(disks.filter(() => this.random() < 0.5));
    const copies = (id: number): DiskReplica[] =>
      disks.flatMap((disk) => {
        const replica = findOn(disk, id, restarted.has(disk));
        return replica !== undefined && valid(id, replica) ? [replica] : [];
      });
    const head = this.heads.find(({ id }) => {
      const present = copies(id);
      return present.length > 0 && present.every((replica) => !replica.closed);
    });
    if (head === undefined) return null;
    const chosen = head.digest.map((id) => {
      const [best] = copies(id).sort(byRank);
      return { segment: this.segment(id), best };
    });
    const items = new Set<number>();
    let position = 0;
    const running = this.passes.filter(({ state }) => state !== 'draining');
    const waiting = new Set(running.map(({ survivor }) => survivor));
    for (const { segment, best } of chosen) {
      if (best === undefined) return null;
      if (segment === head) {
        position = head.position + best.certified;
        continue;
      }
      const whole = best.certified === segment.lengths[best.generation ?? -1];
      // Until its pass has forbidden them, short copies count if all R whole ones are lost.
      if (!whole && waiting.has(segment)) return null;
      assert.ok(whole, 'no short copy counts');
      for (const item of segment.items) items.add(item);
    }
    return { items, position, headId: head.id };
  }

  checkRecovery(disks = [...this.disks.values()].filter(() => this.random() < 0.5)): boolean {
    const found = this.recover(disks);
    if (found === null) return false;
    this.complete += 1;
    const { items, position, headId } = found;
    assert.ok(position >= this.durable, `recovered ${position} of ${this.durable} durable bytes`);
    for (const { id } of this.heads) {
      assert.ok(id >= headId || items.has(id), `the entries of head ${id} are recovered`);
    }
    for (const id of this.sidesNeeded) {
      assert.ok(items.has(id), `the entries of side segment ${id} are recovered`);
    }
    return true;
  }

  checkSides(): void {
    for (const { id, side } of this.segments.values()) {
      if (!side || this.manager.segment(id)?.closeCommitted !== true) continue;
      assert.ok(this.closedEverywhere.has(id), 'a replicated side segment is closed on R disks');
    }
  }

  /** The manager remembers what is in the log, and nothing else. */
  checkForgotten(): void {
    const { replicatedSegments } = this.manager.counters();
    assert.equal(replicatedSegments, this.log.size, 'cleaned segments are forgotten');
  }

  /** No more faults: everything must become durable within a bounded number of steps. */
  settle(): void {
    this.faults = false;
    this.openHead();
    const end = (): number => {
      const { position = 0, appended = 0 } = this.heads.at(-1) ?? {};
      return position + appended;
    };
    const done = (): boolean =>
      this.durable >= end() &&
      this.passes.length === 0 &&
      this.unpins.size === 0 &&
      this.onDraining() === 0;
    for (let round = 0; round < 20_000 && !done(); round += 1) {
      this.nowMs += 20;
      if (round % 50 === 0) this.pushList();
      for (const write of this.requests.splice(0)) this.deliver(write);
      while (this.answers.length > 0) this.answer(0);
      this.storeRecoveryInfo();
      while (this.losses.length > 0) this.freeLost();
      this.apply({ kind: 'tick' });
      this.rollHead();
      this.advancePasses();
      if (this.passes.some(({ state }) => state === 'committed')) this.openHead();
      this.unpinQuiet();
    }
    assert.equal(this.durable, end(), 'all appended is durable');
    assert.equal(this.onDraining(), 0, 'nothing is left on backups that are drained');
    assert.deepEqual(this.passes, [], 'every pass ends');
  }
}

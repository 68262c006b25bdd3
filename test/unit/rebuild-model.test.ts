/**
 * Random lives of a cluster, with writes, migrations, crashes, attempts of recoveries that fail and
 * logs that end anywhere behind what was acknowledged: whoever the notes name as the owner of a
 * slot has all that was acknowledged for it. Notes are written by the code that masters use, and
 * read by the code that rebuilds; what a log holds of a slot is the number of its newest write.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { rebuildTables } from '../../src/coordinator/rebuild-tables.js';
import { OwnershipNotes } from '../../src/master/ownership-notes.js';
import { parseNotes, type TabletClaim } from '../../src/ops/log-notes.js';

const UNITS = 4;
const UNIT_SLOTS = 2 ** 32 / UNITS;
const RUNS = 2_000;
const STEPS = 80;
const MASTERS = 5;

type Entry = { key: string; value: string } | { unit: number; write: number };

function generator(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

class Log {
  readonly entries: Entry[] = [];
  /** Entries that are on backups. */
  durable = 0;
  readonly notes = new OwnershipNotes({
    note: (key, value) => void this.entries.push({ key, value }),
  });

  flush(): void {
    this.durable = this.entries.length;
  }

  /** The newest write of a unit among the first entries. */
  newest(unit: number, end: number): number {
    let newest = 0;
    for (const entry of this.entries.slice(0, end)) {
      if ('unit' in entry && entry.unit === unit) newest = Math.max(newest, entry.write);
    }
    return newest;
  }

  claims(end: number): TabletClaim[] {
    const notes = new Map<string, string>();
    for (const entry of this.entries.slice(0, end)) {
      if ('unit' in entry) continue;
      if (entry.value === '') notes.delete(entry.key);
      else notes.set(entry.key, entry.value);
    }
    return parseNotes(Object.fromEntries(notes)).claims;
  }
}

interface Move {
  id: number;
  unit: number;
  source: number;
  target: number;
  state: 'running' | 'prepared' | 'committed' | 'aborting';
}

interface Attempt {
  master: number;
  unit: number;
}

class World {
  readonly #random: (below: number) => number;
  readonly logs = new Map<number, Log>();
  readonly #alive = new Set<number>();
  readonly #owner: number[] = [];
  /** Dead owners of units, and the recovery that is to give these away. */
  readonly #recoveries = new Map<number, { id: number; generation: number }>();
  /** What refused attempts have not taken back yet. */
  readonly #refused: Attempt[] = [];
  readonly acknowledged: number[] = new Array(UNITS).fill(0);
  #move: Move | null = null;
  #nextMaster = 1;
  #nextId = 1;
  #write = 0;

  constructor(seed: number) {
    this.#random = generator(seed);
    for (let i = 0; i < MASTERS; i += 1) this.#join();
    for (let unit = 0; unit < UNITS; unit += 1) {
      const owner = this.#anyone();
      this.#owner.push(owner);
      // Two neighbours of one owner may be one tablet.
      this.#log(owner).notes.claim([this.#claim(unit, 0, 0)]);
      this.#log(owner).flush();
    }
  }

  #join(): void {
    const master = this.#nextMaster++;
    this.logs.set(master, new Log());
    this.#alive.add(master);
  }

  #anyone(): number {
    const all = [...this.#alive];
    return all[this.#random(all.length)] ?? 0;
  }

  #log(master: number): Log {
    const log = this.logs.get(master);
    assert.ok(log !== undefined);
    return log;
  }

  #range(unit: number): { tableId: number; startSlot: number; endSlot: number } {
    return { tableId: 1, startSlot: unit * UNIT_SLOTS, endSlot: (unit + 1) * UNIT_SLOTS - 1 };
  }

  #claim(
    unit: number,
    ownershipId: number,
    generation: number,
    after: TabletClaim['after'] = null,
  ): TabletClaim {
    return { ...this.#range(unit), name: 't', ctimeSegmentId: 0, ownershipId, generation, after };
  }

  step(): void {
    const steps = [
      () => this.#writeSome(),
      () => this.#writeSome(),
      () => this.#log(this.#anyone()).flush(),
      () => this.#migrate(),
      () => this.#migrate(),
      () => this.#crash(),
      () => this.#recover(),
      () => this.#recover(),
      () => this.#takeBack(),
    ];
    steps[this.#random(steps.length)]?.();
  }

  #frozen(unit: number): boolean {
    return this.#move?.unit === unit && this.#move.state !== 'running';
  }

  #writeSome(): void {
    const unit = this.#random(UNITS);
    const owner = this.#owner[unit] ?? 0;
    if (!this.#alive.has(owner) || this.#frozen(unit)) return;
    const log = this.#log(owner);
    log.entries.push({ unit, write: ++this.#write });
    if (this.#random(2) === 0) return;
    log.flush();
    this.acknowledged[unit] = this.#write;
  }

  #migrate(): void {
    const move = this.#move;
    if (move === null) {
      const unit = this.#random(UNITS);
      const [source, target] = [this.#owner[unit] ?? 0, this.#anyone()];
      if (!this.#alive.has(source) || target === source) return;
      this.#move = { id: this.#nextId++, unit, source, target, state: 'running' };
    } else if (move.state === 'running') {
      // Frozen, and durable at the source before the answers go to the target.
      const [source, target] = [this.#log(move.source), this.#log(move.target)];
      source.flush();
      target.entries.push({ unit: move.unit, write: source.newest(move.unit, source.durable) });
      const [has] = source.notes.within(this.#range(move.unit));
      assert.ok(has !== undefined, 'the source has it');
      const after = { ownershipId: has.ownershipId, generation: has.generation };
      target.notes.claim([this.#claim(move.unit, move.id, 0, after)]);
      move.state = 'prepared';
    } else if (move.state === 'prepared') {
      const target = this.#log(move.target);
      target.flush();
      if (this.#random(3) === 0) move.state = 'aborting';
      else {
        this.#owner[move.unit] = move.target;
        move.state = 'committed';
        target.notes.claim([this.#claim(move.unit, move.id, 0)]);
      }
    } else this.#endMove(move);
  }

  #endMove({ state, source, target, unit }: Move): void {
    const loser = state === 'committed' ? source : target;
    if (this.#alive.has(loser)) this.#log(loser).notes.forget(this.#range(unit));
    this.#move = null;
  }

  #crash(): void {
    if (this.#alive.size < 3) return;
    const dead = this.#anyone();
    this.#alive.delete(dead);
    const move = this.#move;
    if (move?.source === dead || move?.target === dead) {
      if (move.state !== 'committed') move.state = 'aborting';
      this.#endMove(move);
    }
    // What was not durable is gone with it.
    const log = this.#log(dead);
    log.entries.length = log.durable;
    if (this.#owner.includes(dead)) {
      this.#recoveries.set(dead, { id: this.#nextId++, generation: 0 });
    } else this.logs.delete(dead);
    this.#join();
  }

  /** One attempt for one unit; it is refused, or another one is made before it asks. */
  #recover(): void {
    const [dead, recovery] = [...this.#recoveries][0] ?? [];
    if (dead === undefined || recovery === undefined) return;
    const unit = this.#owner.indexOf(dead);
    const master = this.#anyone();
    const [old, log] = [this.#log(dead), this.#log(master)];
    recovery.generation += 1;
    log.entries.push({ unit, write: old.newest(unit, old.durable) });
    log.notes.claim([this.#claim(unit, recovery.id, recovery.generation)]);
    if (this.#random(3) === 0) {
      if (this.#random(2) === 0) log.flush();
      this.#refused.push({ master, unit });
      return;
    }
    log.flush();
    this.#owner[unit] = master;
    if (this.#owner.includes(dead)) return;
    this.#recoveries.delete(dead);
    this.logs.delete(dead);
  }

  #takeBack(): void {
    const attempt = this.#refused.shift();
    if (attempt === undefined || !this.#alive.has(attempt.master)) return;
    // It has the tablet by another attempt meanwhile.
    if (this.#owner[attempt.unit] === attempt.master) return;
    if (this.#move?.target === attempt.master && this.#move.unit === attempt.unit) return;
    this.#log(attempt.master).notes.forget(this.#range(attempt.unit));
  }

  /** All processes end: each log ends somewhere behind what is durable. */
  check(): void {
    const ends = new Map(
      [...this.logs].map(([master, { durable, entries }]) => [
        master,
        durable + this.#random(entries.length - durable + 1),
      ]),
    );
    const claims = [...this.logs].flatMap(([serverId, log]) =>
      log.claims(ends.get(serverId) ?? 0).map((claim) => ({ ...claim, serverId })),
    );
    const { tables, holes } = rebuildTables(claims, 99_999);
    assert.deepEqual(holes, []);
    for (let unit = 0; unit < UNITS; unit += 1) {
      const { startSlot } = this.#range(unit);
      const tablets = tables[0]?.tablets ?? [];
      const found = tablets.find((one) => one.startSlot <= startSlot && startSlot <= one.endSlot);
      const master = found?.serverId ?? 0;
      const has = this.#log(master).newest(unit, ends.get(master) ?? 0);
      const wanted = this.acknowledged[unit] ?? 0;
      assert.ok(has >= wanted, `master ${master} has write ${has} of unit ${unit}, not ${wanted}`);
    }
  }
}

test('the owner that the notes name has every acknowledged write', () => {
  const start = Number(process.env.REKINDLE_SEED ?? Date.now() % 2 ** 31);
  for (let run = 0; run < RUNS; run += 1) {
    const world = new World(start + run);
    try {
      for (let step = 0; step < STEPS; step += 1) {
        world.step();
        if (step % 8 === 0) world.check();
      }
      world.check();
    } catch (error) {
      throw new Error(`REKINDLE_SEED=${start + run}`, { cause: error });
    }
  }
});

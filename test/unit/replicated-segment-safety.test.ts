/** Random histories of a replicated log (replicated-log-world.ts), judged after every step. */
import assert from 'node:assert/strict';
import test from 'node:test';
import { checkLeaseHolders, fence, stepFenced } from './replicated-log-fence.js';
import { World } from './replicated-log-world.js';

test('a complete recovery covers every durable byte, in random histories', () => {
  const fixed = process.env.REKINDLE_SEED;
  const first = fixed === undefined ? Date.now() % 1_000_000 : Number(fixed);
  const runs = fixed === undefined ? 60 : 1;
  const sums = { complete: 0, durable: 0, passes: 0, compactions: 0, reused: 0, left: 0 };
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
      world.checkForgotten();
      assert.ok(world.checkRecovery([...world.disks.values()]), 'all disks hold the log');
    } catch (error) {
      console.error(`repeat: REKINDLE_SEED=${seed} node --test ${import.meta.filename}`);
      throw error;
    }
    sums.complete += world.complete;
    sums.durable += world.durable;
    sums.passes += world.passesEnded;
    sums.compactions += world.compactions;
    sums.reused += world.reused;
    sums.left += world.left;
  }
  if (fixed !== undefined) return;
  // A test that never recovers or cleans anything would prove nothing.
  assert.ok(sums.complete > runs, 'recoveries were complete at times');
  assert.ok(sums.durable > 0);
  assert.ok(sums.passes > runs, 'segments were cleaned');
  assert.ok(sums.compactions > runs, 'segments were compacted');
  assert.ok(sums.reused > 0, 'backups took segments again that they had lost');
  assert.ok(sums.left > runs, 'segments left backups that were drained');
});

test('a recovery that is complete has fenced one of the lease holders, for ever', () => {
  const fixed = process.env.REKINDLE_SEED;
  const first = fixed === undefined ? Date.now() % 1_000_000 : Number(fixed);
  const runs = fixed === undefined ? 200 : 1;
  let [fences, holding] = [0, 0];
  for (let seed = first; seed < first + runs; seed += 1) {
    const world = new World(seed);
    try {
      for (let step = 0; step < 800 && world.fenced === null; step += 1) {
        world.step();
        const chosen = [...world.disks.values()].filter(() => world.random() < 0.4);
        if (step > 100 && world.random() < 0.05) fence(world, chosen);
      }
      if (world.fenced === null) continue;
      fences += 1;
      for (let step = 0; step < 300; step += 1) {
        stepFenced(world);
        if (checkLeaseHolders(world)) holding += 1;
      }
    } catch (error) {
      console.error(`repeat: REKINDLE_SEED=${seed} node --test ${import.meta.filename}`);
      throw error;
    }
  }
  if (fixed !== undefined) return;
  assert.ok(fences > runs / 2, 'recoveries were complete');
  assert.ok(holding > runs, 'the master had lease holders at times');
});

test('a backup that the list does not know yet is told to keep everything', () => {
  const world = new World(1);
  world.faults = false;
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

test('a replica of a segment that was cleaned is not needed any more', () => {
  const world = new World(2);
  world.faults = false;
  world.settle();
  world.clean();
  const [cleaned] = world.passes[0]?.cleaned ?? [];
  assert.equal(cleaned?.id, 1);
  // As long as a durable digest may name it, a replica that is not on R backups is needed.
  for (const disk of world.disks.values()) disk.alive = disk.serverId > 4;
  world.addServer();
  const newcomer = world.nextServerId - 1;
  world.pushList();
  assert.deepEqual(world.manager.neededReplicas(newcomer, [1]), [1]);
  world.settle();
  assert.deepEqual(world.manager.neededReplicas(newcomer, [1]), []);
});

test('a segment that leaves a backup is whole on R others before it is freed there', () => {
  for (let seed = 1; seed <= 20; seed += 1) {
    const world = new World(seed);
    world.faults = false;
    world.settle();
    const whole = () =>
      [...world.disks.values()].filter((disk) => disk.replicas.get(1)?.closed).length;
    assert.equal(whole(), 3);
    const [holder = 0] = world.manager.segment(1)?.serverIds ?? [];
    const disk = world.disks.get(holder) ?? assert.fail('the holder has a disk');
    disk.draining = true;
    for (let step = 0; step < 5_000 && disk.replicas.has(1); step += 1) {
      world.step();
      assert.ok(whole() >= 3, `step ${step} of seed ${seed}: ${whole()} copies are whole`);
    }
    assert.ok(!disk.replicas.has(1), 'it was freed there');
    disk.draining = false;
    world.settle();
    assert.ok(world.checkRecovery([...world.disks.values()]));
  }
});

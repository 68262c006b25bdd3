/**
 * A master of replicated-log-world.ts that is being recovered and does not know it: some disks are
 * fenced, the coordinator takes nothing from it any more. Judges its lease holders
 * (docs/leases.md).
 */
import assert from 'node:assert/strict';
import type { World } from './replicated-log-world.js';

type Disk = World['disks'] extends Map<number, infer Value> ? Value : never;

/** Crashed, for all that the coordinator knows: these disks are fenced, if they are enough. */
export function fence(world: World, disks: readonly Disk[]): boolean {
  if (world.recover([...disks]) === null) return false;
  world.fenced = new Set(disks.map(({ serverId }) => serverId));
  return true;
}

/** One step of a master that does not know what happened to it. */
export function stepFenced(world: World): void {
  world.nowMs += 5 + world.below(30);
  const dice = world.random();
  if (dice < 0.2) world.append();
  else if (dice < 0.25) world.openHead();
  else if (dice < 0.3) world.crash();
  else if (dice < 0.4) world.pushList();
  else if (dice < 0.45) world.storeRecoveryInfo();
  else if (dice < 0.7 && world.requests.length > 0) {
    const [write] = world.requests.splice(world.below(world.requests.length), 1);
    if (write !== undefined) world.deliver(write);
  } else world.answer(world.below(Math.max(1, world.answers.length)));
  world.apply({ kind: 'tick' });
}

export function checkLeaseHolders(world: World): boolean {
  const { leaseHolders } = world.manager;
  if (leaseHolders === null) return false;
  const fenced = leaseHolders.filter((serverId) => world.fenced?.has(serverId));
  assert.ok(fenced.length > 0, `none of the lease holders ${leaseHolders} is fenced`);
  return true;
}

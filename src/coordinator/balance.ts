/**
 * Which tablet should move so that memory and requests are spread over the masters. Pure.
 *
 * Rule: a move must make the worse of the two servers clearly better than the worse of them was, so
 * that moves come to an end. Memory comes first: a server that is full takes no writes. A move for
 * the sake of requests never makes memory so uneven that it would have to be undone.
 */
import type { TabletLoad } from '../rpc/messages.js';

export interface ServerLoad {
  serverId: number;
  /** Of its log. */
  memoryBytes: number;
  tablets: readonly TabletLoad[];
}

export interface BalanceMove {
  tablet: TabletLoad;
  fromServerId: number;
  toServerId: number;
  reason: 'memory' | 'requests';
}

/** Shares of memory that differ by less are taken for equal. */
export const FILL_GAP = 0.1;
/** What a move for memory must gain at least. */
const FILL_GAIN = 0.02;
/** A server with fewer requests a second is not busy. */
export const BUSY_PER_SECOND = 5_000;
/** What a move for requests must gain at least, as a share of those of the busiest server. */
const RATE_GAIN = 0.1;

export function fillOf({ memoryBytes, tablets }: ServerLoad): number {
  return tablets.reduce((sum, { bytes }) => sum + bytes, 0) / memoryBytes;
}

export function rateOf({ tablets }: ServerLoad): number {
  return tablets.reduce((sum, { operationsPerSecond }) => sum + operationsPerSecond, 0);
}

/** `movable`: false for a tablet that has moved a moment ago. */
export function decideBalance(
  servers: readonly ServerLoad[],
  movable: (tablet: TabletLoad) => boolean,
): BalanceMove | null {
  return moveForMemory(servers, movable) ?? moveForRequests(servers, movable);
}

interface Choice {
  move: BalanceMove;
  /** The worse of the two servers afterwards. */
  worst: number;
}

/** The move after which the worse of the two is best, if it is at most `worstMax`. */
function bestOf(choices: Iterable<Choice>, worstMax: number): BalanceMove | null {
  let best: Choice | null = null;
  for (const choice of choices) {
    if (choice.worst <= worstMax && choice.worst < (best?.worst ?? Infinity)) best = choice;
  }
  return best?.move ?? null;
}

function moveForMemory(
  servers: readonly ServerLoad[],
  movable: (tablet: TabletLoad) => boolean,
): BalanceMove | null {
  const sorted = [...servers].sort((a, b) => fillOf(a) - fillOf(b) || a.serverId - b.serverId);
  const [to] = sorted;
  const from = sorted.at(-1);
  if (to === undefined || from === undefined) return null;
  const [low, high] = [fillOf(to), fillOf(from)];
  if (high - low < FILL_GAP) return null;
  const choices = from.tablets.filter(movable).map((tablet): Choice => {
    const left = high - tablet.bytes / from.memoryBytes;
    const taken = low + tablet.bytes / to.memoryBytes;
    return { move: moveOf(tablet, from, to, 'memory'), worst: Math.max(left, taken) };
  });
  return bestOf(choices, high - FILL_GAIN);
}

function moveForRequests(
  servers: readonly ServerLoad[],
  movable: (tablet: TabletLoad) => boolean,
): BalanceMove | null {
  const from = [...servers].sort((a, b) => rateOf(b) - rateOf(a) || a.serverId - b.serverId)[0];
  if (from === undefined || rateOf(from) < BUSY_PER_SECOND) return null;
  const fills = servers.map(fillOf);
  const choices: Choice[] = [];
  for (const tablet of from.tablets.filter(movable)) {
    for (const to of servers) {
      if (to === from) continue;
      const fillsAfter = servers.map((server, at) => {
        const change = server === from ? -tablet.bytes : server === to ? tablet.bytes : 0;
        return (fills[at] ?? 0) + change / server.memoryBytes;
      });
      if (Math.max(...fillsAfter) - Math.min(...fillsAfter) >= FILL_GAP) continue;
      const rate = tablet.operationsPerSecond;
      const worst = Math.max(rateOf(from) - rate, rateOf(to) + rate);
      choices.push({ move: moveOf(tablet, from, to, 'requests'), worst });
    }
  }
  return bestOf(choices, rateOf(from) * (1 - RATE_GAIN));
}

function moveOf(
  tablet: TabletLoad,
  from: ServerLoad,
  to: ServerLoad,
  reason: BalanceMove['reason'],
): BalanceMove {
  return { tablet, fromServerId: from.serverId, toServerId: to.serverId, reason };
}

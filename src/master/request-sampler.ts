/**
 * Which tablets are asked for how often, from samples: of the messages that come, one every few
 * milliseconds is looked into, and its first operation stands for all since the one before. The
 * native core counts operations, but not by tablet.
 *
 * Rule: it costs next to nothing and never fails: what cannot be parsed is the core's to refuse.
 */
import { EXECUTE_HEADER_BYTES, firstOperation } from '../rpc/execute-codec.js';
import { hashKey } from '../rpc/key-hash.js';
import type { TabletLoad, TabletStats } from '../rpc/messages.js';

const samplesMax = 4_096;
const intervalMs = 2;
/** Rates are those of the last so many seconds. */
const windowMs = 8_000;

interface Sample {
  atMs: number;
  tableId: number;
  slot: number;
  operations: number;
}

export class RequestSampler {
  readonly #startedMs: number;
  /** A ring, oldest at `#next` once it is full. */
  readonly #samples: Sample[] = [];
  #next = 0;
  #operations = 0;
  #dueMs = 0;

  constructor(nowMs: number) {
    this.#startedMs = nowMs;
  }

  /** An EXECUTE body has come. */
  note(body: Uint8Array, nowMs: number): void {
    if (body.length < EXECUTE_HEADER_BYTES) return;
    this.#operations += body[16]! | (body[17]! << 8) | (body[18]! << 16);
    if (nowMs < this.#dueMs) return;
    const first = firstOperation(body);
    if (first === null) return;
    const { tableId, key } = first;
    const slot = hashKey(tableId, key);
    this.#samples[this.#next] = { atMs: nowMs, tableId, slot, operations: this.#operations };
    this.#next = (this.#next + 1) % samplesMax;
    this.#operations = 0;
    this.#dueMs = nowMs + intervalMs;
  }

  /** The tablets with their rates. */
  loads(tablets: readonly TabletStats[], nowMs: number): TabletLoad[] {
    const recent = this.#samples.filter(({ atMs }) => nowMs - atMs < windowMs);
    const seconds = Math.max(1, Math.min(windowMs, nowMs - this.#startedMs) / 1_000);
    const sorted = [...tablets].sort((a, b) => a.tableId - b.tableId || a.startSlot - b.startSlot);
    const counts = sorted.map(() => 0);
    for (const { tableId, slot, operations } of recent) {
      const at = tabletAt(sorted, tableId, slot);
      if (at >= 0) counts[at] = (counts[at] ?? 0) + operations;
    }
    return sorted.map((tablet, at) => {
      const { tableId, startSlot, endSlot, bytes, records } = tablet;
      const operationsPerSecond = (counts[at] ?? 0) / seconds;
      return { tableId, startSlot, endSlot, bytes, records, operationsPerSecond };
    });
  }
}

/** Index of the tablet that holds the slot, by bisection; -1 if it is none of them. */
function tabletAt(sorted: readonly TabletStats[], tableId: number, slot: number): number {
  let [low, high] = [0, sorted.length - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    const tablet = sorted[middle];
    if (tablet === undefined) return -1;
    const after = tablet.tableId - tableId || tablet.startSlot - slot;
    if (after <= 0 && tablet.tableId === tableId && slot <= tablet.endSlot) return middle;
    if (after > 0) high = middle - 1;
    else low = middle + 1;
  }
  return -1;
}

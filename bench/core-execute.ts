/**
 * What the N-API border costs: the same EXECUTE bodies of 64 operations on a master of this process
 * and on one of `rekindle-bench execute`, without Node. Both take turns in short slices, so that
 * noise of the machine meets both; the median slice counts.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import type { MasterCore } from '../src/native/contract.js';
import { loadAddon } from '../src/native/index.js';
import { RekindleError } from '../src/rpc/errors.js';
import { median } from './concurrency.js';
import { CoreDialogue, type Figure, runCore } from './core-binary.js';

const OBJECTS = 1_000_000;
const OPERATIONS = 64;
const BODIES = OBJECTS / OPERATIONS;
/** Slices of the bodies; the first one warms up. */
const SLICES = 25;
const SLICE_BODIES = BODIES / SLICES;
/** The same as in native/bench/src/execute.rs. */
const MEMORY_BYTES = 256 * 2 ** 20;
const REPLY_BYTES = 2 ** 16;
const TOUCH_POLL_MS = 5;
/** Neighbours of a machine are busy for seconds; a round measures for a fifth of one. */
const ROUNDS = 5;
const QUICK_ROUNDS = 3;

type Work = 'write' | 'read';

/** A master of this process, fed like the one in the other. */
class NodeSide {
  readonly #bodies: Record<Work, Buffer[]>;
  readonly #next: Record<Work, number> = { write: 0, read: 0 };
  readonly #reply = new Uint8Array(REPLY_BYTES);
  #master: MasterCore | undefined;

  constructor(folder: string) {
    const split = (file: string): Buffer[] => {
      const all = readFileSync(join(folder, file));
      const length = all.length / BODIES;
      return Array.from({ length: BODIES }, (_, i) => all.subarray(i * length, (i + 1) * length));
    };
    this.#bodies = { write: split('writes'), read: split('reads') };
  }

  async open(): Promise<void> {
    this.#master = openMaster(MEMORY_BYTES);
    await untilTouched(this.#master);
    this.#next.write = 0;
    this.#next.read = 0;
  }

  /** Seconds for the next bodies. */
  run(work: Work, count: number): number {
    const master = this.#master;
    if (master === undefined) throw new RekindleError('INTERNAL', 'no master is open');
    const results = new Float64Array(3);
    const first = this.#next[work];
    const bodies = this.#bodies[work].slice(first, first + count);
    this.#next[work] = (first + count) % BODIES;
    const start = performance.now();
    for (const body of bodies) master.execute(body, this.#reply, 0, results);
    const seconds = (performance.now() - start) / 1000;
    checkReply(this.#reply);
    return seconds;
  }

  close(): void {
    this.#master?.close();
    this.#master = undefined;
  }
}

/** A master that serves table 1. */
export function openMaster(memoryBytes: number): MasterCore {
  const { MasterCore } = loadAddon();
  const master = new MasterCore({
    serverId: 1,
    memoryBytes,
    replayThreads: 1,
    replicated: false,
    diskExpansionFactor: 1,
  });
  master.takeTablet({ tableId: 1, startSlot: 0, endSlot: 0xffff_ffff });
  master.openLog();
  return master;
}

/** Its thread has touched all of its memory. */
export async function untilTouched(master: MasterCore): Promise<void> {
  for (;;) {
    const { touchedBytes = 0, memoryBytes = 0 } = master.stats();
    if (touchedBytes >= memoryBytes) return;
    await delay(TOUCH_POLL_MS);
  }
}

/** Every result of a reply is OK. */
export function checkReply(reply: Uint8Array): void {
  const view = new DataView(reply.buffer, reply.byteOffset, reply.byteLength);
  let at = 8;
  for (let left = view.getUint32(0, true); left > 0; left--) {
    const status = view.getUint16(at, true);
    if (status !== 0) throw new RekindleError('INTERNAL', `an operation was refused: ${status}`);
    at += 16 + Math.ceil(view.getUint32(at + 4, true) / 8) * 8;
  }
}

interface Slice {
  node: number;
  core: number;
}

async function slices(node: NodeSide, core: CoreDialogue, work: Work): Promise<Slice[]> {
  const taken: Slice[] = [];
  for (let index = 0; index < SLICES; index++) {
    const slice: Slice = { node: 0, core: 0 };
    const turns = [
      async () => {
        slice.node = node.run(work, SLICE_BODIES);
      },
      async () => {
        slice.core = await core.ask(`${work} ${SLICE_BODIES}`);
      },
    ];
    for (const turn of index % 2 === 0 ? turns : turns.reverse()) await turn();
    if (index > 0) taken.push(slice);
  }
  return taken;
}

function figures(work: Work, taken: readonly Slice[]): Figure[] {
  const operations = SLICE_BODIES * OPERATIONS;
  const rate = (side: keyof Slice): number =>
    median(taken.map((slice) => operations / slice[side]));
  return [
    { name: `napi-${work}s-64`, unit: 'operations/s', value: rate('node') },
    { name: `rust-${work}s-64`, unit: 'operations/s', value: rate('core') },
    {
      name: `napi-vs-rust-${work}s`,
      unit: 'ratio',
      value: median(taken.map(({ node, core }) => core / node)),
    },
  ];
}

export async function measureExecute(binary: string, quick: boolean): Promise<Figure[]> {
  const folder = makeTemporaryFolder('rekindle-bench-');
  try {
    await runCore(binary, ['bodies', folder]);
    await using core = new CoreDialogue(binary, ['execute', folder]);
    const node = new NodeSide(folder);
    const taken: Record<Work, Slice[]> = { write: [], read: [] };
    for (let round = 0; round < (quick ? QUICK_ROUNDS : ROUNDS); round++) {
      await node.open();
      await core.ask('open');
      for (const work of ['write', 'read'] as const) {
        taken[work].push(...(await slices(node, core, work)));
      }
      node.close();
      await core.ask('close');
    }
    return [...figures('read', taken.read), ...figures('write', taken.write)];
  } finally {
    removeTemporaryFolder(folder);
  }
}

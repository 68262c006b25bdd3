/**
 * One side of `rekindle bench throughput`, a process of its own: `node side-program.js SETTINGS`.
 * Starts the store and its client, fills it, says so, and then measures what it is asked to
 * (side-process.ts asks).
 *
 * Rule: nothing of another side runs in here. Two clients in one process pay for one another: V8
 * collects the whole heap in the time of one for what the other has left there. With SIGTERM, and
 * when the channel to its parent closes, this process ends and takes with it all that it has
 * started (left-behind.ts).
 */
import { asRekindleError, invariant, RekindleError } from '../src/rpc/errors.js';
import type { StatusCode } from '../src/rpc/status.js';
import { Dataset, randomStream } from './dataset.js';
import { writeDataset } from './dataset-transfer.js';
import { RekindleStore } from './object-store.js';
import { type PeerName, startPeer } from './peers.js';
import { Pinning } from './pinning.js';
import { type Side, VALUE_BYTES, works } from './throughput-works.js';
import { measureWireBytes, SocketTraffic, type Traffic } from './wire-bytes.js';

export interface SideSettings {
  name: Side['name'];
  objects: number;
  memoryBytes: number;
  /** Of the native load generator. */
  binary: string;
}

export interface RoundSettings {
  /** Names the work. */
  metric: string;
  ms: number;
  seed: number;
}

export type Question = { kind: 'measure'; round: RoundSettings } | { kind: 'wire-bytes' };

/** The first one, without a value, is to no question: all is started and filled. */
export type Answer =
  | { value: number | null | Traffic[] | undefined }
  | { code: StatusCode; message: string };

async function rekindleSide(memoryBytes: number, pinning: Pinning): Promise<Side> {
  const settings = { servers: 1, replicas: 0, durability: 'replicated', memoryBytes } as const;
  const store = await RekindleStore.start({ ...settings, command: pinning.server });
  const { address, tableId } = await store.direct();
  return { name: 'rekindle', store, address, wire: { dialect: 'rekindle', tableId } };
}

async function peerSide(name: PeerName, memoryBytes: number, pinning: Pinning): Promise<Side> {
  const { store, address, dialect } = await startPeer(name, memoryBytes, pinning.server);
  return { name, store, address, wire: dialect === null ? null : { dialect, tableId: 0 } };
}

/** Resolves with what answers all questions. */
async function start(settings: SideSettings): Promise<(question: Question) => Promise<Answer>> {
  const { name, objects, memoryBytes, binary } = settings;
  const traffic = new SocketTraffic();
  const pinning = new Pinning();
  const side = await (name === 'rekindle'
    ? rekindleSide(memoryBytes, pinning)
    : peerSide(name, memoryBytes, pinning));
  pinning.pinThisProcess();
  const dataset = new Dataset('object', objects, VALUE_BYTES);
  await writeDataset(side.store, dataset);
  return async (question) => {
    if (question.kind === 'wire-bytes') {
      return { value: await measureWireBytes(side, traffic, dataset) };
    }
    const { metric, ms, seed } = question.round;
    const work = works.find((each) => each.metric === metric);
    invariant(work !== undefined, 'a work is named by its metric');
    const round = { dataset, ms, random: randomStream(seed), binary, pinning };
    return { value: await work.measure(side, round) };
  };
}

/** A bug is shown with its stack, which an answer does not have. */
function failure(thrown: unknown): Answer {
  const { code, message, cause } = asRekindleError(thrown);
  if (!(thrown instanceof RekindleError)) process.stderr.write(`${(cause as Error)?.stack}\n`);
  return { code, message };
}

function say(answer: Answer): void {
  // Nobody is left to hear it if the channel is closed, which ends this process as well.
  process.send?.(answer, () => undefined);
}

const end = (): never => process.exit();
process.once('SIGTERM', end).once('disconnect', end);
try {
  const [settings = ''] = process.argv.slice(2);
  const answer = await start(JSON.parse(settings) as SideSettings);
  process.on('message', (question: Question) => {
    void answer(question).catch(failure).then(say);
  });
  say({ value: undefined });
} catch (error) {
  say(failure(error));
}

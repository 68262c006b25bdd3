/**
 * `rekindle bench link`: one replication link, from the log memory of a master to a backup in
 * another process, over the code that servers run. Gigabytes a second, messages a second, and the
 * processor time that both ends spend on them.
 *
 * The sender is this process, on one core; receivers are on the other (pinning.ts): one that only
 * acknowledges, which shows the link alone, and a backup in each mode of durability. So many
 * messages in flight are so many replicas that are written at a time, each with one write under
 * way, as replicated-segment.ts does it. Rule: all configurations take turns, round by round.
 */
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { median } from './concurrency.js';
import { LinkLog, MASTER_ID } from './link-log.js';
import { LinkReceiver, type ReceiverMode } from './link-process.js';
import { type Sums, send } from './link-sender.js';
import { Pinning } from './pinning.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine, metric } from './report.js';

const MODES: readonly ReceiverMode[] = ['link', 'replicated', 'fsync'];
const GBPS_WANTED = 1.25;

/** What is sent. */
interface Size {
  name: string;
  valueBytes: number;
  pieceBytes: number;
  inFlight: readonly number[];
  unit: 'GB/s' | 'messages/s';
}

const bulk = { valueBytes: 1_000, inFlight: [1, 4, 8], unit: 'GB/s' } as const;
const small = { inFlight: [1, 8, 64], unit: 'messages/s' } as const;
const SIZES: readonly Size[] = [
  { ...bulk, name: '64kib', pieceBytes: 64 * 1024 },
  { ...bulk, name: '256kib', pieceBytes: 256 * 1024 },
  { ...bulk, name: '1mib', pieceBytes: 1024 * 1024 },
  // The last object of a piece is the one that still fits.
  { ...small, name: '100b', valueBytes: 60, pieceBytes: 1 },
  { ...small, name: '1kb', valueBytes: 100, pieceBytes: 1024 },
];
/** The configuration of the metrics without one in their names: what a recovery sends. */
const HEADLINE = { size: '1mib', inFlight: 4 };

interface Figures {
  size: Size;
  mode: ReceiverMode;
  inFlight: number;
  rounds: Sums[];
}

export async function runLinkBench({ quick }: BenchOptions): Promise<BenchResult> {
  const pinning = new Pinning();
  const rounds = quick ? 3 : 7;
  const ms = quick ? 200 : 1_000;
  const receivers: LinkReceiver[] = [];
  const logs = new Map<Size, LinkLog>();
  const stalls: { mode: ReceiverMode; stats: Record<string, number> }[] = [];
  let figures: Figures[];
  try {
    for (const mode of MODES) {
      receivers.push(await LinkReceiver.start(mode, MASTER_ID, pinning.server));
    }
    pinning.pinThisProcess();
    for (const size of SIZES) logs.set(size, new LinkLog(size));
    figures = await measureAll(receivers, logs, rounds, ms);
  } finally {
    for (const receiver of receivers) {
      stalls.push({ mode: receiver.mode, stats: await receiver.stop() });
    }
    for (const log of logs.values()) log.close();
  }
  return result(quick, figures, stalls, { rounds, ms, pinned: pinning.possible });
}

async function measureAll(
  receivers: readonly LinkReceiver[],
  logs: ReadonlyMap<Size, LinkLog>,
  rounds: number,
  ms: number,
): Promise<Figures[]> {
  const figures: Figures[] = receivers.flatMap(({ mode }) =>
    SIZES.flatMap((size) =>
      size.inFlight.map((inFlight) => ({ size, mode, inFlight, rounds: [] })),
    ),
  );
  const progress = startProgress('measure', rounds * figures.length, 'runs');
  for (let round = 0; round < rounds; round++) {
    for (const { size, mode, inFlight, rounds: sums } of figures) {
      const receiver = receivers.find((each) => each.mode === mode);
      const log = logs.get(size);
      if (receiver === undefined || log === undefined) continue;
      await send(receiver, log, inFlight, ms / 5); // warms caches and the JIT
      sums.push(await send(receiver, log, inFlight, ms));
      progress.advance(1);
    }
  }
  progress.stop();
  return figures;
}

/** Over all rounds: the counts of processor time come in steps of 10 ms. */
function perBytes({ rounds }: Figures, of: (sums: Sums) => number): number {
  const sum = (each: (sums: Sums) => number): number =>
    rounds.reduce((total, one) => total + each(one), 0);
  return sum(of) / sum(({ bytes }) => bytes);
}

function rateOf({ size, rounds }: Figures): number {
  const rate = ({ bytes, messages, seconds }: Sums): number =>
    (size.unit === 'GB/s' ? bytes / 1e9 : messages) / seconds;
  return median(rounds.map(rate));
}

function secondsPerGb(figures: Figures): { sender: number; receiver: number } {
  // Milliseconds a byte are 10⁶ seconds a GB.
  const cost = (of: (sums: Sums) => number): number => perBytes(figures, of) * 1e6;
  return { sender: cost(({ senderMs }) => senderMs), receiver: cost((sums) => sums.receiverMs) };
}

/** Bytes beside the payload of a message: its own, and those of its answer. */
function overheadOf({ rounds }: Figures): { request: number; reply: number } {
  const sum = (each: (sums: Sums) => number): number =>
    rounds.reduce((total, one) => total + each(one), 0);
  const messages = sum((sums) => sums.messages);
  return {
    request: sum(({ sentBytes, bytes }) => sentBytes - bytes) / messages,
    reply: sum(({ readBytes }) => readBytes) / messages,
  };
}

function prefixOf(mode: ReceiverMode): string {
  return mode === 'link' ? 'link' : `backup-${mode}`;
}

function metricsOf(figures: Figures): Metric[] {
  const { size, mode, inFlight } = figures;
  const prefix = prefixOf(mode);
  const unit = size.unit === 'GB/s' ? 'gbps' : 'messages-per-s';
  const name = `${prefix}-${size.name}-${inFlight}-${unit}`;
  const metrics = [metric(name, size.unit, rateOf(figures), true)];
  if (size.name === HEADLINE.size && inFlight === HEADLINE.inFlight) {
    const { sender, receiver } = secondsPerGb(figures);
    metrics.push(
      metric(`${prefix}-cpu-seconds-per-gb-sender`, 's/GB', sender),
      metric(`${prefix}-cpu-seconds-per-gb-receiver`, 's/GB', receiver),
    );
  }
  return metrics;
}

function bulkRow(figures: Figures): string[] {
  const { size, mode, inFlight } = figures;
  const gbps = rateOf(figures);
  const { sender, receiver } = secondsPerGb(figures);
  const met = gbps >= GBPS_WANTED ? 'yes' : 'NO';
  const cost = [sender.toFixed(2), receiver.toFixed(2)];
  return [prefixOf(mode), size.name, String(inFlight), gbps.toFixed(2), met, ...cost];
}

function smallRow(figures: Figures): string[] {
  const { size, mode, inFlight, rounds } = figures;
  const messages = rounds.reduce((total, one) => total + one.messages, 0);
  const micros = (of: (sums: Sums) => number): string =>
    ((rounds.reduce((total, one) => total + of(one), 0) * 1e3) / messages).toFixed(1);
  const payload = rounds.reduce((total, one) => total + one.bytes, 0) / messages;
  const { request, reply } = overheadOf(figures);
  return [
    prefixOf(mode),
    size.name,
    String(inFlight),
    formatCount(Math.round(rateOf(figures))),
    micros(({ senderMs }) => senderMs),
    micros(({ receiverMs }) => receiverMs),
    ...[payload, request, reply].map((bytes) => bytes.toFixed(0)),
  ];
}

function result(
  quick: boolean,
  figures: readonly Figures[],
  stalls: readonly { mode: ReceiverMode; stats: Record<string, number> }[],
  plan: { rounds: number; ms: number; pinned: boolean },
): BenchResult {
  const of = (unit: Size['unit']): Figures[] => figures.filter(({ size }) => size.unit === unit);
  const cores = plan.pinned ? 'sender on one core, receiver on another' : 'not pinned to cores';
  const disk = LinkReceiver.inMemory ? 'a folder in memory' : 'A FOLDER ON DISK';
  const held = stalls.map(
    ({ mode, stats }) =>
      `${prefixOf(mode)}: ${stats.handlersOver1Ms} of ${formatCount(stats.requests ?? 0)} ` +
      `messages held its event loop for over 1 ms, the longest ` +
      `${(stats.handlerLongestMs ?? 0).toFixed(1)} ms`,
  );
  const text = [
    `bench link: one connection on loopback, ${cores}, backups in ${disk}, ` +
      `median of ${plan.rounds} rounds of ${plan.ms} ms`,
    machineLine(),
    '',
    textTable(
      [
        ...['receiver', 'message', 'in flight', 'GB/s', `≥ ${GBPS_WANTED}`],
        ...['sender CPU s/GB', 'receiver CPU s/GB'],
      ],
      of('GB/s').map(bulkRow),
    ),
    '',
    textTable(
      [
        ...['receiver', 'message', 'in flight', 'messages/s', 'sender CPU µs', 'receiver CPU µs'],
        ...['payload B', '+ B sent', 'B of answer'],
      ],
      of('messages/s').map(smallRow),
    ),
    '',
    ...held,
  ].join('\n');
  const overhead = figures.filter(({ size, mode }) => size.name === '100b' && mode === 'link');
  const metrics = [
    ...figures.flatMap(metricsOf),
    ...overhead.slice(-1).flatMap((each) => {
      const { request, reply } = overheadOf(each);
      return [
        metric('link-overhead-bytes-sent', 'B', request),
        metric('link-overhead-bytes-answered', 'B', reply),
      ];
    }),
    ...stalls.map(({ mode, stats }) =>
      metric(`${prefixOf(mode)}-handlers-over-1ms`, 'messages', stats.handlersOver1Ms ?? 0),
    ),
  ];
  return { name: 'link', parameters: { quick, ...plan }, metrics, text, passed: true };
}

/**
 * Draws schedules of faults: what is done to whom, when, and for how long. A pure function of the
 * seed; who carries it out is faults.ts.
 *
 * Rule: a schedule stays within what R = 3 promises to survive. At most two servers are out of
 * reach at a time, and at most one in a schedule loses bytes that it had acknowledged (its disk
 * breaks, or what lies on it rots); from then on one more may be out of reach. Slowness, lost
 * messages and lost connections have no limit.
 */
import { randomStream } from './dataset.js';
import type { DiskFault } from './disk-layer.js';

export const COORDINATOR_TARGET = -1;
const EIO = 5;
const GAP_MS = 100;

export type Harm =
  | { kind: 'kill' }
  | { kind: 'pause' }
  | { kind: 'disk'; fault: DiskFault; what: string }
  | { kind: 'rot' }
  | { kind: 'messages'; faults: string }
  /** Cut off from everybody. */
  | { kind: 'cut' }
  /** These cannot reach one another; all others can reach them. */
  | { kind: 'split' };

export interface FaultEvent {
  atMs: number;
  lastsMs: number;
  harm: Harm;
  /** Indexes of servers, or COORDINATOR_TARGET. */
  targets: number[];
}

export interface ScheduleShape {
  servers: number;
  /** Processes have the disk layer. */
  disk: boolean;
  /** Processes have networks of their own. */
  network: boolean;
}

const MESSAGE_FAULTS = [
  'request-BACKUP_WRITE.write=close*3',
  'reply-BACKUP_WRITE.write=close*3',
  'reply-BACKUP_WRITE.write=drop*2',
  'request-BACKUP_WRITE.write=corrupt',
  'request-BACKUP_WRITE.write=delay:300*50',
  'request-BACKUP_WRITE.open=drop',
  'reply-BACKUP_WRITE.close=close',
  'request-EXECUTE=close*5',
  'reply-EXECUTE=close*5',
  'reply-EXECUTE=drop*5',
  'request-EXECUTE=delay:500*20',
  'reply-GET_RECOVERY_DATA=corrupt*2',
  'request-GET_RECOVERY_DATA=close*2',
  'reply-START_READING_DATA=close',
  'request-START_PARTITIONS=drop',
  'reply-RECOVER=close',
  'request-PING=drop*2',
  'request-UPDATE_SERVER_LIST=drop',
];

const COORDINATOR_MESSAGE_FAULTS = [
  'reply-RECOVERY_MASTER_FINISHED=drop',
  'request-SET_MASTER_RECOVERY_INFO=close',
  'reply-ENLIST_SERVER=close',
  'reply-GET_TABLE=drop*2',
  'reply-VERIFY_MEMBERSHIP=drop',
];

const BROKEN: readonly Extract<Harm, { kind: 'disk' }>[] = [
  { kind: 'disk', what: 'writes fail', fault: { writeErrno: EIO } },
  { kind: 'disk', what: 'flushes fail', fault: { flushErrno: EIO } },
  { kind: 'disk', what: 'reads fail', fault: { readErrno: EIO } },
];
const SLOW: readonly Extract<Harm, { kind: 'disk' }>[] = [
  { kind: 'disk', what: 'full', fault: { full: 1 } },
  { kind: 'disk', what: 'slow', fault: { writeDelayMs: 20, flushDelayMs: 50 } },
  { kind: 'disk', what: 'very slow flushes', fault: { flushDelayMs: 700 } },
];

interface Draw {
  random: () => number;
  shape: ScheduleShape;
  /** The one server that may lose bytes. */
  careless: number;
}

export function drawSchedule(seed: number, shape: ScheduleShape): FaultEvent[] {
  const random = randomStream(seed);
  const draw: Draw = { random, shape, careless: random() % shape.servers };
  const events: FaultEvent[] = [];
  const count = 3 + (random() % 3);
  let atMs = 200;
  for (let index = 0; index < count; index++) {
    const lastsMs = 300 + (random() % 2_200);
    events.push({ atMs, lastsMs, ...drawHarm(draw) });
    // Half of the faults meet the next one.
    const overlaps = random() % 2 === 0;
    atMs += overlaps ? random() % lastsMs : lastsMs + (random() % 500);
  }
  return keepWithinPromise(events);
}

function drawHarm(draw: Draw): Pick<FaultEvent, 'harm' | 'targets'> {
  const { random, shape, careless } = draw;
  const one = random() % shape.servers;
  const other = (one + 1 + (random() % (shape.servers - 1))) % shape.servers;
  const options: (() => Pick<FaultEvent, 'harm' | 'targets'>)[] = [
    () => ({ harm: { kind: 'kill' }, targets: [one] }),
    () => ({ harm: { kind: 'kill' }, targets: [one, other] }),
    () => ({ harm: { kind: 'pause' }, targets: [one] }),
    () => ({ harm: { kind: 'pause' }, targets: [one, other] }),
    () => ({ harm: { kind: 'kill' }, targets: [COORDINATOR_TARGET] }),
    () => ({ harm: { kind: 'pause' }, targets: [COORDINATOR_TARGET] }),
    () => ({ harm: messages(random, MESSAGE_FAULTS), targets: [one, other] }),
    () => ({ harm: messages(random, MESSAGE_FAULTS), targets: [one] }),
    () => ({ harm: messages(random, COORDINATOR_MESSAGE_FAULTS), targets: [COORDINATOR_TARGET] }),
    () => ({ harm: { kind: 'rot' }, targets: [careless] }),
    ...(shape.disk
      ? [
          () => ({ harm: pick(random, SLOW), targets: [one] }),
          () => ({ harm: pick(random, SLOW), targets: [one, other] }),
          () => ({ harm: pick(random, BROKEN), targets: [careless] }),
        ]
      : []),
    ...(shape.network
      ? [
          () => ({ harm: { kind: 'cut' as const }, targets: [one] }),
          () => ({ harm: { kind: 'cut' as const }, targets: [COORDINATOR_TARGET] }),
          () => ({ harm: { kind: 'split' as const }, targets: [one, other] }),
          () => ({ harm: { kind: 'split' as const }, targets: [one, COORDINATOR_TARGET] }),
        ]
      : []),
  ];
  return pick(random, options)();
}

function messages(random: () => number, faults: readonly string[]): Harm {
  const chosen = new Map<string, string>();
  for (let index = 0; index < 3; index++) {
    const fault = pick(random, faults);
    chosen.set(fault.split('=')[0] ?? fault, fault);
  }
  return { kind: 'messages', faults: [...chosen.values()].join(',') };
}

function pick<T>(random: () => number, options: readonly T[]): T {
  const chosen = options[random() % options.length];
  if (chosen === undefined) throw new RangeError('nothing to choose from');
  return chosen;
}

const takesAway = ({ harm }: FaultEvent): boolean =>
  harm.kind === 'kill' || harm.kind === 'pause' || harm.kind === 'cut' || harm.kind === 'split';

const losesBytes = ({ harm }: FaultEvent): boolean =>
  harm.kind === 'rot' || BROKEN.some((each) => each === harm);

/**
 * Moves events behind others where they would break the promise together: at most two servers out
 * of reach at a time, one of them only from the moment on when some server has lost bytes; nothing
 * is done twice to the same process at once.
 */
function keepWithinPromise(events: readonly FaultEvent[]): FaultEvent[] {
  const kept: FaultEvent[] = [];
  let careless: number | undefined;
  for (const event of events) {
    if (losesBytes(event)) careless = event.targets[0];
    const awayMax = careless === undefined ? 2 : 1;
    const targets = takesAway(event) ? event.targets.slice(0, awayMax) : event.targets;
    const moved = { ...event, targets };
    for (;;) {
      const meeting = kept.filter(
        (before) => before.atMs < moved.atMs + moved.lastsMs && endOf(before) > moved.atMs,
      );
      if (fits(moved, meeting, awayMax, careless)) break;
      moved.atMs = Math.max(...meeting.map(endOf)) + GAP_MS;
    }
    kept.push(moved);
  }
  return kept.sort((left, right) => left.atMs - right.atMs);
}

const endOf = ({ atMs, lastsMs }: FaultEvent): number => atMs + lastsMs;

function fits(
  event: FaultEvent,
  meeting: readonly FaultEvent[],
  awayMax: number,
  careless: number | undefined,
): boolean {
  if (losesBytes(event) && meeting.length > 0) return false;
  if (meeting.some(({ targets }) => targets.some((each) => event.targets.includes(each)))) {
    return false;
  }
  const away = new Set([...meeting, event].filter(takesAway).flatMap(({ targets }) => targets));
  away.delete(COORDINATOR_TARGET);
  // Its bytes are what is missing already.
  if (careless !== undefined) away.delete(careless);
  return away.size <= awayMax;
}

/** For people, and for the report of a failure. */
export function describeEvent({ atMs, lastsMs, harm, targets }: FaultEvent): string {
  const who = targets.map((target) =>
    target === COORDINATOR_TARGET ? 'coordinator' : `server-${target + 1}`,
  );
  const what =
    harm.kind === 'disk'
      ? `disk ${harm.what}`
      : harm.kind === 'messages'
        ? `messages ${harm.faults}`
        : harm.kind;
  return `${atMs} ms: ${what} at ${who.join(', ')} for ${lastsMs} ms`;
}

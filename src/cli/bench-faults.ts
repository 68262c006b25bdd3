/**
 * The commands of `rekindle bench` that kill, stop, cut or move something: how long it takes until
 * all is well again, and whether anything was lost. What is measured without: bench-performance.ts.
 */
import { Command } from 'commander';
import { runChaos } from '../../bench/chaos.js';
import { runColdStart, WHOLE_TIMEOUT_MS } from '../../bench/cold-start.js';
import { runDetectionBench } from '../../bench/detection.js';
import { runFailoverBench } from '../../bench/failover.js';
import { runFaults } from '../../bench/faults.js';
import { runMigrationBench } from '../../bench/migration.js';
import { runPlacementBench } from '../../bench/placement.js';
import { runRecoveryBench } from '../../bench/recovery.js';
import {
  type CommonOptions,
  type ReportOptions,
  report,
  subcommand,
  withDurability,
  withReport,
} from './bench-options.js';
import { run } from './command-runner.js';
import { integer, option, parseBytes, parsePeer, parseValueSizes } from './option-parsers.js';

/** Of values, where a run moves or recovers them. */
const BYTES = 2 ** 30;
const BYTES_QUICK = 128 * 2 ** 20;

interface RecoveryOptions extends CommonOptions {
  bytes?: number;
  value: number[];
  peer?: 'redis';
  svg?: string;
}

export function recoveryCommand(): Command {
  return withDurability(
    subcommand('recovery', 'kill the one master that holds the data', undefined),
  )
    .option('--bytes <size>', 'bytes of values on that master (default: 1GB)', parseBytes)
    .addOption(
      option(
        '--value <sizes>',
        'bytes of a value; a run for each',
        'VALUE',
        parseValueSizes,
      ).default([100, 1024], '100,1KB'),
    )
    .option('--peer <name>', 'put the same data into a peer and restart it: redis', parsePeer)
    .option('--svg <file>', 'draw the timeline; {size} in the name is replaced')
    .action((options: RecoveryOptions) =>
      run(() => {
        const { servers, value: valueBytes, durability, peer, svg, quick = false } = options;
        const bytes = options.bytes ?? (quick ? BYTES_QUICK : BYTES);
        const bench = { servers, bytes, valueBytes, durability, peer, svg, quick };
        return report(options, runRecoveryBench(bench));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench recovery --quick --peer redis      128 MB of 100 B and of 1 KB objects
  $ rekindle bench recovery --bytes 2GB --value 1KB --servers 8 --svg 'recovery-{size}.svg'

Memory of the servers follows from --bytes; a run of 1 GB needs some 14 GB in all.`,
    );
}

export function detectionCommand(): Command {
  return withDurability(
    subcommand('detection', 'how soon dead servers are noticed, and only those', '128MB'),
  )
    .option('--rounds <n>', 'kills, and as many stops (with --quick: 4)', integer(1, 1_000))
    .option('--saturate <s>', 'seconds with all cores busy (with --quick: 8)', integer(0, 86_400))
    .action((options: CommonOptions & { rounds?: number; saturate?: number }) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, quick = false } = options;
        const rounds = options.rounds ?? (quick ? 4 : 25);
        const saturateSeconds = options.saturate ?? (quick ? 8 : 600);
        const detection = { servers, durability, memoryBytes, rounds, saturateSeconds, quick };
        return report(options, runDetectionBench(detection));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench detection --quick
  $ rekindle bench detection --rounds 25 --saturate 600 --json detection.json

Exit code 1 if a live server was declared crashed.`,
    );
}

export function failoverCommand(): Command {
  return withDurability(subcommand('failover', 'kill leaders and servers under load', '128MB'))
    .option('--kills <n>', 'of leaders, and of servers (with --quick: 3)', integer(1, 10_000))
    .option('--seed <n>', 'draw the same victims, pauses and operations', integer(0, 2 ** 31 - 1))
    .action((options: CommonOptions & { kills?: number; seed?: number }) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, seed, quick = false } = options;
        const kills = options.kills ?? (quick ? 3 : 20);
        const failover = { kills, seed, servers, durability, memoryBytes, quick };
        return report(options, runFailoverBench(failover));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench failover --quick
  $ rekindle bench failover --kills 20 --json failover.json

Needs Debian's etcd-server. Exit code 1 if a call failed within its deadline, or an acknowledged
write was lost.`,
    );
}

interface MigrationOptions extends CommonOptions {
  bytes?: number;
  moves?: number;
  rate?: number;
  kills: boolean;
}

export function migrationCommand(): Command {
  return withDurability(
    subcommand('migration', 'move a tablet under load, kill who moves it', '3GB'),
  )
    .option('--bytes <size>', 'bytes of values in the tablet (default: 1GB)', parseBytes)
    .option('--moves <n>', 'moves that are measured (with --quick: 2)', integer(1, 1_000))
    .option('--rate <size>', "bytes a second, 0: no limit (default: the server's)", parseBytes)
    .option('--no-kills', 'only measure')
    .action((options: MigrationOptions) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, rate, kills, quick = false } = options;
        const bytes = options.bytes ?? (quick ? BYTES_QUICK : BYTES);
        const moves = options.moves ?? (quick ? 2 : 5);
        const migration = { servers, durability, memoryBytes, bytes, moves, rate, kills, quick };
        return report(options, runMigrationBench(migration));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench migration --quick
  $ rekindle bench migration --json migration.json

Exit code 1 if a call failed within its deadline, an acknowledged write was lost, or a server has
objects or tablets that are not its own.`,
    );
}

export function chaosCommand(): Command {
  return withDurability(subcommand('chaos', 'kill random servers under checked load', '256MB'))
    .option('--kills <n>', 'how many (with --quick: 8)', integer(1, 10_000))
    .option('--seed <n>', 'draw the same victims, pauses and operations', integer(0, 2 ** 31 - 1))
    .option('--down-at-once <n>', 'servers that are down at the same time', integer(1, 2), 1)
    .action((options: CommonOptions & { kills?: number; seed?: number; downAtOnce: number }) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, downAtOnce, seed } = options;
        const quick = options.quick ?? false;
        const kills = options.kills ?? (quick ? 8 : 20);
        const chaos = { kills, seed, servers, durability, memoryBytes, downAtOnce, quick };
        return report(options, runChaos(chaos));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench chaos --kills 20
  $ rekindle bench chaos --kills 20 --seed 4711

Exit code 1 if an acknowledged write was lost, went backwards or was torn.`,
    );
}

interface PlacementOptions extends ReportOptions {
  svg?: string;
  replicas: number;
  scatterWidth: number;
  segments: number;
  failed: number;
  seed: number;
}

export function placementCommand(): Command {
  return withReport(new Command('placement'))
    .description('probability of data loss: random placement against copysets, no cluster')
    .option('--svg <file>', 'draw them')
    .option('--replicas <n>', 'copies of every segment', integer(2, 8), 3)
    .option(
      '--scatter-width <n>',
      'servers that a server shares segments with',
      integer(1, 100),
      10,
    )
    .option('--segments <n>', 'segments of the log of a server (8 MB each)', integer(1, 1e6), 1_000)
    .option('--failed <percent>', 'servers that fail at once', integer(1, 100), 1)
    .option('--seed <n>', 'draw the same placements and failures', integer(0, 2 ** 31 - 1), 4711)
    .action((options: PlacementOptions) =>
      run(() => {
        const { failed: failedPercent, quick = false, ...rest } = options;
        return report(options, runPlacementBench({ ...rest, failedPercent, quick }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench placement --quick
  $ rekindle bench placement --scatter-width 6 --svg placement.svg

Exit code 1 if computation and trials disagree.`,
    );
}

interface ColdStartCommandOptions extends CommonOptions {
  rounds?: number;
  seed?: number;
  powerLoss?: boolean;
  flushIgnored?: boolean;
}

export function coldStartCommand(): Command {
  return withDurability(subcommand('cold-start', 'kill or unplug all, start, check', '128MB'))
    .option('--rounds <n>', 'how many (with --quick: 3)', integer(1, 10_000))
    .option('--seed <n>', 'draw the same moments, operations and cuts', integer(0, 2 ** 31 - 1))
    .option('--power-loss', 'what was not flushed is kept, dropped or torn at random')
    .option('--flush-ignored', 'replicas are not flushed: the run must fail')
    .action((options: ColdStartCommandOptions) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, seed, quick = false } = options;
        const { rounds = quick ? 3 : 50, powerLoss = false, flushIgnored = false } = options;
        const coldStart = runColdStart({
          ...{ rounds, seed, servers, memoryBytes, durability, powerLoss, flushIgnored, quick },
          wholeTimeoutMs: WHOLE_TIMEOUT_MS,
        });
        return report(options, coldStart);
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench cold-start --rounds 50
  $ rekindle bench cold-start --rounds 50 --power-loss --seed 4711

--power-loss needs cargo in a source checkout: it builds the layer that records what is not flushed.
Exit code 1 if an acknowledged write was lost, or a deleted object came back.`,
    );
}

interface FaultsCommandOptions extends CommonOptions {
  schedules?: number;
  seed?: number;
  disk: boolean;
  network?: boolean;
}

export function faultsCommand(): Command {
  return withDurability(subcommand('faults', 'random faults under checked load', '128MB'))
    .option('--schedules <n>', 'how many (with --quick: 5)', integer(1, 100_000))
    .option('--seed <n>', 'of the first schedule; each next one adds 1', integer(0, 2 ** 31 - 1))
    .option('--no-disk', 'no slow, full or broken disks: needs no cargo')
    .option('--network', 'cut parts of the network too: needs root and network namespaces')
    .action((options: FaultsCommandOptions) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, seed, disk, quick = false } = options;
        const { schedules = quick ? 5 : 200, network = false } = options;
        const faults = runFaults({
          ...{ schedules, seed, servers, memoryBytes, durability, disk, network, quick },
        });
        return report(options, faults);
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench faults --schedules 200
  $ rekindle bench faults --schedules 1 --seed 4711

Exit code 1 if something acknowledged was lost, something stale was read, or the cluster was not
whole a minute after the last fault. Prints for each such schedule the command that repeats it.`,
    );
}

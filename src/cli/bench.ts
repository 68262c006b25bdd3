/**
 * `rekindle bench`: the benchmarks of bench/ as commands. Each but `core` and `placement`
 * starts a cluster of its own on this machine; all print a short table, and write the figures as
 * JSON with --json FILE.
 */
import { Command, Option } from 'commander';
import { runChaos } from '../../bench/chaos.js';
import { runColdStart, WHOLE_TIMEOUT_MS } from '../../bench/cold-start.js';
import { runConnectionsBench } from '../../bench/connections.js';
import { runCoreBench } from '../../bench/core.js';
import { runDetectionBench } from '../../bench/detection.js';
import { runDurableBench } from '../../bench/durable.js';
import type { DurablePeer } from '../../bench/durable-sides.js';
import { runFailoverBench } from '../../bench/failover.js';
import { runFaults } from '../../bench/faults.js';
import { runLatencyBench } from '../../bench/latency.js';
import { runMigrationBench } from '../../bench/migration.js';
import { runPlacementBench } from '../../bench/placement.js';
import { runRecoveryBench } from '../../bench/recovery.js';
import { type BenchResult, writeReport } from '../../bench/report.js';
import { runSoakBench } from '../../bench/soak.js';
import { runThroughputBench } from '../../bench/throughput.js';
import { runYcsbBench } from '../../bench/ycsb.js';
import type { WorkloadName } from '../../bench/ycsb-workloads.js';
import type { Durability } from '../rpc/messages.js';
import { linkCommand } from './bench-link.js';
import { EXIT_NO, EXIT_OK, printLine, run } from './command-runner.js';
import {
  integer,
  option,
  parseAllOrNoReplicas,
  parseBytes,
  parseDurability,
  parseDurablePeers,
  parseMemoryBytes,
  parsePeer,
  parseValueSizes,
  parseWorkloads,
} from './option-parsers.js';

interface CommonOptions {
  quick?: boolean;
  json?: string;
  servers: number;
  memory: number;
  durability: Durability;
}

async function report(json: string | undefined, bench: Promise<BenchResult>): Promise<number> {
  const result = await bench;
  await printLine(result.text);
  if (json !== undefined) writeReport(json, result);
  return result.passed ? EXIT_OK : EXIT_NO;
}

/** Options of every benchmark. `memory` is the default of --memory. */
function subcommand(
  name: string,
  description: string,
  memory: string | undefined,
  servers = 5,
): Command {
  const command = new Command(name)
    .description(description)
    .option('--quick', 'at most about a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .addOption(
      option('--servers <n>', 'servers to start', 'SERVERS', integer(4, 64)).default(servers),
    );
  if (memory === undefined) return command;
  return command.addOption(
    option('--memory <size>', 'log memory per server', 'MEMORY', parseMemoryBytes).default(
      parseMemoryBytes(memory),
      memory,
    ),
  );
}

function coreCommand(): Command {
  return new Command('core')
    .description("the native core against the machine's limits, without a cluster")
    .option('--quick', 'at most a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .action((options: { quick?: boolean; json?: string }) =>
      run(() => report(options.json, runCoreBench({ quick: options.quick ?? false }))),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench core --quick
  $ rekindle bench core --json core.json

Needs cargo in a source checkout. Keep the machine quiet: other load makes the figures worse.`,
    );
}

function withDurability(command: Command): Command {
  return command.addOption(
    option('--durability <mode>', 'fsync or replicated', 'DURABILITY', parseDurability).default(
      'fsync',
    ),
  );
}

interface PeerOptions extends CommonOptions {
  peer?: 'redis';
}

function withPeer(command: Command): Command {
  return command.option('--peer <name>', 'measure a peer on the same work: redis', parsePeer);
}

function throughputCommand(): Command {
  const command = new Command('throughput')
    .description('operations a second of one server without replicas')
    .option('--quick', 'at most a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .addOption(
      option('--memory <size>', 'log memory', 'MEMORY', parseMemoryBytes).default(
        parseMemoryBytes('2GB'),
        '2GB',
      ),
    );
  return withPeer(command)
    .action((options: PeerOptions) =>
      run(() => {
        const { memory: memoryBytes, peer, quick = false } = options;
        return report(options.json, runThroughputBench({ memoryBytes, peer, quick }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench throughput --quick
  $ rekindle bench throughput --peer redis --json throughput.json

--peer redis needs Debian's redis-server; a source checkout needs cargo for the load generator.`,
    );
}

function connectionsCommand(): Command {
  return new Command('connections')
    .description('thousands of connections, and a small reader beside bulk loaders')
    .option('--quick', 'at most a minute')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
    .option('--connections <n>', 'how many (with --quick: 1000)', integer(1, 9_000))
    .action((options: { quick?: boolean; json?: string; connections?: number }) =>
      run(() => {
        const { json, quick = false, connections = quick ? 1_000 : 5_000 } = options;
        const memoryBytes = parseMemoryBytes('512MB');
        return report(json, runConnectionsBench({ connections, memoryBytes, quick }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench connections --quick
  $ rekindle bench connections --connections 9000 --json connections.json

A source checkout needs cargo for the loaders. Exit code 1 if a connection was refused.`,
    );
}

function durableCommand(): Command {
  return subcommand('durable', 'writes that are on three disks', '256MB', 4)
    .option(
      '--peer <name>',
      'measure a peer on the same work: redis or etcd; may be given twice',
      parseDurablePeers,
    )
    .action((options: CommonOptions & { peer?: DurablePeer[] }) =>
      run(() => {
        const { servers, memory: memoryBytes, peer: peers = [], quick = false } = options;
        return report(options.json, runDurableBench({ servers, memoryBytes, peers, quick }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench durable --quick
  $ rekindle bench durable --peer redis --peer etcd --json durable.json

Both modes of durability. Peers need Debian's redis-server and etcd-server.`,
    );
}

function latencyCommand(): Command {
  return withDurability(subcommand('latency', 'HDR histograms of gets and puts', '256MB'))
    .option('--rate <n>', 'operations a second of the fixed-rate runs', integer(1, 1e6), 2_000)
    .action((options: CommonOptions & { rate: number }) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, rate, quick = false } = options;
        return report(
          options.json,
          runLatencyBench({ servers, memoryBytes, durability, rate, quick }),
        );
      }),
    )
    .addHelpText('after', '\nExamples:\n  $ rekindle bench latency --quick --rate 5000');
}

interface YcsbOptions extends PeerOptions {
  workloads: WorkloadName[];
  replicas: 0 | 3;
  inFlight: number;
}

function ycsbCommand(): Command {
  const command = subcommand(
    'ycsb',
    'the mixed loads of YCSB, keys of uneven popularity',
    '512MB',
    4,
  )
    .addOption(
      new Option('--workloads <names>', 'which of A to F')
        .argParser(parseWorkloads)
        .default(parseWorkloads('A,B,C,D,E,F'), 'A,B,C,D,E,F'),
    )
    .option('--replicas <n>', '3, or 0: one server of either store', parseAllOrNoReplicas, 3)
    .option('--in-flight <n>', 'operations at a time', integer(1, 10_000), 64);
  return withPeer(withDurability(command))
    .action((options: YcsbOptions) =>
      run(() => {
        const { memory: memoryBytes, json, quick = false, peer, ...rest } = options;
        return report(json, runYcsbBench({ ...rest, memoryBytes, quick, peer }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench ycsb --quick --peer redis
  $ rekindle bench ycsb --workloads A,B --in-flight 256 --json ycsb.json

Rekindle has no scans over keys, so E is named and not measured. --peer redis needs Debian's
redis-server. Exit code 1 if a read did not find its object.`,
    );
}

function soakCommand(): Command {
  return withDurability(
    subcommand('soak', 'whether memory goes on growing under constant load', '128MB', 4),
  )
    .option('--minutes <n>', 'how long (default: 10; with --quick: half a one)', integer(1, 10_000))
    .option('--rate <n>', 'operations a second', integer(1, 100_000), 2_000)
    .option('--svg <file>', 'draw the memory of all processes')
    .action((options: CommonOptions & { minutes?: number; rate: number; svg?: string }) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, rate, svg, quick = false } = options;
        const seconds = 60 * (options.minutes ?? (quick ? 0.5 : 10));
        const soak = { seconds, rate, servers, durability, memoryBytes, svg, quick };
        return report(options.json, runSoakBench(soak));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench soak --json soak.json --svg soak.svg
  $ rekindle bench soak --minutes 60 --rate 5000

Exit code 1 if a call failed or a process ended.`,
    );
}

/** Of values, where a run moves or recovers them. */
const BYTES = 2 ** 30;
const BYTES_QUICK = 128 * 2 ** 20;

interface RecoveryOptions extends CommonOptions {
  bytes?: number;
  value: number[];
  peer?: 'redis';
  svg?: string;
}

function recoveryCommand(): Command {
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
        return report(options.json, runRecoveryBench(bench));
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

function detectionCommand(): Command {
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
        return report(options.json, runDetectionBench(detection));
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

function failoverCommand(): Command {
  return withDurability(subcommand('failover', 'kill leaders and servers under load', '128MB'))
    .option('--kills <n>', 'of leaders, and of servers (with --quick: 3)', integer(1, 10_000))
    .option('--seed <n>', 'draw the same victims, pauses and operations', integer(0, 2 ** 31 - 1))
    .action((options: CommonOptions & { kills?: number; seed?: number }) =>
      run(() => {
        const { servers, memory: memoryBytes, durability, seed, quick = false } = options;
        const kills = options.kills ?? (quick ? 3 : 20);
        const failover = { kills, seed, servers, durability, memoryBytes, quick };
        return report(options.json, runFailoverBench(failover));
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

function migrationCommand(): Command {
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
        return report(options.json, runMigrationBench(migration));
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

function chaosCommand(): Command {
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
        return report(options.json, runChaos(chaos));
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

interface PlacementOptions {
  quick?: boolean;
  json?: string;
  svg?: string;
  replicas: number;
  scatterWidth: number;
  segments: number;
  failed: number;
  seed: number;
}

function placementCommand(): Command {
  return new Command('placement')
    .description('probability of data loss: random placement against copysets, no cluster')
    .option('--quick', 'fewer sizes and trials')
    .option('--json <file>', 'write the figures with machine and parameters to a file')
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
        const { failed: failedPercent, json, quick = false, ...rest } = options;
        return report(json, runPlacementBench({ ...rest, failedPercent, quick }));
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

function coldStartCommand(): Command {
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
        return report(options.json, coldStart);
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

function faultsCommand(): Command {
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
        return report(options.json, faults);
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

export function benchCommand(): Command {
  return new Command('bench')
    .description('measure throughput, latency, recovery, the core; check under chaos')
    .addCommand(throughputCommand())
    .addCommand(durableCommand())
    .addCommand(connectionsCommand())
    .addCommand(linkCommand(report))
    .addCommand(latencyCommand())
    .addCommand(ycsbCommand())
    .addCommand(soakCommand())
    .addCommand(recoveryCommand())
    .addCommand(detectionCommand())
    .addCommand(failoverCommand())
    .addCommand(migrationCommand())
    .addCommand(chaosCommand())
    .addCommand(coldStartCommand())
    .addCommand(faultsCommand())
    .addCommand(coreCommand())
    .addCommand(placementCommand())
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench recovery --quick
  $ rekindle bench throughput --quick --peer redis

Benchmarks start clusters of their own; they need no running one.`,
    );
}

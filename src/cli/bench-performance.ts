/**
 * The commands of `rekindle bench` that ask how fast, and at what cost: operations a second, times,
 * connections, memory, the core alone. What happens when something ends: bench-faults.ts.
 */
import { Command, Option } from 'commander';
import { runConnectionsBench } from '../../bench/connections.js';
import { runCoreBench } from '../../bench/core.js';
import { runDurableBench } from '../../bench/durable.js';
import type { DurablePeer } from '../../bench/durable-sides.js';
import { runLatencyBench } from '../../bench/latency.js';
import { runLinkBench } from '../../bench/link.js';
import { PROFILE_WORKS, type ProfileWork, runProfileBench } from '../../bench/profile.js';
import { runSoakBench } from '../../bench/soak.js';
import { runThroughputBench } from '../../bench/throughput.js';
import { runYcsbBench } from '../../bench/ycsb.js';
import type { WorkloadName } from '../../bench/ycsb-workloads.js';
import {
  type CommonOptions,
  PEERS_HELP,
  type PeerOptions,
  type ReportOptions,
  report,
  subcommand,
  withDurability,
  withPeers,
  withReport,
} from './bench-options.js';
import { run } from './command-runner.js';
import {
  integer,
  option,
  parseAllOrNoReplicas,
  parseDurablePeers,
  parseMemoryBytes,
  parseWorkloads,
} from './option-parsers.js';

export function coreCommand(): Command {
  return withReport(new Command('core'))
    .description("the native core against the machine's limits, without a cluster")
    .action((options: ReportOptions) =>
      run(() => report(options, runCoreBench({ quick: options.quick ?? false }))),
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

export function linkCommand(): Command {
  return withReport(new Command('link'))
    .description('bytes and messages a second from a master to a backup, without a cluster')
    .action((options: ReportOptions) =>
      run(() => report(options, runLinkBench({ quick: options.quick ?? false }))),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench link --quick
  $ rekindle bench link --json link.json

Keep the machine quiet: other load makes the figures worse.`,
    );
}

export function throughputCommand(): Command {
  const command = withReport(new Command('throughput'))
    .description('operations a second of one server without replicas')
    .addOption(
      option('--memory <size>', 'log memory (2GB; with --quick: 1GB)', 'MEMORY', parseMemoryBytes),
    );
  return withPeers(command)
    .action((options: Partial<PeerOptions>) =>
      run(() => {
        const { peer: peers = [], quick = false } = options;
        // All of it is touched before: 12 s a GB where a virtual machine has to get it first.
        const { memory: memoryBytes = parseMemoryBytes(quick ? '1GB' : '2GB') } = options;
        return report(options, runThroughputBench({ memoryBytes, peers, quick }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench throughput --quick
  $ rekindle bench throughput --peer redis --peer memcached --json throughput.json

${PEERS_HELP} A source checkout needs cargo for the
load generator.`,
    );
}

export function profileCommand(): Command {
  return withReport(new Command('profile'))
    .description('where the microseconds of an operation go, on servers and in the client')
    .addOption(
      new Option('--work <name>', 'what is profiled').choices(PROFILE_WORKS).default('get'),
    )
    .option('--in-flight <n>', 'operations at a time', integer(1, 10_000), 64)
    .action((options: ReportOptions & { work: ProfileWork; inFlight: number }) =>
      run(() => {
        const { work, inFlight, quick = false } = options;
        return report(options, runProfileBench({ work, inFlight, quick }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench profile --quick
  $ rekindle bench profile --work durable-put --in-flight 1 --json profile.json

Needs perf (Debian's linux-perf), and the right to sample processes of one's own
(kernel.perf_event_paranoid at most 2). docs/profiles.md says how to read it.`,
    );
}

export function connectionsCommand(): Command {
  return withReport(new Command('connections'))
    .description('thousands of connections, and a small reader beside bulk loaders')
    .option('--connections <n>', 'how many (with --quick: 1000)', integer(1, 9_000))
    .action((options: ReportOptions & { connections?: number }) =>
      run(() => {
        const { quick = false, connections = quick ? 1_000 : 5_000 } = options;
        const memoryBytes = parseMemoryBytes('512MB');
        return report(options, runConnectionsBench({ connections, memoryBytes, quick }));
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

export function durableCommand(): Command {
  return subcommand('durable', 'writes that are on three disks', '256MB', 4)
    .option(
      '--peer <name>',
      'measure a peer on the same work: redis or etcd; may be given twice',
      parseDurablePeers,
    )
    .action((options: CommonOptions & { peer?: DurablePeer[] }) =>
      run(() => {
        const { servers, memory: memoryBytes, peer: peers = [], quick = false } = options;
        return report(options, runDurableBench({ servers, memoryBytes, peers, quick }));
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

interface LatencyOptions extends PeerOptions {
  replicas: 0 | 3;
  rate: number;
}

export function latencyCommand(): Command {
  const command = subcommand('latency', 'HDR histograms of gets and puts', '256MB')
    .option('--replicas <n>', '3, or 0: one server of each store', parseAllOrNoReplicas, 3)
    .option('--rate <n>', 'operations a second of the fixed-rate runs', integer(1, 1e6), 2_000);
  return withPeers(withDurability(command))
    .action((options: LatencyOptions) =>
      run(() => {
        const { memory: memoryBytes, quick = false, peer: peers = [], ...rest } = options;
        return report(options, runLatencyBench({ ...rest, memoryBytes, quick, peers }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench latency --quick --rate 5000
  $ rekindle bench latency --quick --replicas 0 --peer redis --peer memcached

${PEERS_HELP}`,
    );
}

interface YcsbOptions extends PeerOptions {
  workloads: WorkloadName[];
  replicas: 0 | 3;
  inFlight: number;
}

export function ycsbCommand(): Command {
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
  return withPeers(withDurability(command))
    .action((options: YcsbOptions) =>
      run(() => {
        const { memory: memoryBytes, quick = false, peer: peers = [], ...rest } = options;
        return report(options, runYcsbBench({ ...rest, memoryBytes, quick, peers }));
      }),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ rekindle bench ycsb --quick --peer redis
  $ rekindle bench ycsb --workloads A,B --in-flight 256 --json ycsb.json

Rekindle has no scans over keys, so E is named and not measured. Exit code 1 if a read did
not find its object. ${PEERS_HELP}`,
    );
}

export function soakCommand(): Command {
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
        return report(options, runSoakBench(soak));
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

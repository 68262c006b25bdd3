/**
 * `rekindle demo` (`npm start`): the promise in one run. Five servers, three replicas; write, read
 * back, SIGKILL one server, watch the recovery, read everything again and compare every byte.
 * Exit code 0 only if all of it matched. Serves on afterwards unless --exit.
 */
import { Command } from 'commander';
import { waitForRecovery } from '../../bench/cluster-health.js';
import { Dataset } from '../../bench/dataset.js';
import { countWrong, writeDataset } from '../../bench/dataset-transfer.js';
import { recoveryTable } from '../../bench/recovery-table.js';
import { connect, type Table } from '../client/index.js';
import { LocalCluster } from '../cluster/local-cluster.js';
import { formatCount, formatMs } from '../ops/text-table.js';
import { invariant } from '../rpc/errors.js';
import { EXIT_NO, EXIT_OK, printLine, run, untilSignal } from './command-runner.js';
import { reportExit } from './dev.js';
import { COORDINATOR_PORT_DEFAULT, option, parseMemoryBytes } from './option-parsers.js';

interface DemoOptions {
  exit?: boolean;
  memory: number;
}

const SERVERS = 5;
const VICTIM = 2;
const RECOVERY_TIMEOUT_MS = 120_000;
const datasets = [new Dataset('small', 200_000, 100), new Dataset('large', 20_000, 1000)];
const objectCount = datasets.reduce((sum, { count }) => sum + count, 0);

async function write(table: Table): Promise<void> {
  await timed('wrote', async () => {
    for (const dataset of datasets) await writeDataset(table, dataset);
  });
}

/** Returns how many objects are absent or differ in any byte. */
async function check(table: Table, when: string): Promise<number> {
  let wrong = 0;
  await timed(`read ${when} and compared`, async () => {
    for (const dataset of datasets) wrong += await countWrong(table, dataset);
  });
  if (wrong > 0) await printLine(`WRONG: ${formatCount(wrong)} objects are lost or differ`);
  return wrong;
}

async function timed(what: string, work: () => Promise<void>): Promise<void> {
  const start = performance.now();
  await work();
  const ms = performance.now() - start;
  const rate = formatCount(Math.round((objectCount * 1000) / ms));
  await printLine(`${what}: ${formatCount(objectCount)} objects in ${formatMs(ms)} (${rate}/s)`);
}

async function demonstrate(cluster: LocalCluster): Promise<number> {
  await using client = await connect(cluster.url, { timeoutMs: 60_000 });
  const table = await client.createTable('demo', { span: SERVERS });
  const [small, large] = datasets;
  invariant(small !== undefined && large !== undefined, 'two datasets');
  await printLine(
    `writing ${formatCount(small.count)} objects of ${small.valueBytes} B and ` +
      `${formatCount(large.count)} of ${formatCount(large.valueBytes)} B, ` +
      `each acknowledged when it is on ${cluster.replicas} disks`,
  );
  await write(table);
  const wrongBefore = await check(table, 'back');

  const serverId = cluster.serverId(VICTIM);
  const pid = cluster.processes()[VICTIM + 1]?.pid;
  invariant(serverId !== undefined && pid !== undefined, 'the victim runs');
  await printLine(`\nkill -9 ${pid}   (server ${serverId})`);
  await cluster.killServer(VICTIM, 'SIGKILL');
  const report = await waitForRecovery(client, serverId, RECOVERY_TIMEOUT_MS);
  await printLine(`\n${recoveryTable(report)}\n`);

  const wrongAfter = await check(table, 'again');
  const right = wrongBefore + wrongAfter === 0;
  await printLine(
    right
      ? `\nall ${formatCount(objectCount)} objects are there, byte for byte`
      : `\nFAILED: ${wrongBefore} wrong before the crash, ${wrongAfter} after it`,
  );
  return right ? EXIT_OK : EXIT_NO;
}

async function demo(options: DemoOptions): Promise<number> {
  const signalled = untilSignal();
  await printLine(`starting a coordinator and ${SERVERS} servers, three replicas …`);
  const cluster = await LocalCluster.create({
    servers: SERVERS,
    replicas: 3,
    memoryBytes: options.memory,
    coordinatorPort: COORDINATOR_PORT_DEFAULT,
    onUnexpectedExit: reportExit,
  });
  try {
    await cluster.startAll();
    const exitCode = await Promise.race([demonstrate(cluster), signalled.then(() => EXIT_NO)]);
    await printLine(`connection string  ${cluster.url}`);
    if (!options.exit && exitCode === EXIT_OK) {
      await printLine(`logs               ${cluster.logDirectory}`);
      await printLine('\nserving until Ctrl-C; try: npx rekindle status');
      await signalled;
    }
    return exitCode;
  } catch (error) {
    process.stderr.write(`${cluster.logTails()}\n`);
    throw error;
  } finally {
    await cluster.stop();
  }
}

export function demoCommand(): Command {
  return new Command('demo')
    .description('write, kill a server, recover, compare every byte')
    .option('--exit', 'end after the demonstration instead of serving on')
    .addOption(
      option('--memory <size>', 'per server', 'MEMORY', parseMemoryBytes).default(
        256 * 2 ** 20,
        '256MB',
      ),
    )
    .action((options: DemoOptions) => run(() => demo(options)))
    .addHelpText(
      'after',
      `
Examples:
  $ npm start                                keeps serving
  $ npm start -- --exit                      exit code 0 only if all bytes matched`,
    );
}

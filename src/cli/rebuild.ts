/**
 * `rekindle admin rebuild`: the coordinator's state from the disks of all servers, when the storage
 * is lost and no copy of the state is left.
 *
 * Rule: it writes nothing before the operator has typed the cluster's id, and nothing while the
 * disks leave doubts that were not accepted. It never writes to the disks or to a storage.
 */
import { Command } from 'commander';
import {
  type FoundCopy,
  type RebuildPlan,
  readRebuild,
  writeCopy,
} from '../cluster/rebuild-state.js';
import { RekindleError } from '../rpc/errors.js';
import { EXIT_NO, EXIT_OK, printJson, printLine, run } from './command-runner.js';
import { jsonFlag } from './option-parsers.js';

interface RebuildOptions {
  cluster?: string;
  out?: string;
  incomplete?: boolean;
  json?: boolean;
}

function planText({ plan, copies }: { plan: RebuildPlan; copies: FoundCopy[] }): string {
  const { clusterId, settings, disks, logs, released, tables, doubts } = plan;
  const { replicas, durability, allowSameHost } = settings;
  const same = allowSameHost ? ', on one host too' : '';
  const logText = ({ masterId, headFound, headSegmentId, claims }: RebuildPlan['logs'][number]) =>
    `log of server ${masterId}: ${claims.length} tablets, ` +
    (headFound ? `head ${headSegmentId}` : 'its head is missing');
  const tableText = ({ tableId, name, state, tablets }: RebuildPlan['tables'][number]) => {
    const owners = [...new Set(tablets.map(({ serverId }) => serverId))].join(', ');
    const text = `table ${tableId} "${name}": ${tablets.length} tablets of servers ${owners}`;
    return state === 'dropping' ? `${text}; it was dropped` : text;
  };
  const [copy] = copies;
  return [
    `cluster ${clusterId}: ${replicas} replicas, ${durability}${same}`,
    ...disks.map(({ serverId, source }) => `disk of server ${serverId}: ${source}`),
    ...logs.map(logText),
    ...released.map((id) => `log of server ${id}: not needed, it had left the cluster`),
    ...tables.map(tableText),
    ...doubts.map((doubt) => `doubt: ${doubt}`),
    ...(copy === undefined ? [] : [copyText(copy)]),
  ].join('\n');
}

function copyText({ source, term, revision }: FoundCopy): string {
  return (
    `${source} has a copy of the state (term ${term}, revision ${revision}). If that is the ` +
    'newest one, restore it instead: it has all that this has, and more.'
  );
}

/** What to type to have it written. */
function nextStep({ clusterId, disks, doubts }: RebuildPlan, options: RebuildOptions): string {
  const sources = disks.map(({ source }) => source).join(' ');
  const flags = doubts.length > 0 ? ' --incomplete' : '';
  const out = options.out ?? 'state.json';
  return [
    'Nothing was written. With all coordinators and servers stopped:',
    `  rekindle admin rebuild ${sources} --cluster ${clusterId} --out ${out}${flags}`,
  ].join('\n');
}

async function rebuild(sources: string[], options: RebuildOptions): Promise<number> {
  const found = readRebuild(sources);
  const { plan, copies } = found;
  const { cluster, out, incomplete } = options;
  const { clusterId, doubts, copy, ...rest } = plan;
  if (cluster !== undefined && cluster !== clusterId) {
    throw new RekindleError('INVALID_ARGUMENT', `these are the disks of cluster ${clusterId}`);
  }
  const confirmed =
    cluster !== undefined && out !== undefined && (doubts.length === 0 || incomplete);
  if (confirmed) await writeCopy(out, copy);
  const written = confirmed ? out : null;
  if (options.json) await printJson({ clusterId, written, doubts, copies, ...rest });
  else {
    const next = confirmed
      ? `${out} is written: rekindle coordinator --data NEW --restore ${out}`
      : nextStep(plan, options);
    await printLine(`${planText(found)}\n${next}`);
  }
  return confirmed ? EXIT_OK : EXIT_NO;
}

export function rebuildCommand(): Command {
  return new Command('rebuild')
    .description("make the coordinator's state anew from the disks of all servers")
    .argument('<disk...>', 'data folders of servers, or files of `rekindle inspect --json`')
    .option('--cluster <id>', 'the id of the cluster, as a confirmation')
    .option('--out <file>', 'where the state goes; a file that is there is left alone')
    .option('--incomplete', 'accept all doubts: what is not on these disks may be lost')
    .option(...jsonFlag)
    .action((sources: string[], options: RebuildOptions) => run(() => rebuild(sources, options)))
    .addHelpText(
      'after',
      `
For a storage that is lost when no server has a copy of the state (--restore needs one). Stop all
servers, and give the disks of all of them. It reads all that is on them and shows what it finds;
with --cluster and --out it writes a state for \`rekindle coordinator --restore\`, and changes
nothing else. Start the servers afterwards: each log is recovered as after a crash of all of them.

Examples:
  $ rekindle admin rebuild /srv/server-1 /srv/server-2 /srv/server-3
  $ ssh host2 rekindle inspect /srv/server --json > 2.json
  $ rekindle admin rebuild /srv/server 2.json 3.json --cluster 7b0c… --out state.json

Exit codes: 0 written, 1 nothing was written, 2 refused.`,
    );
}

/**
 * `rekindle inspect <data-dir>`: what a stopped server has on its disk, every checksum verified
 * without the native core. Exit code 0 if all bytes are right, 1 if something is damaged, 2 if the
 * folder is not one of a server.
 */
import { Command } from 'commander';
import { type FolderReport, inspectDataFolder } from '../ops/inspector/data-folder.js';
import type { FrameReport, ReplicaReport } from '../ops/inspector/frame-file.js';
import { formatBytes, textTable } from '../ops/text-table.js';
import { EXIT_NO, EXIT_OK, printJson, printLine, run } from './command-runner.js';
import { jsonFlag } from './option-parsers.js';

const titles = [
  ...['frame', 'status', 'master', 'segment', 'kind', 'replica', 'state', 'bytes', 'stored'],
  ...['epoch', 'objects', 'tombstones', 'digest'],
];

function frameRows({ frame, status, replicas }: FrameReport): string[][] {
  if (replicas.length === 0) return [[String(frame), status]];
  return replicas.map((replica) => [String(frame), status, ...replicaCells(replica)]);
}

function replicaCells(replica: ReplicaReport): string[] {
  const { codec, counts, digest, stored } = replica;
  return [
    String(replica.masterId),
    String(replica.segmentId),
    replica.kind ?? '',
    replica.primary ? 'primary' : 'secondary',
    replica.state,
    formatBytes(replica.length),
    codec === 'lz4' ? `${formatBytes(stored)} lz4` : codec,
    String(replica.epoch),
    String(counts.OBJECT ?? 0),
    String(counts.TOMBSTONE ?? 0),
    digest === null ? '' : `${digest.length} segments`,
  ];
}

export function folderText(report: FolderReport): string {
  const { superblock, stateCopy, frames, damage } = report;
  const free = frames.filter(({ status }) => status === 'free').length;
  const lines: string[] = [];
  if (superblock === null) lines.push('superblock         none');
  else {
    lines.push(`cluster            ${superblock.clusterId ?? 'none: never enlisted'}`);
    lines.push(`server             ${superblock.serverId}`);
    lines.push(`fenced masters     ${superblock.fenced.join(', ') || 'none'}`);
  }
  if (stateCopy === null) lines.push('coordinator state  none');
  else {
    const { term, revision, keys } = stateCopy;
    lines.push(`coordinator state  term ${term}, revision ${revision}, ${keys.length} keys`);
  }
  lines.push(`frames             ${frames.length}, ${free} of them free`);
  const used = frames.filter(({ status }) => status !== 'free');
  if (used.length > 0) lines.push('', textTable(titles, used.flatMap(frameRows)));
  lines.push('', ...damage.map((finding) => `damaged: ${finding}`));
  lines.push(damage.length === 0 ? 'all checksums match' : `${damage.length} findings`);
  return lines.join('\n');
}

async function inspect(folder: string, options: { json?: boolean }): Promise<number> {
  const report = inspectDataFolder(folder);
  if (options.json) await printJson(report);
  else await printLine(folderText(report));
  return report.damaged ? EXIT_NO : EXIT_OK;
}

export function inspectCommand(): Command {
  return new Command('inspect')
    .description('verify what a stopped server has on its disk')
    .argument('<data-dir>', 'the folder that the server was given as --data')
    .option(...jsonFlag)
    .addHelpText(
      'after',
      `
A live server changes its frames meanwhile: stop it first. A slot or superblock that was torn by a
power failure is shown as damaged, though a restart does without it.

Examples:
  $ rekindle inspect /srv/server-1
  $ rekindle inspect /srv/server-1 --json`,
    )
    .action((folder: string, options: { json?: boolean }) => run(() => inspect(folder, options)));
}

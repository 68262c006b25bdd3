/**
 * Reads what the disks of a cluster hold and writes the coordinator's state that follows from it,
 * as a copy that `rekindle coordinator --restore` takes. What follows is decided in
 * `coordinator/rebuild.ts`; the disks are only read.
 */
import { readFileSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { type DiskEvidence, planRebuild, type RebuildPlan } from '../coordinator/rebuild.js';
import type { StateCopy } from '../coordinator/state-copy.js';
import { type FolderReport, inspectDataFolder } from '../ops/inspector/data-folder.js';
import { RekindleError } from '../rpc/errors.js';

export type { RebuildPlan };

/** A copy of the state on one of the disks. */
export interface FoundCopy {
  source: string;
  term: number;
  revision: number;
}

/** `sources`: data folders of servers, or what `rekindle inspect --json` said of them. */
export function readRebuild(sources: readonly string[]): {
  plan: RebuildPlan;
  /** The newest first. */
  copies: FoundCopy[];
} {
  const disks = sources.map((source) => ({ source, report: reportOf(source) }));
  const copies = disks
    .flatMap(({ source, report: { stateCopy } }) =>
      stateCopy === null ? [] : [{ source, term: stateCopy.term, revision: stateCopy.revision }],
    )
    .sort((a, b) => b.term - a.term || b.revision - a.revision);
  return { plan: planRebuild(disks, Date.now()), copies };
}

function reportOf(source: string): DiskEvidence['report'] {
  const found = statSync(source, { throwIfNoEntry: false });
  if (found === undefined) {
    throw new RekindleError('INVALID_ARGUMENT', `there is no folder and no file ${source}`);
  }
  if (found.isDirectory()) return inspectDataFolder(source);
  try {
    const report = JSON.parse(readFileSync(source, 'utf8')) as Partial<FolderReport>;
    if (Array.isArray(report.frames) && report.superblock !== undefined) {
      return report as FolderReport;
    }
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new RekindleError('INVALID_ARGUMENT', `${source} is not what rekindle inspect --json says`);
}

/** Flushed when it resolves. A file that is there already is left alone. */
export async function writeCopy(path: string, copy: StateCopy): Promise<void> {
  try {
    const file = await open(path, 'wx', 0o600);
    try {
      await file.writeFile(`${JSON.stringify(copy)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (cause) {
    throw new RekindleError('INVALID_ARGUMENT', `cannot write ${path}: ${cause}`, { cause });
  }
}

/**
 * What a log lacks and what was given up, in words, and lists of segments as an operator writes
 * them: `head,4,9-12`.
 */
import { InvalidArgumentError } from 'commander';
import { formatBytes } from '../ops/text-table.js';
import type { LossReport, RecoveryReport } from '../rpc/messages.js';

/** A list of segments, and whether the head of the log is one of them. */
export interface SegmentNames {
  head: boolean;
  segmentIds: number[];
}

const SEGMENTS_MAX = 100_000;

export function segmentsText({ head, segmentIds }: SegmentNames): string {
  const texts = head ? ['head'] : [];
  const sorted = [...segmentIds].sort((a, b) => a - b);
  for (let from = 0; from < sorted.length; ) {
    let to = from;
    while (sorted[to + 1] === (sorted[to] ?? 0) + 1) to += 1;
    texts.push(to === from ? `${sorted[from]}` : `${sorted[from]}-${sorted[to]}`);
    from = to + 1;
  }
  return texts.join(',');
}

/** The other way round; a parser for an option. */
export function parseSegments(text: string): SegmentNames {
  const names: SegmentNames = { head: false, segmentIds: [] };
  for (const part of text.split(',').map((piece) => piece.trim())) {
    if (part === 'head') {
      names.head = true;
      continue;
    }
    const [, first, last] = /^(\d+)(?:-(\d+))?$/.exec(part) ?? [];
    const [from, to] = [Number(first), Number(last ?? first)];
    if (!Number.isSafeInteger(from) || !Number.isSafeInteger(to) || to < from) {
      throw new InvalidArgumentError(`"${part}" is no segment; write head, 4 or 9-12.`);
    }
    if (names.segmentIds.length + to - from >= SEGMENTS_MAX) {
      throw new InvalidArgumentError(`more than ${SEGMENTS_MAX} segments.`);
    }
    for (let id = from; id <= to; id += 1) names.segmentIds.push(id);
  }
  return names;
}

/** What a recovery waits for of its log. */
export function missingOf({ gap }: RecoveryReport): SegmentNames {
  const doubtful = gap?.doubtful.map(({ segmentId }) => segmentId) ?? [];
  const segmentIds = [...(gap?.missing ?? []), ...doubtful];
  return { head: gap?.headMissing ?? false, segmentIds };
}

const holderStates = {
  silent: 'up, has not answered',
  gone: 'gone',
  emptied: 'came back without its disk',
};

/** Nothing for a recovery that misses nothing. */
export function gapLines(recovery: RecoveryReport): string[] {
  const { gap, crashedServerId } = recovery;
  if (gap === null) return [];
  const lines = ['', `the recovery of server ${crashedServerId} cannot go on:`];
  if (gap.headMissing) lines.push('  no backup has the head of its log');
  if (gap.missing.length > 0) {
    const segments = segmentsText({ head: false, segmentIds: gap.missing });
    lines.push(`  no backup can deliver segments ${segments}`);
  }
  for (const { segmentId, fromByte, servers } of gap.doubtful) {
    const holders = servers.join(', ');
    lines.push(
      `  segment ${segmentId} may lack bytes from ${fromByte} on: acknowledged, perhaps not kept ` +
        `(servers ${holders})`,
    );
  }
  for (const { serverId, host, address, state } of gap.holders) {
    lines.push(
      `  may have it: server ${serverId}, host ${host}, ${address} (${holderStates[state]})`,
    );
  }
  if (gap.holders.length === 0) lines.push('  no backup is left that may have it');
  return lines;
}

export function lossText(loss: LossReport): string {
  const { lossId, serverId, host, acceptedAtMs, operator, reason, headLost, segments } = loss;
  const segmentIds = segments.map(({ segmentId }) => segmentId);
  const named = segmentsText({ head: headLost, segmentIds });
  const bytes = loss.bytesMax === null ? '' : `, at most ${formatBytes(loss.bytesMax)}`;
  const tables = [...new Set(loss.tablets.map(({ table }) => table))].join(', ');
  const why = reason === '' ? '' : `: ${reason}`;
  return (
    `loss ${lossId}: segments ${named} of server ${serverId} (host ${host})${bytes}, ` +
    `given up by ${operator} at ${new Date(acceptedAtMs).toISOString()}${why}; ` +
    `tables ${tables === '' ? '-' : tables}`
  );
}

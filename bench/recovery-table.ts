/**
 * A recovery as people read it: its phases, numbered as everywhere, with their times, and what was
 * moved how fast. Shared by the demo and `bench recovery`.
 */
import { formatBytes, formatCount, formatMs, textTable } from '../src/ops/text-table.js';
import type { RecoveryPhase, RecoveryReport } from '../src/rpc/messages.js';

export const phaseTexts: Record<RecoveryPhase, string> = {
  detect: 'detect the crash',
  fence: 'fence the server, find its log',
  plan: 'plan partitions',
  read: 'read and split on backups',
  replay: 'replay on recovery masters',
  durable: 'make durable',
  ownership: 'take ownership',
  release: 'release',
};

export function megabytesPerSecond(report: RecoveryReport): number {
  return report.bytes / 1e6 / (report.totalMs / 1000);
}

export function objectsPerSecond(report: RecoveryReport): number {
  return report.objects / (report.totalMs / 1000);
}

export function recoveryTable(report: RecoveryReport): string {
  const rows = report.phases.map(({ phase, number, ms }) => [
    `${number}`,
    phaseTexts[phase],
    formatMs(ms),
  ]);
  rows.push(['', 'total', formatMs(report.totalMs)]);
  const moved =
    `${report.segments} segments, ${formatBytes(report.bytes)}, ` +
    `${formatCount(report.objects)} objects, partitions: ${report.partitions.length}; ` +
    `${megabytesPerSecond(report).toFixed(1)} MB/s, ` +
    `${formatCount(Math.round(objectsPerSecond(report)))} objects/s`;
  return `${textTable(['', 'phase', 'time'], rows)}\n${moved}`;
}

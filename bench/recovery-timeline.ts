/**
 * The course of one recovery: when each phase and each partition began and ended, what the
 * machine did meanwhile and so what bounds that phase, drawn for the terminal and as SVG.
 *
 * Bounds are measured, not guessed: a phase in which nearly all cores were busy is bound by them;
 * one in which cores stood idle for the disk, by the disk; else it waited for timers or messages.
 */
import { formatMs, textTable } from '../src/ops/text-table.js';
import type { RecoveryReport } from '../src/rpc/messages.js';
import type { ProcessUsage, Usage } from './process-usage.js';
import { phaseTexts } from './recovery-table.js';
import { svgText } from './svg.js';

export interface TimelineBar {
  label: string;
  kind: 'phase' | 'read' | 'replay' | 'durable';
  /** Milliseconds since the kill. */
  fromMs: number;
  toMs: number;
}

export interface PhaseUsage {
  number: number;
  text: string;
  usage: Usage;
  bound: string;
}

export interface Timeline {
  totalMs: number;
  bars: TimelineBar[];
  phases: PhaseUsage[];
}

const BUSY = 0.85;
const IO_WAIT = 0.25;
/** Shorter phases say nothing: the kernel counts processor time in steps of 10 ms. */
const PHASE_MS_MIN = 40;

export function timelineOf(
  report: RecoveryReport,
  killedAtMs: number,
  usage: ProcessUsage,
): Timeline {
  const bars: TimelineBar[] = [];
  const phases: PhaseUsage[] = [];
  let atMs = report.startedAtMs - killedAtMs;
  let plannedMs = atMs;
  for (const { phase, number, ms } of report.phases) {
    // Detection began with the kill, whoever noticed it first.
    const fromMs = number === 1 ? 0 : atMs;
    bars.push({ label: `${number} ${phase}`, kind: 'phase', fromMs, toMs: atMs + ms });
    const used = usage.between(killedAtMs + fromMs, killedAtMs + atMs + ms);
    phases.push({ number, text: phaseTexts[phase], usage: used, bound: boundOf(used) });
    atMs += ms;
    if (phase === 'plan') plannedMs = atMs;
  }
  for (const { partitionId, serverId, readMs, replayMs, durableMs } of report.partitions) {
    const label = `partition ${partitionId} on server ${serverId ?? '–'}`;
    const part = (kind: 'read' | 'replay' | 'durable', from: number, to: number): void => {
      if (to > from) bars.push({ label, kind, fromMs: plannedMs + from, toMs: plannedMs + to });
    };
    part('read', 0, readMs);
    part('replay', readMs, replayMs);
    part('durable', Math.max(readMs, replayMs), durableMs);
  }
  return { totalMs: atMs, bars, phases };
}

function boundOf({ ms, machineBusy, machineIoWait, cpuMs, systemMs }: Usage): string {
  if (ms < PHASE_MS_MIN) return 'too short to say';
  const kernel = cpuMs === 0 ? 0 : Math.round((systemMs / cpuMs) * 100);
  if (machineBusy >= BUSY) return `processor (${kernel} % of it in the kernel)`;
  if (machineIoWait >= IO_WAIT) return 'disk';
  return 'timers and messages';
}

const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(0);

export function usageTable({ phases }: Timeline): string {
  const rows = phases.map(({ number, text, usage, bound }) => [
    `${number}`,
    text,
    formatMs(usage.ms),
    `${Math.round(usage.machineBusy * 100)} %`,
    `${(usage.cpuMs / 1000).toFixed(2)} s`,
    megabytes(usage.writtenBytes),
    bound,
  ]);
  return textTable(['', 'phase', 'time', 'cores', 'CPU', 'MB written', 'bound by'], rows);
}

const COLUMNS = 64;
const FILL = { phase: '━', read: '░', replay: '▓', durable: '█' } as const;

/** A line for each phase and partition, time from left to right. */
export function timelineText({ bars, totalMs }: Timeline): string {
  const column = (ms: number): number => Math.round((ms / totalMs) * COLUMNS);
  const lines = new Map<string, string[]>();
  for (const { label, kind, fromMs, toMs } of bars) {
    const cells = lines.get(label) ?? Array.from({ length: COLUMNS }, () => ' ');
    lines.set(label, cells);
    const end = Math.max(column(fromMs) + 1, column(toMs));
    cells.fill(FILL[kind], column(fromMs), Math.min(end, COLUMNS));
  }
  const width = Math.max(...[...lines.keys()].map((label) => label.length));
  const text = [...lines].map(([label, cells]) => `${label.padEnd(width)} │${cells.join('')}│`);
  const axis = `0${formatMs(totalMs).padStart(COLUMNS - 1)}`;
  text.push(`${' '.repeat(width)}  ${axis}`);
  text.push(`${' '.repeat(width)}  ░ read and replay  ▓ replay the rest  █ three copies`);
  return text.join('\n');
}

const ROW_PX = 22;
const LEFT_PX = 190;
const PLOT_PX = 720;
const COLORS = {
  phase: '#5b6b7d',
  read: '#8fbcd4',
  replay: '#3d7ea6',
  durable: '#1d3f57',
} as const;

/** A file of its own: opens in any browser. */
export function timelineSvg(title: string, { bars, totalMs }: Timeline): string {
  const labels = [...new Set(bars.map(({ label }) => label))];
  const height = (labels.length + 3) * ROW_PX;
  const x = (ms: number): number => LEFT_PX + (ms / totalMs) * PLOT_PX;
  const y = (label: string): number => (labels.indexOf(label) + 1.5) * ROW_PX;
  const rects = bars.map(({ label, kind, fromMs, toMs }) => {
    const width = Math.max(1, x(toMs) - x(fromMs)).toFixed(1);
    const place = `x="${x(fromMs).toFixed(1)}" y="${y(label)}" width="${width}"`;
    const hint = `<title>${svgText(label)}: ${kind}, ${formatMs(toMs - fromMs)}</title>`;
    return `<rect ${place} height="${ROW_PX - 6}" fill="${COLORS[kind]}">${hint}</rect>`;
  });
  const names = labels.map(
    (label) => `<text x="8" y="${y(label) + ROW_PX - 10}">${svgText(label)}</text>`,
  );
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const anchor = share === 0 ? 'start' : 'end';
    const at = x(share * totalMs).toFixed(1);
    const text = formatMs(share * totalMs);
    return `<text x="${at}" y="${height - 12}" text-anchor="${anchor}">${text}</text>`;
  });
  const size = `width="${LEFT_PX + PLOT_PX + 20}" height="${height}"`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif" font-size="12">`,
    '<rect width="100%" height="100%" fill="white"/>',
    `<text x="8" y="18" font-weight="bold">${svgText(title)}</text>`,
    ...rects,
    ...names,
    ...ticks,
    '</svg>',
    '',
  ].join('\n');
}

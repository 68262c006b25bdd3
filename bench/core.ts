/**
 * `rekindle bench core`: the native core against the limits of the machine, no cluster. Runs the
 * sections of native/bench and those that need Node, joins their figures, and holds them to
 * bench/core-targets.ts. A missed target is shown, not an error; a wrong answer is one.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';
import { startProgress } from '../src/ops/progress.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { asRekindleError } from '../src/rpc/errors.js';
import { coreBinary, type Figure, runCore } from './core-binary.js';
import { measureExecute } from './core-execute.js';
import type { MemoryReport } from './core-memory.js';
import { coreTargets, isMet, type Target, VOLUME_MIN } from './core-targets.js';
import { type BenchOptions, type BenchResult, type Metric, machineLine } from './report.js';

const MEMORY_OBJECTS = 10_000_000;
const LOWER_IS_BETTER = /-ns$|-ms$|memory-per|amplification|bytes-per/;

const QUICK_NOTE = [
  '--quick: one round each; the cleaner is measured for at most 2 s a run, less if time runs out',
  '(cleaner-*-volume: how many times the memory was overwritten), in the full run for 5 times the',
  'memory, twice.',
].join('\n');

type Section = () => Promise<Figure[]>;

async function measureMemory(): Promise<Figure[]> {
  const script = join(fileURLToPath(new URL('.', import.meta.url)), 'core-memory.js');
  const { stdout } = await promisify(execFile)(process.execPath, [script, `${MEMORY_OBJECTS}`]);
  const { rssBytes, dataBytes, writesPerSecond } = JSON.parse(stdout) as MemoryReport;
  return [
    { name: 'memory-per-data-byte', unit: 'ratio', value: rssBytes / dataBytes },
    { name: 'memory-rss', unit: 'bytes', value: rssBytes },
    { name: 'memory-load-writes', unit: 'operations/s', value: writesPerSecond },
  ];
}

/** Runs of `cleaner` and `cleaner-r3` with --quick, and what they may take of the time left. */
const CLEANER_RUNS = 6;
const REPLICATED_RUNS = 2;
const QUICK_MS = 54_000;

/** Milliseconds of each of the next runs, if `runs` may take all that is left. */
function runMs(start: number, runs: number): string {
  return `${Math.max(1, Math.floor((QUICK_MS - (performance.now() - start)) / runs))}`;
}

/** On files in a temporary folder. */
async function measureReplicated(binary: string, times: string[]): Promise<Figure[]> {
  const folder = makeTemporaryFolder('rekindle-bench-');
  try {
    return await runCore(binary, ['cleaner-r3', folder, ...times]);
  } finally {
    removeTemporaryFolder(folder);
  }
}

export async function runCoreBench({ quick }: BenchOptions): Promise<BenchResult> {
  const binary = coreBinary();
  const start = performance.now();
  const native = (name: string): Section => {
    return () => runCore(binary, quick ? [name, '--quick'] : [name]);
  };
  const times = (runs: number): string[] => (quick ? [runMs(start, runs)] : []);
  const sections: Section[] = [
    native('limits'),
    native('checksums'),
    native('compression'),
    native('replay'),
    () => measureExecute(binary, quick),
    measureMemory,
    () => runCore(binary, ['cleaner', ...times(CLEANER_RUNS + REPLICATED_RUNS)]),
    () => measureReplicated(binary, times(REPLICATED_RUNS)),
  ];
  const progress = startProgress('measure', sections.length, 'sections');
  const figures: Figure[] = [];
  const failures: string[] = [];
  for (const section of sections) {
    try {
      figures.push(...(await section()));
    } catch (thrown) {
      // The other sections are worth having all the same.
      failures.push(asRekindleError(thrown).message);
    }
    progress.advance(1);
  }
  progress.stop();
  return result(figures, failures, quick, (performance.now() - start) / 1000);
}

function result(
  figures: readonly Figure[],
  failures: readonly string[],
  quick: boolean,
  seconds: number,
): BenchResult {
  const values = new Map(figures.map(({ name, value }) => [name, value]));
  const rows = coreTargets.map((target) => row(target, values));
  const named = new Set(
    coreTargets.flatMap(({ name, measured, limit }) => [name, measured, limit]),
  );
  const others = figures.filter(({ name }) => !named.has(name));
  const text = [
    `bench core: the native core against this machine's limits, ${seconds.toFixed(0)} s`,
    machineLine(),
    '',
    textTable(['metric', 'value', 'measured', 'limit, this run', 'target', 'met'], rows),
    '',
    textTable(
      ['also measured', 'value', 'unit'],
      others.map(({ name, unit, value }) => [name, significant(value), unit]),
    ),
    ...(quick ? ['', QUICK_NOTE] : []),
    ...failures.map((failure) => `\nfailed: ${failure}`),
  ];
  const metrics: Metric[] = figures.map((figure) => ({
    ...figure,
    higherIsBetter: !LOWER_IS_BETTER.test(figure.name),
  }));
  return {
    name: 'core',
    parameters: { quick },
    metrics,
    text: text.join('\n'),
    passed: failures.length === 0,
  };
}

function row(target: Target, values: ReadonlyMap<string, number>): string[] {
  const { name, style, atLeast, atMost, measured, limit, volume } = target;
  const value = values.get(name);
  const write = (figure: number | undefined): string =>
    figure === undefined ? '–' : significant(figure);
  const unit = style === 'ratio' || style === 'rate' ? '' : style === 'ms' ? ' ms' : ' GB/s';
  const met = value === undefined ? undefined : isMet(target, value);
  const goal = atLeast ?? atMost;
  const short = volume !== undefined && (values.get(volume) ?? 0) < VOLUME_MIN;
  return [
    name,
    `${write(value)}${unit}`,
    measured === undefined ? '' : write(values.get(measured)),
    limit === undefined ? '' : write(values.get(limit)),
    goal === undefined ? '–' : `${atLeast === undefined ? '≤' : '≥'} ${significant(goal)}${unit}`,
    short ? 'too short' : met === undefined ? '–' : met ? 'yes' : 'NO',
  ];
}

/** Three digits that count. */
function significant(value: number): string {
  if (value >= 1000) return formatCount(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

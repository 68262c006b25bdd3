/**
 * What every benchmark hands back: a short table for people, and the same figures with machine,
 * commit and parameters, so that runs can be compared later: as JSON, or as a page
 * (html-report.ts).
 *
 * To add a benchmark: write `bench/<name>.ts` with a `run…` function that returns a
 * `BenchResult`, add a command in src/cli/bench-performance.ts or bench-faults.ts, describe it in
 * docs/benchmarks.md.
 */
import { execFileSync } from 'node:child_process';
import { arch, cpus, platform, release, totalmem } from 'node:os';
import type { Histogram } from 'hdr-histogram-js';

export interface Metric {
  name: string;
  unit: string;
  value: number;
  higherIsBetter: boolean;
  /** What was done, and who did it: figures of one work are drawn beside one another. */
  work?: string;
  store?: string;
}

export function metric(name: string, unit: string, value: number, higherIsBetter = false): Metric {
  return { name, unit, value, higherIsBetter };
}

/** Times of one work on one store. */
export interface Distribution {
  work: string;
  store: string;
  unit: string;
  histogram: Histogram;
}

export interface BenchResult {
  name: string;
  parameters: Record<string, string | number | boolean>;
  metrics: Metric[];
  /** For people. */
  text: string;
  /** Drawn by --html. */
  distributions?: readonly Distribution[];
  /** False if the run found an error in what it measured, e.g. wrong contents. */
  passed: boolean;
}

/** Common options of all benchmarks. */
export interface BenchOptions {
  /** At most about a minute, with fewer objects and rounds. */
  quick: boolean;
}

export interface Machine {
  cpu: string;
  cores: number;
  memoryBytes: number;
  system: string;
  node: string;
}

export function machine(): Machine {
  const processors = cpus();
  return {
    cpu: processors[0]?.model.trim() ?? 'unknown',
    cores: processors.length,
    memoryBytes: totalmem(),
    system: `${platform()} ${release()} ${arch()}`,
    node: process.version,
  };
}

export function machineLine(): string {
  const { cpu, cores, memoryBytes, system, node } = machine();
  return `${cores} × ${cpu}, ${Math.round(memoryBytes / 2 ** 30)} GB, ${system}, Node ${node}`;
}

/** The commit of the working tree; 'unknown' where there is none (an installed package). */
function commit(): string {
  try {
    const described = execFileSync('git', ['describe', '--always', '--dirty'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return described.trim();
  } catch (error) {
    process.stderr.write(`no commit to name in the report: ${(error as Error).message}\n`);
    return 'unknown';
  }
}

/** A result with where, when and of what it was measured. */
export interface Report {
  name: string;
  date: string;
  commit: string;
  machine: Machine;
  parameters: BenchResult['parameters'];
  passed: boolean;
  metrics: readonly Metric[];
  distributions: readonly Distribution[];
}

export function reportOf(result: BenchResult): Report {
  const { name, parameters, metrics, passed, distributions = [] } = result;
  const date = new Date().toISOString();
  return {
    ...{ name, date, commit: commit(), machine: machine() },
    ...{ parameters, passed, metrics, distributions },
  };
}

/** Without the histograms, whose percentiles are metrics. */
export function jsonReport({ distributions: _, ...report }: Report): string {
  return `${JSON.stringify(report, null, 2)}\n`;
}

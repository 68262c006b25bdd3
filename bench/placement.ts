/**
 * `rekindle bench placement`: how probable it is that some segment loses all its replicas when a
 * share of all servers fails at once, as after a power cut that some do not survive. Random
 * placement against copysets, for clusters of several sizes: computed, and tried with groups as the
 * coordinator makes them. Starts nothing and needs no cluster.
 *
 * Every server has a host of its own. With f of N servers gone, a group of R is gone with
 * probability C(f, R) / C(N, R); `1 - (1 - that)^groups` takes groups for independent, which
 * segments placed at random are, and copysets nearly: the trials say how nearly.
 */

import { writeFileSync } from 'node:fs';
import { updateCopysets } from '../src/coordinator/copysets.js';
import { formatCount, textTable } from '../src/ops/text-table.js';
import { randomStream } from './dataset.js';
import { lineChart, type Series } from './line-chart.js';
import { type BenchResult, type Metric, metric } from './report.js';

export interface PlacementBenchOptions {
  quick: boolean;
  replicas: number;
  scatterWidth: number;
  /** Segments of the log of one server. */
  segments: number;
  /** Percent of all servers that fail; at least `replicas` of them do. */
  failedPercent: number;
  seed: number;
  svg?: string | undefined;
}

interface Size {
  servers: number;
  failed: number;
  schemes: Scheme[];
}

interface Scheme {
  name: string;
  groups: number;
  computed: number;
  tried: number;
}

const sizesAll = [10, 20, 50, 100, 200, 500, 1_000];
const sizesQuick = [10, 50, 200];
/** Placing each segment of a larger cluster takes more memory than it is worth. */
const segmentsTriedMax = 2_000_000;
const colors = ['#c0392b', '#2471a3', '#1e8449'];

export function runPlacementBench(options: PlacementBenchOptions): Promise<BenchResult> {
  const next = randomStream(options.seed);
  const random = (): number => next() / 2 ** 32;
  const trials = options.quick ? 2_000 : 20_000;
  const sizes = (options.quick ? sizesQuick : sizesAll)
    .filter((servers) => servers > options.replicas)
    .map((servers) => measure(servers, trials, options, random));
  if (options.svg !== undefined) writeFileSync(options.svg, draw(sizes, options));
  const { quick, replicas, scatterWidth, segments, failedPercent, seed } = options;
  const parameters = { quick, replicas, scatterWidth, segments, failedPercent, seed, trials };
  const text = table(sizes, options, trials);
  const metrics = sizes.flatMap(metricsOf);
  return Promise.resolve({ name: 'placement', parameters, metrics, text, passed: agree(sizes) });
}

function measure(
  servers: number,
  trials: number,
  options: PlacementBenchOptions,
  random: () => number,
): Size {
  const { replicas, segments, scatterWidth } = options;
  const failed = Math.max(replicas, Math.ceil((servers * options.failedPercent) / 100));
  const scheme = (name: string, groups: number, sets: readonly (readonly number[])[]): Scheme => ({
    name,
    groups,
    computed: 1 - (1 - groupLoss(servers, failed, replicas)) ** groups,
    tried: lossShare(sets, servers, failed, trials, random),
  });
  const entries = Array.from({ length: servers }, (_, serverId) => ({
    serverId,
    host: `h${serverId}`,
    rack: null,
  }));
  const copysets = (width: number): number[][] =>
    updateCopysets([], entries, { replicas, scatterWidth: width, allowSameHost: false });
  const total = servers * segments;
  const placed = Array.from({ length: Math.min(total, segmentsTriedMax) }, () =>
    draws(servers, replicas, random),
  );
  const wide = copysets(scatterWidth);
  const narrow = copysets(replicas - 1);
  return {
    servers,
    failed,
    schemes: [
      scheme('random', total, placed),
      scheme(`copysets, width ${scatterWidth}`, wide.length, wide),
      scheme(`copysets, width ${replicas - 1}`, narrow.length, narrow),
    ],
  };
}

/** C(failed, R) / C(servers, R) */
export function groupLoss(servers: number, failed: number, replicas: number): number {
  let probability = 1;
  for (let index = 0; index < replicas; index += 1) {
    probability *= (failed - index) / (servers - index);
  }
  return Math.max(0, probability);
}

/** `count` distinct numbers below `limit`. */
function draws(limit: number, count: number, random: () => number): number[] {
  const drawn: number[] = [];
  while (drawn.length < count) {
    const next = Math.floor(random() * limit);
    if (!drawn.includes(next)) drawn.push(next);
  }
  return drawn;
}

function lossShare(
  sets: readonly (readonly number[])[],
  servers: number,
  failed: number,
  trials: number,
  random: () => number,
): number {
  // Where nearly every trial loses something, or each takes long, a share of them is enough.
  const rounds = Math.max(200, Math.min(trials, Math.floor(2e8 / Math.max(1, sets.length))));
  const gone = new Uint8Array(servers);
  let losses = 0;
  for (let round = 0; round < rounds; round += 1) {
    gone.fill(0);
    for (const serverId of draws(servers, failed, random)) gone[serverId] = 1;
    if (sets.some((set) => set.every((serverId) => gone[serverId] === 1))) losses += 1;
  }
  return losses / rounds;
}

/** Computed and tried say the same: within four standard deviations of 200 trials. */
function agree(sizes: readonly Size[]): boolean {
  return sizes.every(({ schemes }) =>
    schemes.every(({ computed, tried }) => {
      const deviation = Math.sqrt((computed * (1 - computed)) / 200);
      return Math.abs(computed - tried) <= 4 * deviation + 0.01;
    }),
  );
}

function metricsOf({ servers, schemes }: Size): Metric[] {
  return schemes.map(({ name, computed }) => {
    const short = name.replace('copysets, width ', 'copysets-');
    return metric(`loss-${short}-${servers}`, 'probability', computed);
  });
}

function probability(value: number): string {
  if (value === 0) return '0';
  if (value >= 0.0001) return `${(value * 100).toPrecision(3)} %`;
  return `${(value * 100).toExponential(1)} %`;
}

function table(sizes: readonly Size[], options: PlacementBenchOptions, trials: number): string {
  const rows = sizes.flatMap(({ servers, failed, schemes }) =>
    schemes.map(({ name, groups, computed, tried }, index) => [
      index === 0 ? formatCount(servers) : '',
      index === 0 ? formatCount(failed) : '',
      name,
      formatCount(groups),
      probability(computed),
      probability(tried),
    ]),
  );
  const titles = ['servers', 'fail', 'placement', 'groups', 'loss, computed', 'tried'];
  const { replicas, segments, seed } = options;
  return (
    `probability that some segment loses all ${replicas} replicas; ${formatCount(segments)} ` +
    `segments a server, up to ${formatCount(trials)} trials, seed ${seed}\n` +
    textTable(titles, rows)
  );
}

function draw(sizes: readonly Size[], options: PlacementBenchOptions): string {
  const names = sizes[0]?.schemes.map(({ name }) => name) ?? [];
  const series = names.flatMap((name, index): Series[] => {
    const color = colors[index % colors.length] ?? 'black';
    const points = (of: 'computed' | 'tried'): (readonly [number, number])[] =>
      sizes.map(({ servers, schemes }) => [servers, schemes[index]?.[of] ?? 0] as const);
    const tried = points('tried').filter(([, share]) => share > 0);
    return [
      { name, color, points: points('computed') },
      { name: 'tried', color, points: tried, marks: true },
    ];
  });
  return lineChart({
    title: `${options.failedPercent} % of all servers (at least ${options.replicas}) fail at once`,
    xTitle: 'servers',
    yTitle: 'probability that a segment is lost',
    xTicks: sizes.map(({ servers }) => servers),
    yTicks: [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1],
    series,
  });
}

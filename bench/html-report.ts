/**
 * The result of a benchmark as one page that needs nothing else: no scripts, no style or picture
 * from elsewhere. Metrics of one unit are one chart, figures of one work stand beside one another;
 * times are drawn by percentile where the benchmark has their histograms.
 */
import type { Histogram } from 'hdr-histogram-js';
import { type BarGroup, barChart, colorOf, valueText } from './bar-chart.js';
import { percentileUs } from './fixed-rate.js';
import { lineChart } from './line-chart.js';
import type { Distribution, Metric, Report } from './report.js';
import { svgText } from './svg.js';

const STYLE = `body { font: 15px/1.45 sans-serif; max-width: 60rem; margin: 2rem auto }
pre { overflow-x: auto; font-size: 12px; line-height: 1.35 }
td, th { text-align: left; padding: 0.1rem 1rem 0.1rem 0 }
td.value { text-align: right }
.key { display: inline-block; width: 0.8rem; height: 0.8rem; margin: 0 0.3rem 0 1rem }
svg { width: 100%; height: auto }`;

export function htmlReport(report: Report, text: string, machine: string): string {
  const { name, date, commit, metrics, parameters, passed, distributions } = report;
  const stores = storesOf(metrics, distributions);
  const title = `rekindle bench ${name}`;
  const settings = Object.entries(parameters).map(([key, value]) => `${key} ${value}`);
  return [
    '<!DOCTYPE html>',
    '<html lang="en"><head><meta charset="utf-8"/>',
    `<title>${svgText(title)}</title><style>${STYLE}</style></head><body>`,
    `<h1>${svgText(title)}</h1>`,
    paragraph(`${date}, commit ${commit}`),
    paragraph(machine),
    paragraph(settings.join(', ')),
    ...(passed ? [] : [paragraph('FAILED: what it measured was wrong')]),
    `<pre>${svgText(text)}</pre>`,
    `<p>${stores.map((store) => key(stores, store)).join('')}</p>`,
    ...chartsOf(metrics, stores),
    ...distributionsOf(distributions, stores),
    '<h2>All figures</h2>',
    table(metrics),
    '</body></html>',
    '',
  ].join('\n');
}

function paragraph(text: string): string {
  return `<p>${svgText(text)}</p>`;
}

function key(stores: readonly string[], store: string): string {
  const color = colorOf(stores, store);
  return `<span class="key" style="background: ${color}"></span>${svgText(store)}`;
}

/** In the order in which they come up: Rekindle is the first, and alone where none is named. */
function storesOf(metrics: readonly Metric[], distributions: readonly Distribution[]): string[] {
  const named = [...metrics, ...distributions].flatMap(({ store }) => store ?? []);
  return named.length === 0 ? ['rekindle'] : [...new Set(named)];
}

/** One chart for each unit, metrics of one work as one group. */
function chartsOf(metrics: readonly Metric[], stores: readonly string[]): string[] {
  const [ours = ''] = stores;
  return [...grouped(metrics, ({ unit }) => unit)].flatMap(([unit, ofUnit]) => {
    const groups: BarGroup[] = [...grouped(ofUnit, ({ work, name }) => work ?? name)].map(
      ([name, each]) => ({
        name,
        bars: each.map(({ store = ours, value }) => ({ store, value })),
      }),
    );
    return [`<h2>${svgText(unit)}</h2>`, barChart(groups, stores)];
  });
}

function grouped<T>(all: readonly T[], nameOf: (each: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const each of all) {
    const name = nameOf(each);
    groups.set(name, [...(groups.get(name) ?? []), each]);
  }
  return groups;
}

/** One chart for each work, a line for each store. */
function distributionsOf(all: readonly Distribution[], stores: readonly string[]): string[] {
  return [...grouped(all, ({ work }) => work)].map(([work, ofWork]) => {
    const series = ofWork.map(({ store, histogram }) => ({
      name: store,
      color: colorOf(stores, store),
      points: pointsOf(histogram),
    }));
    const points = series.flatMap((each) => each.points);
    const last = Math.max(10, ...points.map(([x]) => x));
    const [ys, unit] = [points.map(([, y]) => y), ofWork[0]?.unit ?? ''];
    const xTicks = powers(1, last);
    return lineChart({
      ...{ title: work, xTitle: 'percentile', yTitle: unit, series },
      ...{ xTicks, yTicks: powers(Math.min(...ys), Math.max(...ys)) },
      xTickText: (tick) => `${Number((100 - 100 / tick).toPrecision(8))} %`,
    });
  });
}

/** Powers of ten from below `min` up to `max` or over it, two at least. */
function powers(min: number, max: number): number[] {
  const first = Math.floor(Math.log10(Math.max(1, min)));
  const last = Math.max(first + 1, Math.ceil(Math.log10(max)));
  return Array.from({ length: last - first + 1 }, (_, index) => 10 ** (first + index));
}

/** x is 1 ÷ the share above the percentile, so that each nine is as wide as the one before. */
function pointsOf(histogram: Histogram): [x: number, y: number][] {
  const points: [number, number][] = [];
  for (let x = 1; x <= Math.max(10, histogram.totalCount); x *= 10 ** (1 / 8)) {
    points.push([x, Math.max(1, percentileUs(histogram, 100 - 100 / x))]);
  }
  return points;
}

function table(metrics: readonly Metric[]): string {
  const rows = metrics.map(({ name, unit, value, higherIsBetter }) => {
    const cells = [svgText(unit), higherIsBetter ? 'higher' : 'lower'];
    const [first, second] = cells.map((cell) => `<td>${cell}</td>`);
    const figure = `<td class="value">${valueText(value)}</td>`;
    return `<tr><td>${svgText(name)}</td>${figure}${first}${second}</tr>`;
  });
  const heads = ['metric', 'value', 'unit', 'better'].map((each) => `<th>${each}</th>`).join('');
  return `<table><tr>${heads}</tr>\n${rows.join('\n')}\n</table>`;
}

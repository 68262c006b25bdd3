/**
 * A line chart as SVG: some series of (x, y) over two axes, both logarithmic or both linear. It
 * draws what it is given; points below the lowest tick lie on the lower edge.
 */
import { svgText } from './svg.js';

export interface Series {
  name: string;
  color: string;
  points: readonly (readonly [x: number, y: number])[];
  /** Marks without a line: what was measured beside what was computed. */
  marks?: boolean;
}

export interface LineChart {
  title: string;
  xTitle: string;
  yTitle: string;
  xTicks: readonly number[];
  yTicks: readonly number[];
  series: readonly Series[];
  /** Else logarithmic. */
  linear?: boolean;
  /** What stands at a tick; default: the number. */
  xTickText?: (tick: number) => string;
}

const width = 760;
const height = 440;
const left = 90;
const right = 190;
const top = 50;
const bottom = 60;

export function lineChart(chart: LineChart): string {
  const [xMin, xMax] = ends(chart.xTicks);
  const [yMin, yMax] = ends(chart.yTicks);
  const scale = chart.linear === true ? linearScale : logarithmicScale;
  const x = scale(xMin, xMax, left, width - right);
  const y = scale(yMin, yMax, height - bottom, top);
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}"`,
    '  font-family="sans-serif">',
    `<rect width="${width}" height="${height}" fill="white"/>`,
    text(left, top - 24, chart.title, 'start', 15),
    text((left + width - right) / 2, height - 16, chart.xTitle, 'middle'),
    `<g transform="rotate(-90 20 ${height / 2})">`,
    text(20, height / 2, chart.yTitle, 'middle'),
    '</g>',
  ];
  for (const tick of chart.xTicks) {
    lines.push(rule(x(tick), top, x(tick), height - bottom));
    const label = chart.xTickText?.(tick) ?? String(tick);
    lines.push(text(x(tick), height - bottom + 18, label, 'middle'));
  }
  for (const tick of chart.yTicks) {
    lines.push(rule(left, y(tick), width - right, y(tick)));
    lines.push(text(left - 8, y(tick) + 4, tickText(tick), 'end'));
  }
  chart.series.forEach((series, index) => {
    const points = series.points.map(([a, b]) => [x(a), y(Math.max(b, yMin))] as const);
    lines.push(...(series.marks === true ? circles(points, series) : [polyline(points, series)]));
    const at = top + 10 + index * 22;
    const key = [[width - right + 14, at] as const, [width - right + 38, at] as const];
    const [, end] = key;
    lines.push(
      ...(series.marks === true ? circles(end ? [end] : [], series) : [polyline(key, series)]),
    );
    lines.push(text(width - right + 46, at + 4, series.name, 'start'));
  });
  return `${[...lines, '</svg>'].join('\n')}\n`;
}

function ends(ticks: readonly number[]): [number, number] {
  return [Math.min(...ticks), Math.max(...ticks)];
}

type Scale = (min: number, max: number, from: number, to: number) => (value: number) => number;

const logarithmicScale: Scale = (min, max, from, to) => (value) =>
  from + ((to - from) * Math.log(value / min)) / Math.log(max / min);

const linearScale: Scale = (min, max, from, to) => (value) =>
  from + ((to - from) * (value - min)) / (max - min);

/** 0 and five to ten steps of 1, 2 or 5 times a power of ten, up to `max` (above 0) or over it. */
export function evenTicks(max: number): number[] {
  const exponent = Math.floor(Math.log10(max)) - 1;
  const step =
    10 ** exponent * ([1, 2, 5].find((each) => max / (each * 10 ** exponent) <= 10) ?? 10);
  const places = Math.max(0, -exponent);
  const count = Math.ceil(max / step);
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toFixed(places)));
}

function tickText(tick: number): string {
  return tick === 0 || tick >= 0.01 ? String(tick) : tick.toExponential(0);
}

function text(x: number, y: number, content: string, anchor: string, size = 12): string {
  const place = `x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}"`;
  return `<text ${place} font-size="${size}">${svgText(content)}</text>`;
}

function rule(x1: number, y1: number, x2: number, y2: number): string {
  const [a, b, c, d] = [x1, y1, x2, y2].map((value) => value.toFixed(1));
  return `<line x1="${a}" y1="${b}" x2="${c}" y2="${d}" stroke="#dddddd"/>`;
}

function polyline(points: readonly (readonly [number, number])[], { color }: Series): string {
  const path = points.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`).join(' ');
  return `<polyline points="${path}" fill="none" stroke="${color}" stroke-width="2"/>`;
}

function circles(points: readonly (readonly [number, number])[], { color }: Series): string[] {
  const style = `r="4" fill="none" stroke="${color}" stroke-width="1.5"`;
  return points.map(([a, b]) => `<circle cx="${a.toFixed(1)}" cy="${b.toFixed(1)}" ${style}/>`);
}

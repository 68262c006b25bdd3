/**
 * Horizontal bars as SVG, in groups: the figures of one unit, those of one work beside one another,
 * a colour for each store. Bars of a group share a scale, and so do all that stand alone: works of
 * one unit may differ a thousandfold. Each bar says its value.
 */
import { svgText } from './svg.js';

export interface BarGroup {
  name: string;
  bars: readonly { store: string; value: number }[];
}

const WIDTH = 900;
const LEFT = 320;
const RIGHT = 150;
const BAR = 16;
const GAP = 10;
const COLORS = ['#1f6feb', '#d1662b', '#2a9d5c', '#8957c9', '#c43d6b', '#8a8d91'];

/** The same for bars and lines of one store. */
export function colorOf(stores: readonly string[], store: string): string {
  return COLORS[stores.indexOf(store) % COLORS.length] ?? 'black';
}

export function barChart(groups: readonly BarGroup[], stores: readonly string[]): string {
  const bars = groups.flatMap((group) => group.bars);
  const alone = scaleOf(groups.flatMap((group) => (group.bars.length === 1 ? group.bars : [])));
  const height = bars.length * BAR + (groups.length + 1) * GAP;
  const lines: string[] = [];
  let y = GAP;
  for (const { name, bars: own } of groups) {
    const scale = own.length === 1 ? alone : scaleOf(own);
    const middle = y + (own.length * BAR) / 2 + 4;
    lines.push(`<text x="${LEFT - 10}" y="${middle}" text-anchor="end">${svgText(name)}</text>`);
    for (const { store, value } of own) {
      const width = Math.max(0, Number.isFinite(value) ? value * scale : 0).toFixed(1);
      const at = `x="${LEFT}" y="${y + 1}" width="${width}" height="${BAR - 2}"`;
      lines.push(
        `<rect ${at} fill="${colorOf(stores, store)}"><title>${svgText(store)}</title></rect>`,
        `<text x="${LEFT + Number(width) + 6}" y="${y + BAR - 4}">${valueText(value)}</text>`,
      );
      y += BAR;
    }
    y += GAP;
  }
  const head =
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" ` +
    'font-family="sans-serif" font-size="12">';
  return [head, ...lines, '</svg>'].join('\n');
}

/** Pixels of 1. */
function scaleOf(bars: BarGroup['bars']): number {
  const finite = bars.map(({ value }) => value).filter((value) => Number.isFinite(value));
  const max = Math.max(...finite, 0);
  return max === 0 ? 0 : (WIDTH - LEFT - RIGHT) / max;
}

/** Four digits are enough to compare; all of large counts. */
export function valueText(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const rounded = Math.abs(value) >= 1_000 ? Math.round(value) : Number(value.toPrecision(4));
  return rounded.toLocaleString('en-US', { maximumFractionDigits: 20 });
}

/**
 * How much a series drifts: robustly, since single samples of a process's memory lie far off (a
 * garbage collection, a large message). Pure.
 */
import { median } from './concurrency.js';

export type Point = readonly [x: number, y: number];

/** Theil and Sen: the median of the slopes between all pairs. 0 of fewer than two points. */
export function theilSenSlope(points: readonly Point[]): number {
  const slopes = points.flatMap(([x, y], index) =>
    points.slice(index + 1).map(([laterX, laterY]) => (laterY - y) / (laterX - x)),
  );
  return slopes.length === 0 ? 0 : median(slopes);
}

/** The later half by x, which must not fall. */
export function secondHalf(points: readonly Point[]): Point[] {
  const [first = 0, last = 0] = [points[0]?.[0], points.at(-1)?.[0]];
  return points.filter(([x]) => x >= (first + last) / 2);
}

/** Slope × length of these points, in percent of their median. */
export function driftPercent(points: readonly Point[]): number {
  const length = (points.at(-1)?.[0] ?? 0) - (points[0]?.[0] ?? 0);
  const level = median(points.map(([, y]) => y));
  return (theilSenSlope(points) * length * 100) / level;
}

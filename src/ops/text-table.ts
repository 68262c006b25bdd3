/**
 * Plain text for people: tables with aligned columns, and numbers with units. The one place that
 * decides how a size, a duration or a rate looks in a terminal; machines get JSON instead.
 */

export type Cell = string | number;

/** Numbers and cells that begin with a digit are set flush right, all others flush left. */
export function textTable(titles: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const text = rows.map((row) => titles.map((_, column) => cellText(row[column] ?? '')));
  const right = titles.map((_, column) =>
    text.every((row) => /^(-?\d|–|$)/.test(row[column] ?? '')),
  );
  const widths = titles.map((title, column) =>
    Math.max(title.length, ...text.map((row) => (row[column] ?? '').length)),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => {
        const width = widths[column] ?? 0;
        return right[column] && text.length > 0 ? cell.padStart(width) : cell.padEnd(width);
      })
      .join('  ')
      .trimEnd();
  const rule = widths.map((width) => '-'.repeat(width)).join('  ');
  return [line(titles), rule, ...text.map(line)].join('\n');
}

function cellText(cell: Cell): string {
  return typeof cell === 'string' ? cell : formatCount(cell);
}

/** 1234567 -> 1,234,567; fractions keep one decimal. */
export function formatCount(value: number): string {
  return value.toLocaleString('en-US', { maximumFractionDigits: Number.isInteger(value) ? 0 : 1 });
}

/** Sizes of memory and data in powers of 1024, the same as `--memory 256MB` reads them. */
export function formatBytes(bytes: number): string {
  if (bytes >= 2 ** 30) return `${(bytes / 2 ** 30).toFixed(2)} GB`;
  if (bytes >= 2 ** 20) return `${(bytes / 2 ** 20).toFixed(1)} MB`;
  if (bytes >= 2 ** 10) return `${(bytes / 2 ** 10).toFixed(1)} KB`;
  return `${bytes} B`;
}

/** Milliseconds below ten seconds, seconds above. */
export function formatMs(ms: number): string {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)} s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms.toFixed(1)} ms`;
}

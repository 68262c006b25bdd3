/** What the drawings of the benchmarks share. */

/** Text as it may stand between tags. */
export function svgText(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

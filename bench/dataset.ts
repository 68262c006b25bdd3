/**
 * Objects whose contents follow from their number, so that millions of them can be checked byte by
 * byte without being remembered. Same index and size, same bytes, in every process.
 */

/** mulberry32: small, seeded, good enough to fill values and to choose victims. */
export function randomStream(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
}

export class Dataset {
  readonly prefix: string;
  readonly count: number;
  readonly valueBytes: number;

  constructor(prefix: string, count: number, valueBytes: number) {
    this.prefix = prefix;
    this.count = count;
    this.valueBytes = valueBytes;
  }

  key(index: number): string {
    return `${this.prefix}:${index.toString().padStart(9, '0')}`;
  }

  value(index: number): Buffer {
    const bytes = Buffer.allocUnsafe(this.valueBytes);
    const next = randomStream(Math.imul(index + 1, 0x9e3779b1) ^ this.valueBytes);
    let at = 0;
    for (; at + 4 <= bytes.length; at += 4) bytes.writeUInt32LE(next(), at);
    for (; at < bytes.length; at++) bytes[at] = next() & 0xff;
    return bytes;
  }

  /** Whether these are the bytes of object `index`. */
  matches(index: number, found: Uint8Array | undefined): boolean {
    return found !== undefined && this.value(index).equals(found);
  }
}

/**
 * What `rekindle bench core` is held to: one row of its table each. Ratios to a limit that was
 * measured in the same run travel from machine to machine; absolute figures are those of the
 * machine in docs/benchmarks.md.
 */
export interface Target {
  name: string;
  /** How the value is written. */
  style: 'ratio' | 'rate' | 'gbps' | 'ms';
  /** Undefined: reported, held to nothing. */
  atLeast?: number;
  atMost?: number;
  /** The figure that the ratio divides, and the limit that it is divided by. */
  measured?: string;
  limit?: string;
  /** How many times the memory was overwritten meanwhile; below `VOLUME_MIN` it says nothing. */
  volume?: string;
}

export const VOLUME_MIN = 0.5;

/** The ratio `<name>-vs-<limit>` of a replay, with both sides of it. */
function replay(name: string, limit: 'memcpy' | 'lz4', atLeast: number): Target {
  return {
    name: `${name}-vs-${limit}`,
    style: 'ratio',
    atLeast,
    measured: `${name}-gbps`,
    limit: `${name}-${limit}-gbps`,
  };
}

/** Overwrites at `percent` live memory as a share of those at 30 %. */
function cleaner(percent: string, size: string, atLeast: number): Target {
  return {
    name: `cleaner-${percent}-vs-30-${size}`,
    style: 'ratio',
    atLeast,
    measured: `cleaner-${percent}-${size}-writes`,
    limit: `cleaner-30-${size}-writes`,
    volume: `cleaner-${percent}-${size}-volume`,
  };
}

export const coreTargets: readonly Target[] = [
  replay('replay-100b', 'memcpy', 0.5),
  replay('replay-1kb', 'memcpy', 1.1),
  replay('replay-overwrites-100b', 'memcpy', 0.18),
  replay('replay-lz4-100b', 'lz4', 0.55),
  replay('replay-lz4-1kb', 'lz4', 0.65),
  { name: 'replay-2-threads-vs-1', style: 'ratio', atLeast: 1.6 },
  { name: 'crc32c-1kb-gbps', style: 'gbps', atLeast: 20 },
  { name: 'crc32c-8mb-gbps', style: 'gbps', atLeast: 20, limit: 'stream-read-gbps' },
  { name: 'lz4-compress-gbps', style: 'gbps', atLeast: 0.6, limit: 'lz4-c-compress-gbps' },
  { name: 'lz4-decompress-gbps', style: 'gbps', atLeast: 3.5, limit: 'lz4-c-decompress-gbps' },
  { name: 'napi-reads-64', style: 'rate', atLeast: 10e6, limit: 'rust-reads-64' },
  { name: 'napi-writes-64', style: 'rate', atLeast: 5e6, limit: 'rust-writes-64' },
  {
    name: 'napi-vs-rust-reads',
    style: 'ratio',
    atLeast: 0.6,
    measured: 'napi-reads-64',
    limit: 'rust-reads-64',
  },
  {
    name: 'napi-vs-rust-writes',
    style: 'ratio',
    atLeast: 0.6,
    measured: 'napi-writes-64',
    limit: 'rust-writes-64',
  },
  cleaner('80', '100b', 0.7),
  cleaner('90', '100b', 0.45),
  cleaner('80', '1kb', 0.7),
  cleaner('90', '1kb', 0.45),
  {
    name: 'cleaner-80-r3',
    style: 'ratio',
    atLeast: 0.35,
    measured: 'cleaner-80-r3-writes',
    limit: 'cleaner-30-r3-writes',
    volume: 'cleaner-80-r3-volume',
  },
  { name: 'cleaner-write-p999-ms', style: 'ms', atMost: 2 },
  { name: 'cleaner-write-amplification', style: 'ratio' },
  { name: 'memory-per-data-byte', style: 'ratio', atMost: 1.75 },
];

/** Undefined where there is no target. */
export function isMet(target: Target, value: number): boolean | undefined {
  if (target.atLeast !== undefined) return value >= target.atLeast;
  if (target.atMost !== undefined) return value <= target.atMost;
  return undefined;
}

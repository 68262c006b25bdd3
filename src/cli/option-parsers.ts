/**
 * How the CLI reads numbers, sizes, addresses: the one place, so that every command understands
 * the same spellings and refuses the same mistakes. Parsers throw commander's error, which names
 * the option.
 */
import { InvalidArgumentError, Option } from 'commander';
import { parseCoordinators } from '../rpc/connection-string.js';
import { asRekindleError } from '../rpc/errors.js';
import type { Durability } from '../rpc/messages.js';

export const URL_DEFAULT = 'rekindle://127.0.0.1:7411';
export const COORDINATOR_PORT_DEFAULT = 7411;

const SEGMENT_BYTES = 8 * 2 ** 20;
const MEMORY_BYTES_MIN = 64 * 2 ** 20;

const sizeUnits: Record<string, number> = {
  '': 1,
  B: 1,
  KB: 2 ** 10,
  KIB: 2 ** 10,
  MB: 2 ** 20,
  MIB: 2 ** 20,
  GB: 2 ** 30,
  GIB: 2 ** 30,
};

/** 1024, 64KB, 256MB, 1.5GB; units are powers of 1024. */
export function parseBytes(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  const unit = sizeUnits[(match?.[2] ?? '').toUpperCase()];
  if (match === null || unit === undefined) {
    throw new InvalidArgumentError(`"${text}" is not a size; write 65536, 64KB, 256MB or 1.5GB.`);
  }
  const bytes = Math.round(Number(match[1]) * unit);
  if (!Number.isSafeInteger(bytes)) throw new InvalidArgumentError(`"${text}" is too large.`);
  return bytes;
}

const VALUE_BYTES_MAX = 2 ** 20;

/** 100,1KB: sizes of a value, each from 1 byte to 1 MB. */
export function parseValueSizes(text: string): number[] {
  return text.split(',').map((part) => {
    const bytes = parseBytes(part);
    if (bytes >= 1 && bytes <= VALUE_BYTES_MAX) return bytes;
    throw new InvalidArgumentError(`"${part}" is not the size of a value, 1 to 1MB.`);
  });
}

/** Log memory: at least 64 MB, rounded up to whole segments. */
export function parseMemoryBytes(text: string): number {
  const bytes = parseBytes(text);
  if (bytes < MEMORY_BYTES_MIN) {
    throw new InvalidArgumentError(`"${text}" is too little; a server needs at least 64MB.`);
  }
  return Math.ceil(bytes / SEGMENT_BYTES) * SEGMENT_BYTES;
}

/** A factor from 1 to 100: 2, 1.5. */
export function parseFactor(text: string): number {
  const factor = /^\d+(\.\d+)?$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (!(factor >= 1 && factor <= 100)) {
    throw new InvalidArgumentError(`"${text}" is not a number from 1 to 100.`);
  }
  return factor;
}

/** A parser of whole numbers from `min` to `max`. */
export function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^-?\d+$/.test(text.trim()) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) {
      throw new InvalidArgumentError(`"${text}" is not a whole number from ${min} to ${max}.`);
    }
    return value;
  };
}

/** 500ms, 10s, 2m; a bare number is milliseconds. */
export function parseDurationMs(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m)?$/.exec(text.trim());
  if (match === null) {
    throw new InvalidArgumentError(`"${text}" is not a duration; write 500ms, 10s or 2m.`);
  }
  const factor = { ms: 1, s: 1000, m: 60_000 }[match[2] ?? 'ms'] ?? 1;
  return Math.round(Number(match[1]) * factor);
}

/** host:port */
export function parseAddress(text: string): string {
  const match = /^(\[[0-9a-f:]+\]|[^:\s/]+):(\d{1,5})$/i.exec(text.trim());
  if (match === null || Number(match[2]) < 1 || Number(match[2]) > 65_535) {
    throw new InvalidArgumentError(`"${text}" is not an address; write host:port.`);
  }
  return text.trim();
}

/** host:port,host:port or rekindle+srv://name, as text. */
export function parseCoordinatorPlace(text: string): string {
  try {
    parseCoordinators(text);
    return text;
  } catch (error) {
    throw new InvalidArgumentError(asRekindleError(error).message);
  }
}

export function parseDurability(text: string): Durability {
  if (text === 'fsync' || text === 'replicated') return text;
  throw new InvalidArgumentError(`"${text}" is not a mode; write fsync or replicated.`);
}

/** An option that `REKINDLE_<NAME>` can set too; the command line wins. */
export function option<T>(
  flags: string,
  description: string,
  environmentName: string,
  parse?: (text: string) => T,
): Option {
  const created = new Option(flags, description).env(`REKINDLE_${environmentName}`);
  return parse === undefined ? created : created.argParser(parse);
}

const YES = /^(1|true|yes|on)$/i;

/**
 * A flag that `REKINDLE_<NAME>` can set too. Commander takes any text for yes, and
 * REKINDLE_INSECURE=0 must not open a server to the world: only 1, true, yes and on do.
 */
export function flag(flags: string, description: string, environmentName: string): Option {
  const text = process.env[`REKINDLE_${environmentName}`];
  const created = new Option(flags, description);
  return text === undefined || YES.test(text.trim())
    ? created.env(`REKINDLE_${environmentName}`)
    : created;
}

/** What holds for a cluster; the first three for its whole life. */
export function clusterOptions(replicasDefault: string): Option[] {
  return [
    option(
      '--replicas <n>',
      `copies of every segment (default: ${replicasDefault}); 0: in one memory only`,
      'REPLICAS',
      integer(0, 8),
    ),
    option(
      '--durability <mode>',
      'fsync (default): acknowledged = on R disks; replicated: in R memories',
      'DURABILITY',
      parseDurability,
    ),
    flag('--allow-same-host', 'replicas may share a host (tests)', 'ALLOW_SAME_HOST'),
    option(
      '--scatter-width <n>',
      'copysets: servers that a server shares segments with; 0 (default): all',
      'SCATTER_WIDTH',
      integer(0, 10_000),
    ),
  ];
}

export function urlOption(): Option {
  return option('-u, --url <url>', 'the cluster, as `rekindle dev` prints it', 'URL').default(
    URL_DEFAULT,
  );
}

export function timeoutOption(): Option {
  return option('--timeout <duration>', 'give up after', 'TIMEOUT', parseDurationMs).default(
    10_000,
    '10s',
  );
}

export const jsonFlag = ['--json', 'print JSON for programs'] as const;

type DurablePeer = 'redis' | 'etcd';

/** One of several `--peer`s; those before it are given by commander. */
export function parseDurablePeers(text: string, before: DurablePeer[] | undefined): DurablePeer[] {
  if (text === 'redis' || text === 'etcd')
    return [...new Set<DurablePeer>([...(before ?? []), text])];
  throw new InvalidArgumentError(`"${text}" is not a known peer; write redis or etcd.`);
}

const workloadNames = ['A', 'B', 'C', 'D', 'E', 'F'] as const;

/** A,B,F: workloads of YCSB. */
export function parseWorkloads(text: string): (typeof workloadNames)[number][] {
  return text.split(',').map((part) => {
    const found = workloadNames.find((name) => name === part.trim().toUpperCase());
    if (found !== undefined) return found;
    throw new InvalidArgumentError(`"${part}" is not a workload; write A, B, C, D, E or F.`);
  });
}

/** Copies of what is written: Rekindle's own number, or none. */
export function parseAllOrNoReplicas(text: string): 0 | 3 {
  if (text === '0') return 0;
  if (text === '3') return 3;
  throw new InvalidArgumentError(`"${text}" is neither 0 nor 3.`);
}

export function parsePeer(text: string): 'redis' {
  if (text === 'redis') return text;
  throw new InvalidArgumentError(`"${text}" is not a known peer; write redis.`);
}

const peerNames = ['redis', 'valkey', 'memcached', 'etcd'] as const;

/** One of several `--peer`s; those before it are given by commander. */
export function parsePeers(
  text: string,
  before: (typeof peerNames)[number][] | undefined,
): (typeof peerNames)[number][] {
  const found = peerNames.find((name) => name === text);
  if (found !== undefined) return [...new Set([...(before ?? []), found])];
  const known = 'redis, valkey, memcached or etcd';
  throw new InvalidArgumentError(`"${text}" is not a known peer; write ${known}.`);
}

/**
 * What `perf script` prints, sample by sample, and where each was spent. Pure: text in, names out.
 *
 * A sample belongs to the innermost frame that says something: what the C library or a builtin of
 * V8 does for the native core or for JavaScript counts as theirs. What the kernel does is told
 * apart by the system call.
 */

/** `--fields` that `readSamples` understands. */
export const PERF_FIELDS = 'comm,pid,tid,ip,sym,dso';

export interface Frame {
  symbol: string;
  /** File of the code; of compiled JavaScript it is perf's map. */
  object: string;
}

export interface Sample {
  pid: number;
  tid: number;
  /** The thread's name. */
  thread: string;
  /** Innermost first. */
  frames: Frame[];
}

const SCRIPT = 'JS:';
const HEAD = /^(\S.*?)\s+(\d+)\/(\d+)/;
const FRAME = /^\s+[0-9a-f]+ (.*?) \((.*?)(?: \(deleted\))?\)$/;
const COLLECTION = /Heap::|Scaveng|MarkCompact|Marking|Sweep|Evacuat/;
const COMPILATION = /Compil|[Tt]urbo|Maglev|Baseline::|BaselineBatch|GraphReducer|Interpreter::/;
/** In this order: a send wakes threads, and a poll takes locks. */
const KERNEL: readonly (readonly [string, RegExp])[] = [
  ['kernel: sending', /^(tcp_sendmsg|__sys_sendto|sock_write_iter)/],
  ['kernel: receiving', /^(tcp_recvmsg|__sys_recvfrom|sock_read_iter)/],
  ['kernel: flushing', /fdatasync|fsync|issue_flush/],
  ['kernel: writing to disk', /io_submit|io_getevents|pwrite|file_write_iter/],
  ['kernel: waiting for events', /epoll|^ep_/],
  ['kernel: waking threads', /futex|eventfd/],
  ['kernel: page faults', /page_fault/],
];

/** Lines that are neither head nor frame are skipped, and samples without a stack. */
export async function* readSamples(lines: AsyncIterable<string>): AsyncGenerator<Sample> {
  let sample: Sample | null = null;
  for await (const line of lines) {
    const frame = FRAME.exec(line);
    if (frame !== null) {
      sample?.frames.push({ symbol: frame[1] ?? '', object: frame[2] ?? '' });
      continue;
    }
    if (sample !== null && sample.frames.length > 0) {
      yield sample;
      sample = null;
    }
    const head = HEAD.exec(line);
    if (head === null) continue;
    const [, thread = '', pid, tid] = head;
    sample = { thread, pid: Number(pid), tid: Number(tid), frames: [] };
  }
  if (sample !== null && sample.frames.length > 0) yield sample;
}

function isKernel({ object }: Frame): boolean {
  return object.startsWith('[kernel') || object.startsWith('[guest.kernel');
}

function kernelPlace(frames: readonly Frame[]): string {
  const inKernel = frames.filter(isKernel);
  const found = KERNEL.find(([, names]) => inKernel.some(({ symbol }) => names.test(symbol)));
  return found?.[0] ?? 'kernel: other';
}

/** Where the time of a sample went. */
export function placeOf({ pid, tid, thread, frames }: Sample): string {
  const innermost = frames[0];
  const inKernel = innermost !== undefined && isKernel(innermost);
  if (tid !== pid) {
    // Workers of V8 have the name of the process.
    if (thread === 'node') return 'threads of V8 (collection, compilation)';
    return `thread ${thread}, ${inKernel ? 'kernel' : 'own code'}`;
  }
  if (inKernel) return kernelPlace(frames);
  if (frames.some(({ symbol }) => COLLECTION.test(symbol))) return 'garbage collection';
  if (frames.some(({ symbol }) => COMPILATION.test(symbol))) return 'compilation';
  for (const { symbol, object } of frames) {
    if (object.includes('uws_')) return 'uWebSockets.js';
    if (object.endsWith('.node')) return 'native core';
    if (symbol.startsWith(SCRIPT)) {
      return symbol.includes(' node:') ? 'JavaScript of Node' : 'JavaScript of Rekindle';
    }
  }
  return 'Node, libuv, V8';
}

/** The functions of Rekindle on the stack, each once, as `function file:line`. */
export function scriptsOf({ frames }: Sample): Set<string> {
  const names = new Set<string>();
  for (const { symbol } of frames) {
    if (!symbol.startsWith(SCRIPT)) continue;
    const [, name, file] =
      /^JS:[*^~!]?(.*?) ?(?:file:\/\/)?\S*?\/build\/(\S+):\d+$/.exec(symbol) ?? [];
    if (file !== undefined) names.add(`${name === '' ? '(anonymous)' : name} ${file}`);
  }
  return names;
}

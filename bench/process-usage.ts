/**
 * What processes use over time, read from Linux's /proc every few milliseconds: processor time of
 * each, bytes of their disk traffic, and how busy the whole machine was. Sums between two moments
 * are taken from the nearest samples; times of the kernel come in steps of 10 ms.
 */
import { readFileSync } from 'node:fs';
import { cpus } from 'node:os';

const SAMPLE_MS = 20;
/** USER_HZ, which is 100 on every Linux that Node runs on. */
const TICK_MS = 10;

export interface ProcessToWatch {
  name: string;
  pid: number;
}

/** Sums since the process, or the machine, started. */
interface Counters {
  userMs: number;
  systemMs: number;
  readBytes: number;
  writtenBytes: number;
}

interface Sample {
  atMs: number;
  machineBusyMs: number;
  machineIoWaitMs: number;
  processes: Counters[];
}

/** Between two moments; all processes together. */
export interface Usage {
  ms: number;
  cpuMs: number;
  systemMs: number;
  readBytes: number;
  writtenBytes: number;
  /** Share of the machine's cores that were busy, by whatever process: 0 to 1. */
  machineBusy: number;
  /** Share of time in which a core had nothing to do but wait for a disk: 0 to 1. */
  machineIoWait: number;
}

export class ProcessUsage {
  readonly #processes: readonly ProcessToWatch[];
  readonly #samples: Sample[] = [];
  readonly #timer: NodeJS.Timeout;

  constructor(processes: readonly ProcessToWatch[]) {
    this.#processes = processes;
    this.#take();
    this.#timer = setInterval(() => this.#take(), SAMPLE_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#take();
  }

  /** From one moment to another, both of `Date.now()`; of all processes, or of those named. */
  between(fromMs: number, toMs: number, name?: (name: string) => boolean): Usage {
    const from = this.#nearest(fromMs);
    const to = this.#nearest(toMs);
    const cores = Math.max(1, (to.atMs - from.atMs) * cpus().length);
    const sum = (of: (counters: Counters) => number): number =>
      this.#processes.reduce((total, process, index) => {
        if (name !== undefined && !name(process.name)) return total;
        const [before, after] = [from.processes[index], to.processes[index]];
        return before && after ? total + of(after) - of(before) : total;
      }, 0);
    return {
      ms: toMs - fromMs,
      cpuMs: sum(({ userMs, systemMs }) => userMs + systemMs),
      systemMs: sum(({ systemMs }) => systemMs),
      readBytes: sum(({ readBytes }) => readBytes),
      writtenBytes: sum(({ writtenBytes }) => writtenBytes),
      machineBusy: Math.min(1, (to.machineBusyMs - from.machineBusyMs) / cores),
      machineIoWait: Math.min(1, (to.machineIoWaitMs - from.machineIoWaitMs) / cores),
    };
  }

  #nearest(atMs: number): Sample {
    const first = this.#samples[0] as Sample;
    return this.#samples.reduce(
      (best, each) => (Math.abs(each.atMs - atMs) < Math.abs(best.atMs - atMs) ? each : best),
      first,
    );
  }

  #take(): void {
    const last = this.#samples.at(-1);
    const machine = machineCounters();
    const processes = this.#processes.map(
      ({ pid }, index) => countersOf(pid) ?? last?.processes[index] ?? NOTHING,
    );
    this.#samples.push({ atMs: Date.now(), ...machine, processes });
  }
}

/** Of these processes since they started; those that are gone count nothing. */
export function processorMsOf(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => {
    const { userMs, systemMs } = countersOf(pid) ?? NOTHING;
    return sum + userMs + systemMs;
  }, 0);
}

/** Of all its reads and writes so far, sockets included; send(2) and recv(2) are not counted. */
export function transferredBytesOf(pid: number): { readBytes: number; writtenBytes: number } {
  const io = ifThere(() => readFileSync(`/proc/${pid}/io`, 'latin1')) ?? '';
  return {
    readBytes: Number(/^rchar: (\d+)/m.exec(io)?.[1]),
    writtenBytes: Number(/^wchar: (\d+)/m.exec(io)?.[1]),
  };
}

/** Memory that it has in DRAM; undefined once it is gone. */
export function residentBytesOf(pid: number): number | undefined {
  return ifThere(() => {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const kilobytes = /^VmRSS:\s*(\d+) kB/m.exec(status)?.[1];
    // A process that has ended and not been waited for has no memory.
    return kilobytes === undefined ? undefined : Number(kilobytes) * 1024;
  });
}

const NOTHING: Counters = { userMs: 0, systemMs: 0, readBytes: 0, writtenBytes: 0 };

/** undefined once the process is gone: it keeps what was read last. */
function countersOf(pid: number): Counters | undefined {
  return ifThere(() => {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // The command's name, in brackets, may hold anything; fields count from behind it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const io = readFileSync(`/proc/${pid}/io`, 'latin1');
    return {
      userMs: Number(fields[11]) * TICK_MS,
      systemMs: Number(fields[12]) * TICK_MS,
      readBytes: Number(/^read_bytes: (\d+)/m.exec(io)?.[1]),
      writtenBytes: Number(/^write_bytes: (\d+)/m.exec(io)?.[1]),
    };
  });
}

/** What is read of a process, or undefined if it has ended. */
export function ifThere<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return undefined;
    throw error;
  }
}

function machineCounters(): Pick<Sample, 'machineBusyMs' | 'machineIoWaitMs'> {
  const line = readFileSync('/proc/stat', 'latin1').split('\n', 1)[0] ?? '';
  const [
    user = 0,
    nice = 0,
    system = 0,
    ,
    ioWait = 0,
    interrupt = 0,
    softInterrupt = 0,
    steal = 0,
  ] = line.trim().split(/\s+/).slice(1).map(Number);
  const busy = user + nice + system + interrupt + softInterrupt + steal;
  return { machineBusyMs: busy * TICK_MS, machineIoWaitMs: ioWait * TICK_MS };
}

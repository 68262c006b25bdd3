/**
 * Named places at which a test may hurt the process (docs/faults.md lists them all):
 * `REKINDLE_FAULT="create-2=crash"` ends it with SIGKILL at its first arrival there, so nothing is
 * flushed, closed or said good-bye to. `REKINDLE_FAULT_FILE` names a file with the same text, which
 * is read again whenever it changes, so that a running process can be armed.
 *
 *   faults = fault[,fault…]      fault = name=kind[:argument][*times]      times: 1 unless given
 *   crash           SIGKILL
 *   error[:CODE]    the step fails with this code (DISK_ERROR)
 *   delay[:MS]      the step takes so much longer (1000)
 *   drop            what the step waited for never came: TIMEOUT; a message: it is lost
 *   close           messages only: their connection is lost
 *   corrupt         messages only: their last byte is wrong
 *
 * `REKINDLE_FAULT_TIMEOUT_MS=2500` bounds the time-outs of calls, so that a test need not wait 10 s
 * for each message that was lost.
 *
 * Names of steps are numbered in the order in which an operation passes them; those of messages
 * are in message-fault.ts. Without the variables a fault point costs one comparison.
 */
import { appendFileSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { RekindleError } from './errors.js';
import { STATUS, type StatusCode } from './status.js';

export type FaultPoint = (name: string) => Promise<void> | void;

export const FAULT_KINDS = ['crash', 'error', 'delay', 'drop', 'close', 'corrupt'] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

export interface Fault {
  readonly kind: FaultKind;
  readonly errorCode: StatusCode;
  readonly delayMs: number;
  /** Arrivals that it will still strike. */
  timesLeft: number;
}

const DELAY_MS_DEFAULT = 1_000;
const FILE_POLL_MS = 20;

/** Parses the text above; throws on what it does not know. */
export function parseFaults(text: string): Map<string, Fault> {
  const faults = new Map<string, Fault>();
  for (const part of text.split(',')) {
    const match = /^([\w.-]+)=([a-z]+)(?::(\w+))?(?:\*(\d+))?$/.exec(part.trim());
    const [, name = '', word = '', argument, times] = match ?? [];
    const kind = FAULT_KINDS.find((each) => each === word);
    if (kind === undefined) {
      const kinds = FAULT_KINDS.join('|');
      throw new Error(`REKINDLE_FAULT: expected name=${kinds}[:argument][*times], found "${part}"`);
    }
    const errorCode = kind === 'error' ? (argument ?? 'DISK_ERROR') : 'INTERNAL';
    if (!(errorCode in STATUS)) throw new Error(`REKINDLE_FAULT: no code ${errorCode}`);
    const delayMs = kind === 'delay' ? Number(argument ?? DELAY_MS_DEFAULT) : 0;
    if (!Number.isInteger(delayMs)) throw new Error(`REKINDLE_FAULT: no delay "${argument}"`);
    faults.set(name, {
      kind,
      errorCode: errorCode as StatusCode,
      delayMs,
      timesLeft: Number(times ?? 1),
    });
  }
  return faults;
}

const fromEnvironment = process.env.REKINDLE_FAULT;
const file = process.env.REKINDLE_FAULT_FILE;
let armed: Map<string, Fault> | null = fromEnvironment ? parseFaults(fromEnvironment) : null;
let fileText = '';

/** Tests wait for these lines: what is armed, what has struck. */
function report(line: string): void {
  if (file) appendFileSync(`${file}.log`, `${line}\n`);
}

function readFaultFile(path: string): void {
  const text = readFileSync(path, 'utf8').trim();
  if (text === fileText) return;
  fileText = text;
  armed = text === '' ? null : parseFaults(text);
  report(`armed ${text}`);
}

if (file) {
  readFaultFile(file);
  setInterval(() => readFaultFile(file), FILE_POLL_MS).unref();
}

const timeoutMsMax = Number(process.env.REKINDLE_FAULT_TIMEOUT_MS ?? Number.POSITIVE_INFINITY);

/** What is waited for an answer, of calls that set no time-out of their own. */
export function boundedTimeoutMs(timeoutMs: number): number {
  return Math.min(timeoutMs, timeoutMsMax);
}

export function faultsAreArmed(): boolean {
  return armed !== null;
}

/** The fault that strikes at this arrival, if there is one. */
export function takeFault(name: string): Fault | undefined {
  const fault = armed?.get(name);
  if (fault === undefined || fault.timesLeft === 0) return undefined;
  fault.timesLeft -= 1;
  report(`struck ${name}=${fault.kind}`);
  if (fault.kind === 'crash') process.kill(process.pid, 'SIGKILL');
  return fault;
}

/** What a step passes; does nothing unless its name is armed. */
export const faultPoint: FaultPoint = (name) => {
  if (armed === null) return;
  const fault = takeFault(name);
  return fault === undefined ? undefined : inflict(name, fault);
};

async function inflict(name: string, { kind, errorCode, delayMs }: Fault): Promise<void> {
  switch (kind) {
    case 'crash':
      // The signal may be delivered a moment later: nothing may happen in between.
      return new Promise<void>(() => undefined);
    case 'delay':
      return sleep(delayMs);
    case 'error':
      throw new RekindleError(errorCode, `injected at ${name}`);
    case 'drop':
      throw new RekindleError('TIMEOUT', `injected at ${name}: no answer`);
    case 'close':
    case 'corrupt':
      throw new RekindleError('INVALID_ARGUMENT', `${kind} is for messages; ${name} is a step`);
  }
}

/**
 * Arms running processes: one file each (REKINDLE_FAULT_FILE, src/rpc/fault-point.ts), and beside
 * it what the process reports. Rule: disarm before a process is started again, or it is hurt anew.
 */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { RekindleError } from '../src/rpc/errors.js';

const ARMED_TIMEOUT_MS = 10_000;
const POLL_MS = 20;

/** Resolves with false if it has not come true in time. */
export async function untilTrue(test: () => boolean, timeoutMs: number): Promise<boolean> {
  const end = performance.now() + timeoutMs;
  while (!test()) {
    if (performance.now() > end) return false;
    await delay(POLL_MS);
  }
  return true;
}

export class FaultFiles {
  readonly #directory: string;
  #armings = 0;

  /** `directory`: of the cluster. */
  constructor(directory: string) {
    this.#directory = join(directory, 'faults');
    mkdirSync(this.#directory, { recursive: true });
  }

  /** For `LocalClusterOptions.environmentOf`. */
  environmentOf(name: string): Record<string, string> {
    this.disarm(name);
    return { REKINDLE_FAULT_FILE: this.#file(name) };
  }

  /** Resolves when the process has read it. */
  async arm(name: string, text: string): Promise<void> {
    // A step that nobody passes makes each text a new one, which the process sees and reports even
    // if it missed that it was disarmed.
    const numbered = `${text},arming-${this.#armings++}=delay`;
    writeFileSync(this.#reportFile(name), '');
    // Whole or not at all: the process may read at any moment.
    writeFileSync(`${this.#file(name)}.new`, numbered);
    renameSync(`${this.#file(name)}.new`, this.#file(name));
    const armed = (): boolean => this.reports(name).includes(`armed ${numbered}`);
    if (!(await untilTrue(armed, ARMED_TIMEOUT_MS))) {
      throw new RekindleError('TIMEOUT', `${name} has not read "${text}"`);
    }
  }

  disarm(name: string): void {
    writeFileSync(this.#file(name), '');
    appendFileSync(this.#reportFile(name), 'disarmed\n');
  }

  hasStruck(name: string, step: string, kind: string): boolean {
    return this.reports(name).includes(`struck ${step}=${kind}\n`);
  }

  reports(name: string): string {
    const file = this.#reportFile(name);
    return existsSync(file) ? readFileSync(file, 'utf8') : '';
  }

  #file(name: string): string {
    return join(this.#directory, name);
  }

  #reportFile(name: string): string {
    return `${this.#file(name)}.log`;
  }
}

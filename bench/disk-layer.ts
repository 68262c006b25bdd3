/**
 * Puts native/power-loss under the processes of a local cluster: cargo builds it, each process gets
 * it by LD_PRELOAD with a sidecar and a control page of its own, below the cluster's folder.
 *
 * Rule: `cutPower` only after every process is dead.
 */
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { RekindleError } from '../src/rpc/errors.js';
import { cutPower, type PowerCutMode, type PowerCutReport } from './power-cut.js';

const root = resolve(fileURLToPath(new URL('.', import.meta.url)), '../..');
const PACKAGE = 'rekindle-power-loss';
/** native/power-loss/src/disk_fault.rs */
const CONTROL_BYTES = 32;
const WORDS = ['writeDelayMs', 'flushDelayMs', 'writeErrno', 'flushErrno', 'readErrno', 'full'];
const STRUCK_AT = 24;

/** What a disk does from now on; what is left out is as on a good disk. */
export interface DiskFault {
  writeDelayMs?: number;
  flushDelayMs?: number;
  writeErrno?: number;
  flushErrno?: number;
  readErrno?: number;
  /** 1: nothing can grow. */
  full?: number;
}

let built: string | undefined;

/** Path of the library; built when its sources are newer, which cargo is asked once. */
export function diskLayerLibrary(): string {
  built ??= buildLibrary();
  return built;
}

function buildLibrary(): string {
  if (process.platform !== 'linux') {
    throw new RekindleError('INVALID_ARGUMENT', 'the disk layer needs Linux');
  }
  const { status, stdout, stderr, error } = spawnSync(
    'cargo',
    [...'build --release --quiet --message-format json --package'.split(' '), PACKAGE],
    { cwd: root, encoding: 'utf8', maxBuffer: 64 * 2 ** 20 },
  );
  const library = stdout
    ?.split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line) as { target?: { name: string }; filenames?: string[] })
    .find(({ target }) => target?.name === 'rekindle_power_loss')?.filenames?.[0];
  if (status === 0 && library !== undefined) return library;
  const why = `${stderr ?? ''}${error?.message ?? ''}`.trim();
  throw new RekindleError('INTERNAL', `cargo could not build native/power-loss:\n${why}`);
}

export class DiskLayer {
  readonly #library: string;
  readonly #directory: string;
  readonly #unflushed: string | undefined;

  /** `directory`: of the cluster. Files named `unflushed` (`*`: all) are never flushed. */
  constructor(library: string, directory: string, unflushed?: string) {
    this.#library = library;
    this.#directory = resolve(directory);
    this.#unflushed = unflushed;
  }

  /** For `LocalClusterOptions.environmentOf`. */
  environmentOf(name: string): Record<string, string> {
    const sidecar = this.#sidecar(name);
    mkdirSync(sidecar, { recursive: true });
    const control = this.#control(name);
    if (!existsSync(control)) writeFileSync(control, Buffer.alloc(CONTROL_BYTES));
    return {
      LD_PRELOAD: this.#library,
      REKINDLE_POWER_LOSS_ROOT: join(this.#directory, name),
      REKINDLE_POWER_LOSS_SIDECAR: sidecar,
      REKINDLE_POWER_LOSS_CONTROL: control,
      ...(this.#unflushed === undefined ? {} : { REKINDLE_POWER_LOSS_UNFLUSHED: this.#unflushed }),
    };
  }

  setFault(name: string, fault: DiskFault): void {
    const words = Buffer.alloc(STRUCK_AT);
    for (const [index, word] of WORDS.entries()) {
      words.writeUInt32LE(fault[word as keyof DiskFault] ?? 0, 4 * index);
    }
    const file = openSync(this.#control(name), 'r+');
    writeSync(file, words, 0, words.length, 0);
    closeSync(file);
  }

  /** Calls that this disk has refused or delayed so far. */
  struck(name: string): number {
    const count = Buffer.alloc(4);
    const file = openSync(this.#control(name), 'r');
    readSync(file, count, 0, 4, STRUCK_AT);
    closeSync(file);
    return count.readUInt32LE(0);
  }

  /** What the layer could not follow; empty if its picture is whole. */
  unsupported(name: string): string {
    const file = join(this.#sidecar(name), 'unsupported');
    return existsSync(file) ? readFileSync(file, 'utf8') : '';
  }

  /** Of one dead process; one that never ran has no files. */
  cutPower(name: string, seed: number, mode: PowerCutMode = 'random'): PowerCutReport {
    return cutPower(join(this.#directory, name), this.#sidecar(name), seed, mode);
  }

  #sidecar(name: string): string {
    return join(this.#directory, 'power-loss', name);
  }

  #control(name: string): string {
    return join(this.#directory, 'power-loss', `${name}.control`);
  }
}

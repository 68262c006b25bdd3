/**
 * What a flush costs where a store's files are: 4 KB written and fdatasync, again and again, on a
 * file of its own. Overwritten in place, as backups do it with frames that are written before, and
 * appended, as a log that grows does it: then the file system flushes its journal too.
 */
import { closeSync, fdatasyncSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { makeTemporaryFolder, removeTemporaryFolder } from '../src/cluster/left-behind.js';

const BLOCK = Buffer.alloc(4096, 'b');
const BLOCKS = 64;

export interface SyncTimes {
  overwrittenUs: number[];
  appendedUs: number[];
}

/** Blocks this thread; nothing else should be under way. */
export class DiskSync {
  readonly times: SyncTimes = { overwrittenUs: [], appendedUs: [] };
  readonly #directory = makeTemporaryFolder('rekindle-sync-');
  readonly #overwritten = openSync(join(this.#directory, 'overwritten'), 'w');
  readonly #appended = openSync(join(this.#directory, 'appended'), 'w');

  constructor() {
    for (let block = 0; block < BLOCKS; block++) writeSync(this.#overwritten, BLOCK);
    fdatasyncSync(this.#overwritten);
  }

  sample(count: number): void {
    const { overwrittenUs, appendedUs } = this.times;
    for (let index = 0; index < count; index++) {
      const at = (index % BLOCKS) * BLOCK.length;
      overwrittenUs.push(timeOf(this.#overwritten, at));
      appendedUs.push(timeOf(this.#appended, null));
    }
  }

  close(): void {
    closeSync(this.#overwritten);
    closeSync(this.#appended);
    removeTemporaryFolder(this.#directory);
  }
}

function timeOf(file: number, position: number | null): number {
  writeSync(file, BLOCK, 0, BLOCK.length, position);
  const start = performance.now();
  fdatasyncSync(file);
  return (performance.now() - start) * 1_000;
}

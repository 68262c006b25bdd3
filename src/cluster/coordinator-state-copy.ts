/**
 * A server's copy of the coordinator's state: one JSON file, replaced atomically (write, fsync,
 * rename, fsync of the folder), so that a crash leaves the old copy or the new one. An older state
 * never replaces a newer one, nor does one whose checksum is wrong.
 */
import { mkdir, open, readFile, rename } from 'node:fs/promises';
import path from 'node:path';
import { RekindleError } from '../rpc/errors.js';
import type { RequestOf } from '../rpc/table.js';

type StateCopy = RequestOf<'STORE_COORDINATOR_STATE'>;

const fileName = 'coordinator-state.json';

export class CoordinatorStateCopy {
  readonly #directory: string;
  readonly #crc32c: (bytes: Uint8Array) => number;
  #newest: { clusterId: string; term: number; revision: number } | null = null;
  /** One store at a time, in the order of arrival. */
  #queue: Promise<void> = Promise.resolve();

  constructor(directory: string, crc32c: (bytes: Uint8Array) => number) {
    this.#directory = directory;
    this.#crc32c = crc32c;
  }

  /** Learns what the file holds; a damaged file counts as none. */
  async load(): Promise<void> {
    try {
      const text = await readFile(path.join(this.#directory, fileName), 'utf8');
      const { clusterId, term, revision, crc32c, state } = JSON.parse(text) as StateCopy;
      if (this.#crc32c(Buffer.from(state)) === crc32c) {
        this.#newest = { clusterId, term, revision };
      }
    } catch (thrown) {
      const absent = (thrown as NodeJS.ErrnoException).code === 'ENOENT';
      if (!absent && !(thrown instanceof SyntaxError)) throw thrown;
    }
  }

  /** Durable when it resolves. */
  store(copy: StateCopy): Promise<void> {
    if (this.#crc32c(Buffer.from(copy.state)) !== copy.crc32c) {
      throw new RekindleError('CHECKSUM_MISMATCH', 'the coordinator state came in damaged');
    }
    const stored = this.#queue.then(() => this.#replace(copy));
    // A failure is the caller's; the next store must not inherit it.
    this.#queue = stored.then(
      () => undefined,
      () => undefined,
    );
    return stored;
  }

  async #replace(copy: StateCopy): Promise<void> {
    const newest = this.#newest;
    if (newest !== null && newest.clusterId === copy.clusterId) {
      const older =
        copy.term < newest.term || (copy.term === newest.term && copy.revision < newest.revision);
      if (older) return;
    }
    await mkdir(this.#directory, { recursive: true });
    const target = path.join(this.#directory, fileName);
    const temporary = `${target}.new`;
    const file = await open(temporary, 'w', 0o600);
    try {
      await file.writeFile(`${JSON.stringify(copy)}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, target);
    const directory = await open(this.#directory, 'r');
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
    this.#newest = { clusterId: copy.clusterId, term: copy.term, revision: copy.revision };
  }
}

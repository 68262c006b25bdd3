/**
 * Keeps a second process off a directory. The lock is an abstract Unix socket named after the
 * directory's device and inode: the kernel grants it to one process and takes it back when that
 * process ends, however it ends, so there is no stale lock and no race to break one.
 *
 * It reaches as far as a network namespace: two containers that mount the same directory do not see
 * each other's locks. For them the revision condition of every commit is the fence.
 */
import { stat } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { RekindleError } from '../../rpc/errors.js';

export interface DirectoryLock {
  release(): Promise<void>;
}

/** Rejects with `INVALID_ARGUMENT` if another process holds the directory. */
export async function lockDirectory(directory: string): Promise<DirectoryLock> {
  const { dev, ino } = await stat(directory, { bigint: true });
  const server = createServer((socket) => socket.destroy());
  await listen(server, `\0rekindle-coordinator-${dev}-${ino}`, directory);
  server.unref();
  return {
    release: () =>
      new Promise((resolve, reject) => {
        server.close((error) => (error ? reject(error) : resolve()));
      }),
  };
}

function listen(server: Server, name: string, directory: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EADDRINUSE') return reject(error);
      reject(
        new RekindleError(
          'INVALID_ARGUMENT',
          `${directory} is in use by another running coordinator; stop that one first, ` +
            'or give this one a directory of its own',
        ),
      );
    });
    server.listen(name, resolve);
  });
}

/**
 * A receiver of `rekindle bench link` (link-receiver.ts) as a child process on a core and a folder
 * of its own, and the link to it. The folder is in memory where the system has such a file system:
 * what is measured is the way of the bytes, not a disk.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { killAtExit, undoAtExit } from '../src/cluster/left-behind.js';
import { RekindleError } from '../src/rpc/errors.js';
import type { Durability } from '../src/rpc/messages.js';
import { WsLink } from '../src/rpc/ws-link.js';

/** `link`: only acknowledges. */
export type ReceiverMode = 'link' | Durability;

const MEMORY_FOLDER = '/dev/shm';
const PROGRAM = fileURLToPath(new URL('link-receiver.js', import.meta.url));

export class LinkReceiver {
  readonly mode: ReceiverMode;
  readonly link: WsLink;
  readonly #child: ChildProcessByStdio<Writable, Readable, null>;
  readonly #lines: AsyncIterator<string>;
  readonly #removeFolder: () => void;

  private constructor(
    mode: ReceiverMode,
    link: WsLink,
    child: ChildProcessByStdio<Writable, Readable, null>,
    lines: AsyncIterator<string>,
    removeFolder: () => void,
  ) {
    this.mode = mode;
    this.link = link;
    this.#child = child;
    this.#lines = lines;
    this.#removeFolder = removeFolder;
  }

  static readonly inMemory = existsSync(MEMORY_FOLDER);

  /** `before` is put in front of the command (`taskset`). */
  static async start(
    mode: ReceiverMode,
    masterId: number,
    before: readonly string[],
  ): Promise<LinkReceiver> {
    const place = LinkReceiver.inMemory ? MEMORY_FOLDER : tmpdir();
    const folder = mkdtempSync(join(place, 'rekindle-link-'));
    const command = [...before, process.execPath, PROGRAM, mode, String(masterId), folder];
    const [program = process.execPath, ...rest] = command;
    const child = spawn(program, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
    killAtExit(child);
    const remove = (): void => rmSync(folder, { recursive: true, force: true });
    const forget = undoAtExit(remove);
    const removeFolder = (): void => {
      remove();
      forget();
    };
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
    try {
      const { port } = (await nextLine(lines)) as { port: number };
      const identity = () => ({ role: 'server' as const, clusterId: null, serverId: null });
      const link = new WsLink(`127.0.0.1:${port}`, { identity });
      await link.connect();
      return new LinkReceiver(mode, link, child, lines, removeFolder);
    } catch (error) {
      child.kill('SIGKILL');
      removeFolder();
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** What its endpoint has counted, when it has ended. */
  async stop(): Promise<Record<string, number>> {
    this.link.close();
    const closed = once(this.#child, 'close');
    this.#child.stdin.end();
    const counted = await nextLine(this.#lines);
    await closed;
    this.#removeFolder();
    return counted;
  }
}

async function nextLine(lines: AsyncIterator<string>): Promise<Record<string, number>> {
  const { value, done } = await lines.next();
  if (done === true) throw new RekindleError('INTERNAL', 'the receiver of bench link has ended');
  return JSON.parse(value) as Record<string, number>;
}

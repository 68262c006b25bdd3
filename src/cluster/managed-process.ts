/**
 * One child process of a local cluster: start it, wait until it says that it is ready, kill it,
 * keep its log.
 *
 * Rule: no child outlives its parent. A normal exit kills all children that are left; if the
 * parent dies of SIGKILL the child sees the end of its stdin and exits (`--exit-with-parent`).
 * Children lead process groups of their own, so that Ctrl-C reaches the parent alone, which
 * then stops them in order.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { RekindleError } from '../rpc/errors.js';
import { killAtExit } from './left-behind.js';

/** What a process prints on fd 1 once it serves, as one JSON line. */
export interface ReadyLine {
  ready: true;
  port: number;
  /** null for a coordinator. */
  serverId: number | null;
}

export interface ProcessExit {
  name: string;
  code: number | null;
  signal: NodeJS.Signals | null;
}

export interface ManagedProcessOptions {
  name: string;
  /** What runs node; empty: nothing. */
  command: readonly string[];
  logFile: string;
  readyTimeoutMs: number;
  /** SIGTERM becomes SIGKILL after this long. */
  stopTimeoutMs: number;
  environment: Record<string, string>;
  /** A process that was ready has ended although nobody asked it to. */
  onUnexpectedExit(exit: ProcessExit): void;
}

const READY_LINE_BYTES_MAX = 64 * 1024;

export class ManagedProcess {
  readonly name: string;
  readonly logFile: string;
  readonly #options: ManagedProcessOptions;
  #child: ChildProcess | undefined;
  #exited: Promise<ProcessExit> | undefined;
  #exitExpected = false;
  #ready: ReadyLine | undefined;

  constructor(options: ManagedProcessOptions) {
    this.name = options.name;
    this.logFile = options.logFile;
    this.#options = options;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get running(): boolean {
    return this.#child !== undefined;
  }

  /** The newest ready line; undefined while the process is not running. */
  get ready(): ReadyLine | undefined {
    return this.#child === undefined ? undefined : this.#ready;
  }

  /**
   * Starts `node …nodeArguments` and resolves when it is ready; rejects with its log's tail.
   * `environment` is added for this run.
   */
  async start(
    nodeArguments: readonly string[],
    environment: Record<string, string> = {},
  ): Promise<ReadyLine> {
    if (this.#child !== undefined) {
      throw new RekindleError('INVALID_ARGUMENT', `${this.name} is already running`);
    }
    const log = openSync(this.logFile, 'a');
    const [program, ...programArguments] = [...this.#options.command, process.execPath];
    const child = spawn(program ?? process.execPath, [...programArguments, ...nodeArguments], {
      stdio: ['pipe', 'pipe', log],
      detached: true,
      env: { ...process.env, ...this.#options.environment, ...environment },
    });
    closeSync(log);
    this.#child = child;
    this.#exitExpected = false;
    this.#ready = undefined;
    killAtExit(child);
    this.#exited = new Promise((resolve) => {
      const ended = (code: number | null, signal: NodeJS.Signals | null): void => {
        if (this.#child !== child) return;
        this.#child = undefined;
        const exit = { name: this.name, code, signal };
        resolve(exit);
        if (!this.#exitExpected && this.#ready) this.#options.onUnexpectedExit(exit);
      };
      child.once('exit', ended);
      child.once('error', () => ended(null, null));
    });
    try {
      this.#ready = await this.#waitUntilReady(child, this.#exited);
      return this.#ready;
    } catch (error) {
      await this.kill('SIGKILL');
      throw error;
    }
  }

  /** Sends a signal that does not end the process (SIGSTOP, SIGCONT, SIGUSR2). */
  signal(signal: NodeJS.Signals): void {
    if (this.#child === undefined) {
      throw new RekindleError('INVALID_ARGUMENT', `${this.name} is not running`);
    }
    this.#child.kill(signal);
  }

  /** Ends the process and resolves when it is gone; at once if it was not running. */
  async kill(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    this.#exitExpected = true;
    child.kill(signal);
    const escalation = setTimeout(() => child.kill('SIGKILL'), this.#options.stopTimeoutMs);
    await this.#exited;
    clearTimeout(escalation);
  }

  logTail(lines = 20): string {
    if (!existsSync(this.logFile)) return '(no log)';
    return readFileSync(this.logFile, 'utf8').trimEnd().split('\n').slice(-lines).join('\n');
  }

  async #waitUntilReady(child: ChildProcess, exited: Promise<ProcessExit>): Promise<ReadyLine> {
    const cleanup = new AbortController();
    const timeoutMs = this.#options.readyTimeoutMs;
    const late = new Promise<never>((_, reject) => {
      const timer = setTimeout(
        () => reject(this.#startError(`was not ready within ${timeoutMs} ms`)),
        timeoutMs,
      );
      cleanup.signal.addEventListener('abort', () => clearTimeout(timer));
    });
    const gone = exited.then(({ code, signal }) => {
      throw this.#startError(`ended with ${signal ?? `exit code ${code}`} before it was ready`);
    });
    try {
      return await Promise.race([readReadyLine(child), late, gone]);
    } finally {
      cleanup.abort();
    }
  }

  #startError(what: string): RekindleError {
    return new RekindleError(
      'INTERNAL',
      `${this.name} ${what}; the end of ${this.logFile}:\n${this.logTail()}`,
    );
  }
}

/** Anything else on the child's stdout is dropped: logs go to stderr. */
function readReadyLine(child: ChildProcess): Promise<ReadyLine> {
  return new Promise((resolve) => {
    let text = '';
    child.stdout?.setEncoding('utf8').on('data', (piece: string) => {
      if (text.length > READY_LINE_BYTES_MAX) return;
      text += piece;
      for (const line of text.split('\n').slice(0, -1)) {
        const ready = parseReadyLine(line);
        if (ready !== undefined) resolve(ready);
      }
      text = text.slice(text.lastIndexOf('\n') + 1);
    });
  });
}

function parseReadyLine(line: string): ReadyLine | undefined {
  if (!line.startsWith('{"ready":true')) return undefined;
  const { port, serverId } = JSON.parse(line) as { port: number; serverId?: number | null };
  return { ready: true, port, serverId: serverId ?? null };
}

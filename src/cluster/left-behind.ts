/**
 * What must not outlive this process, however it ends but by SIGKILL: children that it has started,
 * its temporary folders, and whatever else is handed in to be undone.
 *
 * Rule: whoever starts a child or makes a folder still stops and removes it; this is for an end
 * that comes in between (a signal, a bug). Children are killed first, so that nobody writes into a
 * folder that is being removed. SIGKILL ends also what stands still (SIGSTOP).
 */
import type { ChildProcess } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A child that has just been killed may still be in the middle of making a file. */
const REMOVAL = { recursive: true, force: true, maxRetries: 20, retryDelay: 10 };

const children = new Set<ChildProcess>();
const folders = new Set<string>();
const undoings = new Set<() => void>();
let hookInstalled = false;

/** SIGKILL, should it still run when this process ends. */
export function killAtExit(child: ChildProcess): void {
  if (child.pid === undefined) return; // could not be started
  installHook();
  children.add(child);
  child.once('exit', () => children.delete(child));
}

/** An empty folder whose name begins with `prefix`. */
export function makeTemporaryFolder(prefix: string): string {
  installHook();
  const folder = mkdtempSync(join(tmpdir(), prefix));
  folders.add(folder);
  return folder;
}

/** Of a folder made by `makeTemporaryFolder`. */
export function removeTemporaryFolder(folder: string): void {
  rmSync(folder, REMOVAL);
  folders.delete(folder);
}

/** Once children are killed; the returned function takes it back. */
export function undoAtExit(undo: () => void): () => void {
  installHook();
  undoings.add(undo);
  return () => {
    undoings.delete(undo);
  };
}

function installHook(): void {
  if (hookInstalled) return;
  hookInstalled = true;
  process.on('exit', () => {
    for (const child of children) child.kill('SIGKILL');
    for (const undo of undoings) undo();
    for (const folder of folders) removeTemporaryFolder(folder);
  });
}

/**
 * Clusters and CLI runs for the tests in this folder: everything is a real process, everything is
 * stopped at the end of a test, and a failing test shows the end of all logs.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Client, connect } from '../../src/client/index.js';
import type { LocalCluster, LocalClusterOptions } from '../../src/cluster/local-cluster.js';
import { startCluster } from '../../src/cluster/testing.js';
import { RekindleError } from '../../src/rpc/errors.js';
import type { StatusCode } from '../../src/rpc/status.js';

export const CLI = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

export async function withCluster(
  options: LocalClusterOptions,
  body: (cluster: LocalCluster, client: Client) => Promise<void>,
): Promise<void> {
  const cluster = await startCluster(options);
  try {
    await using client = await connect(cluster.url, { timeoutMs: 60_000 });
    await body(cluster, client);
  } catch (error) {
    process.stderr.write(`${cluster.logTails()}\n`);
    throw error;
  } finally {
    await cluster.stop();
  }
}

export async function withFolder(body: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'rekindle-test-'));
  try {
    await body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

export interface CliResult {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs `rekindle …` to its end. */
export async function rekindle(
  commandArguments: readonly string[],
  options: { url?: string; stdin?: string | Buffer } = {},
): Promise<CliResult> {
  const child = spawn(process.execPath, [CLI, ...commandArguments], {
    env: { ...process.env, ...(options.url === undefined ? {} : { REKINDLE_URL: options.url }) },
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    stdout += piece;
  });
  child.stderr.setEncoding('utf8').on('data', (piece: string) => {
    stderr += piece;
  });
  child.stdin.end(options.stdin ?? '');
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stdout, stderr };
}

/** The code with which something rejects; fails if it resolves or rejects with anything else. */
export async function rejectionCode(promise: Promise<unknown>): Promise<StatusCode> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof RekindleError) return error.code;
    throw error;
  }
  throw new Error('resolved, but should have been refused');
}

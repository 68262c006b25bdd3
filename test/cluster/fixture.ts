/**
 * Clusters and CLI runs for the tests in this folder: everything is a real process, everything is
 * stopped at the end of a test, and a failing test shows the end of all logs.
 */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, fsyncSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { serverStats, waitFor } from '../../bench/cluster-health.js';
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

const slotsBytes = 16_384;
const frameBytes = slotsBytes + 2 ** 23;

/** Flips a byte in the data of every frame on the disk of a server. */
export function flipBytes(cluster: LocalCluster, index: number, dataOffset = 5_000): void {
  const file = join(cluster.dataDirectory, `server-${index + 1}`, 'backup', 'frames');
  const frames = openSync(file, 'r+');
  const byte = Buffer.alloc(1);
  for (let at = slotsBytes + dataOffset; readSync(frames, byte, 0, 1, at) === 1; at += frameBytes) {
    byte.writeUInt8(byte.readUInt8() ^ 1);
    writeSync(frames, byte, 0, 1, at);
  }
  fsyncSync(frames);
  closeSync(frames);
}

/** The counters of one backup. */
export async function backupStats(
  client: Client,
  serverId: number,
): Promise<Record<string, number>> {
  const servers = await serverStats(client);
  const found = servers.find((server) => server.serverId === serverId)?.backup;
  assert.ok(found, `server ${serverId} answers`);
  return found;
}

/** All segments are closed on R backups, but for the head of each log. */
export async function waitUntilReplicated(client: Client): Promise<void> {
  await waitFor('all segments on R backups', 60_000, async () => {
    const servers = await serverStats(client);
    return servers.every(({ master }) => (master?.segmentsBehind ?? 0) <= 1) || undefined;
  });
}

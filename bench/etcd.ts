/**
 * Real etcd processes with empty folders, for benchmarks and tests. Without the program those that
 * need it say so: tests are skipped, a benchmark ends.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { freePorts } from '../src/cluster/free-port.js';
import {
  killAtExit,
  makeTemporaryFolder,
  removeTemporaryFolder,
} from '../src/cluster/left-behind.js';

const HOST = '127.0.0.1';

/** Why nothing with etcd can run here; false if it can. */
export const withoutEtcd: string | false =
  spawnSync('etcd', ['--version']).status === 0
    ? false
    : 'there is no program etcd (Debian: apt-get install etcd-server)';

export class EtcdCluster {
  private readonly folder = makeTemporaryFolder('rekindle-etcd-');
  private readonly members: (ChildProcess | null)[] = [];

  private constructor(
    private readonly clientPorts: readonly number[],
    private readonly peerPorts: readonly number[],
    private readonly extra: readonly string[],
    private readonly scheme: 'http' | 'https',
    private readonly before: readonly string[],
  ) {}

  /** Resolves when it takes writes. `before` is put in front of each command (`taskset`). */
  static async start(
    count: number,
    extra: readonly string[] = [],
    scheme: 'http' | 'https' = 'http',
    before: readonly string[] = [],
  ): Promise<EtcdCluster> {
    const ports = await freePorts(HOST, 2 * count);
    const [clients, peers] = [ports.slice(0, count), ports.slice(count)];
    const cluster = new EtcdCluster(clients, peers, extra, scheme, before);
    for (let index = 0; index < count; index++) cluster.restart(index);
    try {
      // Over TLS its own clients wait for it: they know the certificates.
      if (scheme === 'http') await cluster.ready();
    } catch (error) {
      await cluster.stop();
      throw error;
    }
    return cluster;
  }

  /** Of those that run. */
  get pids(): number[] {
    return this.members.flatMap((child) => child?.pid ?? []);
  }

  /** `host:port` of each. */
  get endpoints(): string[] {
    return this.clientPorts.map((port) => `${HOST}:${port}`);
  }

  restart(index: number): void {
    const peers = this.peerPorts.map((port, at) => `m${at}=http://${HOST}:${port}`).join(',');
    const client = `${this.scheme}://${this.endpoints[index]}`;
    const peer = `http://${HOST}:${this.peerPorts[index]}`;
    const [program = 'etcd', ...words] = [...this.before, 'etcd'];
    const child = spawn(
      program,
      [
        ...words,
        ...['--name', `m${index}`, '--data-dir', join(this.folder, `m${index}`)],
        ...['--listen-client-urls', client, '--advertise-client-urls', client],
        ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer],
        ...['--initial-cluster', peers, '--log-level', 'error'],
        ...this.extra,
      ],
      { stdio: 'ignore' },
    );
    killAtExit(child);
    this.members[index] = child;
  }

  async kill(index: number): Promise<void> {
    const child = this.members[index];
    if (!child) return;
    this.members[index] = null;
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  signal(index: number, signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.members[index]?.kill(signal);
  }

  /** One call of the gateway, at the first member. */
  async post(path: string, body: unknown, token?: string): Promise<Record<string, unknown>> {
    const response = await fetch(`${this.scheme}://${this.endpoints[0]}/v3/${path}`, {
      method: 'POST',
      body: JSON.stringify(body),
      headers: token === undefined ? {} : { authorization: token },
    });
    return (await response.json()) as Record<string, unknown>;
  }

  async stop(): Promise<void> {
    await Promise.all(this.members.map((_, index) => this.kill(index)));
    removeTemporaryFolder(this.folder);
  }

  private async ready(): Promise<void> {
    const put = { key: 'cmVhZHk=', value: 'MQ==' };
    for (let attempt = 0; attempt < 300; attempt++) {
      try {
        if ((await this.post('kv/put', put)).header !== undefined) return;
      } catch (error) {
        if (!(error instanceof TypeError)) throw error;
      }
      await delay(50);
    }
    throw new Error('etcd was not ready within 15 s');
  }
}

/**
 * A whole cluster on this machine: coordinators and n servers, each a process of its own, as the
 * CLI starts them. Used by `rekindle dev`, the demo, benchmarks and tests, which kill and restart
 * its processes.
 *
 * Rules: ports and data folders of a process are the same for as long as its folder exists, so
 * that a restart is a restart. All processes share this host, hence `--allow-same-host`; the
 * number of replicas is never lowered. Nothing is restarted by itself.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { invariant, RekindleError } from '../rpc/errors.js';
import type { Durability } from '../rpc/messages.js';
import { freePorts, portIsFree } from './free-port.js';
import { makeTemporaryFolder, removeTemporaryFolder } from './left-behind.js';
import { ManagedProcess, type ProcessExit } from './managed-process.js';

export interface LocalClusterOptions {
  /** Default: a temporary folder that `stop()` removes. */
  dataDirectory?: string;
  /** Servers, 1 to 64. A folder that is used again may be given more than before, never fewer. */
  servers?: number;
  replicas?: number;
  durability?: Durability;
  /** Log memory of each server. */
  memoryBytes?: number;
  /** Wanted for the coordinator; another one is taken if it is in use. */
  coordinatorPort?: number;
  /** Coordinators, one by default; more need a `storage`. The first one started leads. */
  coordinators?: number;
  /** `etcd://…` instead of a folder of the coordinator. */
  storage?: string;
  /** More arguments for every `rekindle server`. */
  serverArguments?: readonly string[];
  environment?: Record<string, string>;
  /** The same for one process: `coordinator`, `server-1` … */
  environmentOf?: (name: string) => Record<string, string>;
  /** Where a process runs: another address, by another command (`ip netns exec …`). */
  placement?: (name: string) => Placement;
  readyTimeoutMs?: number;
  /** Called when a process ends that nobody has killed. */
  onUnexpectedExit?: (exit: ProcessExit) => void;
}

export interface Placement {
  host: string;
  /** In front of node's own. */
  command: readonly string[];
}

/** What a folder remembers, in `cluster.json`. */
interface Layout {
  format: 1;
  replicas: number;
  durability: Durability;
  memoryBytes: number;
  coordinatorPort: number;
  serverPorts: number[];
  /** Of the coordinators after the first. */
  standbyPorts?: number[];
}

const HOST = '127.0.0.1';
const COORDINATOR = 'coordinator';
const SERVERS_MAX = 64;
const STOP_TIMEOUT_MS = 10_000;
const CLI = fileURLToPath(new URL('../cli/main.js', import.meta.url));

export class LocalCluster {
  readonly dataDirectory: string;
  readonly logDirectory: string;
  readonly #layout: Layout;
  readonly #temporary: boolean;
  readonly #options: LocalClusterOptions;
  readonly #coordinators: ManagedProcess[];
  readonly #servers: ManagedProcess[];

  private constructor(
    directory: string,
    temporary: boolean,
    layout: Layout,
    options: LocalClusterOptions,
  ) {
    this.dataDirectory = directory;
    this.logDirectory = join(directory, 'logs');
    this.#layout = layout;
    this.#temporary = temporary;
    this.#options = options;
    this.#coordinators = this.#coordinatorPorts().map((_, index) =>
      this.#process(coordinatorName(index)),
    );
    this.#servers = layout.serverPorts.map((_, index) => this.#process(`server-${index + 1}`));
  }

  /** Starts everything and resolves when all processes are ready. */
  static async start(options: LocalClusterOptions = {}): Promise<LocalCluster> {
    const cluster = await LocalCluster.create(options);
    try {
      await cluster.startAll();
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  /** The same without starting a process; `startAll` or `restartCoordinator` … come next. */
  static async create(options: LocalClusterOptions = {}): Promise<LocalCluster> {
    const temporary = options.dataDirectory === undefined;
    const directory = resolve(options.dataDirectory ?? makeTemporaryFolder('rekindle-'));
    mkdirSync(join(directory, 'logs'), { recursive: true });
    const layout = await planLayout(join(directory, 'cluster.json'), options);
    return new LocalCluster(directory, temporary, layout, options);
  }

  /** What clients connect to. */
  get url(): string {
    return `rekindle://${this.#coordinatorAddresses()}`;
  }

  get replicas(): number {
    return this.#layout.replicas;
  }

  get durability(): Durability {
    return this.#layout.durability;
  }

  get serverCount(): number {
    return this.#servers.length;
  }

  get coordinatorPort(): number {
    return this.#layout.coordinatorPort;
  }

  serverPort(index: number): number {
    const port = this.#layout.serverPorts[index];
    invariant(port !== undefined, `server index ${index} < ${this.serverCount}`);
    return port;
  }

  /** Name, pid (undefined: not running), port of every process; coordinators first. */
  processes(): { name: string; pid: number | undefined; port: number }[] {
    const ports = this.#coordinatorPorts();
    return [
      ...this.#coordinators.map(({ name, pid }, at) => ({ name, pid, port: ports[at] ?? 0 })),
      ...this.#servers.map(({ name, pid }, index) => ({ name, pid, port: this.serverPort(index) })),
    ];
  }

  /** The id under which this server is enlisted now; undefined while it is not running. */
  serverId(index: number): number | undefined {
    return this.#server(index).ready?.serverId ?? undefined;
  }

  /** Index of a running server by its id; undefined if none has it. */
  indexOf(serverId: number): number | undefined {
    const index = this.#servers.findIndex((server) => server.ready?.serverId === serverId);
    return index < 0 ? undefined : index;
  }

  isRunning(index: number): boolean {
    return this.#server(index).running;
  }

  coordinatorIsRunning(index = 0): boolean {
    return this.#coordinator(index).running;
  }

  /** Index of the coordinator with this address; undefined if none has it. */
  coordinatorAt(address: string): number | undefined {
    const index = this.#coordinatorAddresses().split(',').indexOf(address);
    return index < 0 ? undefined : index;
  }

  /** Starts whatever does not run: coordinators first, then all servers at once. */
  async startAll(): Promise<void> {
    for (const [index, { running }] of this.#coordinators.entries()) {
      if (!running) await this.restartCoordinator({}, index);
    }
    const idle = this.#servers.flatMap((server, index) => (server.running ? [] : [index]));
    const results = await Promise.allSettled(idle.map((index) => this.restartServer(index)));
    const failed = results.find((result) => result.status === 'rejected');
    if (failed?.status === 'rejected') throw failed.reason;
  }

  async killServer(index: number, signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    await this.#server(index).kill(signal);
  }

  /**
   * Starts a server that does not run, on its old port and folder, with this added to its
   * environment. Returns its new id.
   */
  async restartServer(index: number, environment: Record<string, string> = {}): Promise<number> {
    const { memoryBytes } = this.#layout;
    const server = this.#server(index);
    const serverArguments = [
      ...[CLI, 'server', '--ready-json', '--exit-with-parent'],
      ...['--coordinator', this.#coordinatorAddresses()],
      ...this.#listenArguments(server.name, this.serverPort(index)),
      ...['--data', join(this.dataDirectory, server.name)],
      ...['--memory', String(memoryBytes)],
      ...(this.#options.serverArguments ?? []),
    ];
    const ready = await server.start(serverArguments, environment);
    invariant(ready.serverId !== null, 'a ready server has an id');
    return ready.serverId;
  }

  async killCoordinator(signal: NodeJS.Signals = 'SIGKILL', index = 0): Promise<void> {
    await this.#coordinator(index).kill(signal);
  }

  /** Starts it when it does not run, with this added to its environment. */
  async restartCoordinator(environment: Record<string, string> = {}, index = 0): Promise<void> {
    const { replicas, durability } = this.#layout;
    const { storage } = this.#options;
    const coordinator = this.#coordinator(index);
    const { name } = coordinator;
    const coordinatorArguments = [
      ...[CLI, 'coordinator', '--ready-json', '--exit-with-parent', '--allow-same-host'],
      ...this.#listenArguments(name, this.#coordinatorPorts()[index] ?? 0),
      ...(storage === undefined
        ? ['--data', join(this.dataDirectory, name)]
        : ['--storage', storage]),
      ...['--replicas', String(replicas), '--durability', durability],
    ];
    await coordinator.start(coordinatorArguments, environment);
  }

  /** All processes at once, as a power cut would. */
  async killAll(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    await Promise.all([...this.#coordinators, ...this.#servers].map((each) => each.kill(signal)));
  }

  /** The process keeps its connections and says nothing until `resumeServer`. */
  pauseServer(index: number): void {
    this.#server(index).signal('SIGSTOP');
  }

  resumeServer(index: number): void {
    this.#server(index).signal('SIGCONT');
  }

  pauseCoordinator(index = 0): void {
    this.#coordinator(index).signal('SIGSTOP');
  }

  resumeCoordinator(index = 0): void {
    this.#coordinator(index).signal('SIGCONT');
  }

  /** Stops servers, then coordinators; removes a temporary folder. */
  async stop(): Promise<void> {
    await Promise.all(this.#servers.map((server) => server.kill('SIGTERM')));
    await Promise.all(this.#coordinators.map((each) => each.kill('SIGTERM')));
    if (this.#temporary) removeTemporaryFolder(this.dataDirectory);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.stop();
  }

  /** The end of every log, for the message of a failure. */
  logTails(lines = 20): string {
    return [...this.#coordinators, ...this.#servers]
      .map((each) => `--- ${each.name} (${each.logFile})\n${each.logTail(lines)}`)
      .join('\n');
  }

  #server(index: number): ManagedProcess {
    const server = this.#servers[index];
    invariant(server !== undefined, `server index ${index} < ${this.serverCount}`);
    return server;
  }

  #coordinator(index: number): ManagedProcess {
    const coordinator = this.#coordinators[index];
    invariant(coordinator !== undefined, `coordinator index ${index} is one of the cluster's`);
    return coordinator;
  }

  #coordinatorPorts(): number[] {
    return [this.#layout.coordinatorPort, ...(this.#layout.standbyPorts ?? [])];
  }

  #coordinatorAddresses(): string {
    return this.#coordinatorPorts()
      .map((port, index) => `${this.#host(coordinatorName(index))}:${port}`)
      .join(',');
  }

  #host(name: string): string {
    return this.#options.placement?.(name).host ?? HOST;
  }

  #listenArguments(name: string, port: number): string[] {
    const host = this.#host(name);
    return ['--host', host, '--port', String(port), ...(host === HOST ? [] : ['--insecure'])];
  }

  #process(name: string): ManagedProcess {
    return new ManagedProcess({
      name,
      command: this.#options.placement?.(name).command ?? [],
      logFile: join(this.logDirectory, `${name}.log`),
      readyTimeoutMs: this.#options.readyTimeoutMs ?? 60_000,
      stopTimeoutMs: STOP_TIMEOUT_MS,
      environment: { ...this.#options.environment, ...this.#options.environmentOf?.(name) },
      onUnexpectedExit: (exit) => this.#options.onUnexpectedExit?.(exit),
    });
  }
}

function coordinatorName(index: number): string {
  return index === 0 ? COORDINATOR : `${COORDINATOR}-${index + 1}`;
}

/** Settings that are not given are those of the folder; ports in use by others are replaced. */
async function planLayout(file: string, options: LocalClusterOptions): Promise<Layout> {
  const old = existsSync(file) ? readLayout(file) : undefined;
  const serverCount = Math.max(options.servers ?? 0, old?.serverPorts.length ?? 0) || 4;
  if (!Number.isInteger(serverCount) || serverCount > SERVERS_MAX) {
    throw new RekindleError('INVALID_ARGUMENT', `servers must be 1 to ${SERVERS_MAX}`);
  }
  const coordinators = options.coordinators ?? 1;
  if (coordinators > 1 && options.storage === undefined) {
    throw new RekindleError('INVALID_ARGUMENT', 'several coordinators need a storage');
  }
  const wanted =
    old === undefined
      ? []
      : [old.coordinatorPort, ...(old.standbyPorts ?? []).slice(0, coordinators - 1)];
  wanted.push(...(wanted.length === coordinators ? (old?.serverPorts ?? []) : []));
  const ports = await freePorts(HOST, serverCount + coordinators, options.coordinatorPort);
  for (const [index, port] of wanted.entries()) {
    const given = index === 0 && options.coordinatorPort !== undefined;
    if (!given && (await portIsFree(HOST, port))) ports[index] = port;
  }
  const [coordinatorPort, ...standbyPorts] = ports.slice(0, coordinators);
  const serverPorts = ports.slice(coordinators);
  invariant(coordinatorPort !== undefined, 'ports.length = coordinators + servers');
  const layout: Layout = {
    format: 1,
    replicas: options.replicas ?? old?.replicas ?? 3,
    durability: options.durability ?? old?.durability ?? 'fsync',
    memoryBytes: options.memoryBytes ?? old?.memoryBytes ?? 256 * 2 ** 20,
    coordinatorPort,
    serverPorts,
    ...(standbyPorts.length === 0 ? {} : { standbyPorts }),
  };
  writeFileSync(file, `${JSON.stringify(layout, null, 2)}\n`);
  return layout;
}

function readLayout(file: string): Layout {
  const layout = JSON.parse(readFileSync(file, 'utf8')) as Layout;
  if (layout.format !== 1 || !Array.isArray(layout.serverPorts)) {
    throw new RekindleError('INVALID_ARGUMENT', `${file} is not of a format that is known here`);
  }
  return layout;
}

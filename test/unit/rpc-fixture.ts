/**
 * Parts that the RPC and SDK tests share: polling with a limit, a log that remembers, and a small
 * store that answers EXECUTE as a master would, with hooks to make it answer otherwise.
 */
import assert from 'node:assert/strict';
import { RekindleError } from '../../src/rpc/errors.js';
import {
  decodeExecuteRequest,
  type ExecuteOperation,
  type ExecuteRequest,
  type ExecuteResult,
  encodeExecuteReply,
  OP_READ,
  OP_WRITE,
} from '../../src/rpc/execute-codec.js';
import type { TableInfo, TabletInfo } from '../../src/rpc/messages.js';
import { STATUS, type StatusCode } from '../../src/rpc/status.js';
import type { BinaryCall } from '../../src/rpc/transport.js';
import {
  type EndpointLog,
  UwsEndpoint,
  type UwsEndpointOptions,
} from '../../src/rpc/uws-endpoint.js';

export const CLUSTER = '11111111-2222-4333-8444-555555555555';

/** Polls until the condition holds; fails after the limit. */
export async function until(
  what: string,
  condition: () => boolean,
  limitMs = 5_000,
): Promise<void> {
  const endMs = performance.now() + limitMs;
  while (!condition()) {
    assert.ok(performance.now() < endMs, `not within ${limitMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export interface LogLine {
  level: string;
  message: string;
  fields: Record<string, unknown>;
}

export function memoryLog(): { log: EndpointLog; lines: LogLine[] } {
  const lines: LogLine[] = [];
  return { lines, log: (level, message, fields) => lines.push({ level, message, fields }) };
}

export async function startEndpoint(
  options: Partial<UwsEndpointOptions> = {},
  prepare: (endpoint: UwsEndpoint) => void = () => undefined,
): Promise<{ endpoint: UwsEndpoint; port: number; address: string; lines: LogLine[] }> {
  const { log, lines } = memoryLog();
  const endpoint = new UwsEndpoint({
    identity: () => ({ role: 'server', clusterId: CLUSTER, serverId: 7 }),
    log,
    ...options,
  });
  prepare(endpoint);
  const port = await endpoint.listen('127.0.0.1', 0);
  return { endpoint, port, address: `127.0.0.1:${port}`, lines };
}

export async function rejectsWith(
  promise: Promise<unknown>,
  code: StatusCode,
  outcome?: 'not-applied' | 'unknown',
): Promise<RekindleError> {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof RekindleError, `a RekindleError, not ${String(error)}`);
    assert.equal(error.code, code, error.message);
    if (outcome !== undefined) assert.equal(error.outcome, outcome, error.message);
    return error;
  }
  assert.fail(`resolved instead of ${code}`);
}

const REPLY_BYTES_MAX = 8_000_000;
const NOTHING = new Uint8Array(0);

export function result(code: StatusCode, more: Partial<ExecuteResult> = {}): ExecuteResult {
  return { status: STATUS[code].number, retryAfterMs: 0, version: 0, value: NOTHING, ...more };
}

/** A master with a map for a store. Exactly-once by rpc id, as the real one. */
export class FakeMaster {
  readonly objects = new Map<string, { value: Buffer; version: number }>();
  readonly requests: ExecuteRequest[] = [];
  readonly #results = new Map<string, ExecuteResult>();
  #version = 0;
  /** Answers instead of the store, if it returns something. */
  override: (operation: ExecuteOperation) => ExecuteResult | undefined = () => undefined;
  /** Takes the whole call, if it returns true. */
  intercept: (call: BinaryCall) => boolean = () => false;

  readonly serve = (call: BinaryCall): void => {
    const request = decodeExecuteRequest(Buffer.from(call.body));
    this.requests.push(request);
    if (this.intercept(call)) return;
    let replyBytes = 0;
    const results = request.operations.map((operation) => {
      // As the real one: what finds no room in the reply is asked for again.
      if (replyBytes > REPLY_BYTES_MAX) return result('RETRY');
      const each = this.execute(request.clientId, operation);
      replyBytes += each.value.length;
      return each;
    });
    call.reply(encodeExecuteReply(results));
  };

  execute(clientId: number, operation: ExecuteOperation): ExecuteResult {
    const overridden = this.override(operation);
    if (overridden !== undefined) return overridden;
    const id = `${clientId}:${operation.rpcId}`;
    const known = operation.rpcId === 0 ? undefined : this.#results.get(id);
    if (known !== undefined) return known;
    const fresh = this.#apply(operation);
    if (operation.rpcId !== 0) this.#results.set(id, fresh);
    return fresh;
  }

  #apply({ op, reject, givenVersion, tableId, key, value }: ExecuteOperation): ExecuteResult {
    const name = `${tableId}:${Buffer.from(key).toString('hex')}`;
    const object = this.objects.get(name);
    const version = object?.version ?? 0;
    if (object === undefined && (reject & 1) !== 0) return result('OBJECT_NOT_FOUND');
    if (object !== undefined && (reject & 2) !== 0) return result('OBJECT_EXISTS', { version });
    if (object !== undefined && (reject & 8) !== 0 && version !== givenVersion) {
      return result('WRONG_VERSION', { version });
    }
    if (op === OP_READ) {
      if (object === undefined) return result('OBJECT_NOT_FOUND');
      return result('OK', { version, value: object.value });
    }
    if (op === OP_WRITE) {
      this.#version += 1;
      this.objects.set(name, { value: Buffer.from(value ?? NOTHING), version: this.#version });
      return result('OK', { version: this.#version });
    }
    this.objects.delete(name);
    return result('OK', { version });
  }
}

export interface FakeServer {
  master: FakeMaster;
  endpoint: UwsEndpoint;
  address: string;
  serverId: number;
}

/** A coordinator and masters in this process, over real sockets. */
export class FakeCluster {
  readonly tables = new Map<string, TableInfo>();
  readonly servers: FakeServer[] = [];
  coordinator!: UwsEndpoint;
  address = '';
  getTableCalls = 0;

  static async start(masters: number): Promise<FakeCluster> {
    const cluster = new FakeCluster();
    for (let i = 0; i < masters; i++) await cluster.addServer(i + 1);
    const { endpoint, address } = await startEndpoint(
      { identity: () => ({ role: 'coordinator', clusterId: CLUSTER, serverId: null }) },
      (endpoint) => cluster.#serveCoordinator(endpoint),
    );
    cluster.coordinator = endpoint;
    cluster.address = address;
    return cluster;
  }

  get url(): string {
    return `rekindle://${this.address}/`;
  }

  async addServer(serverId: number): Promise<FakeServer> {
    const master = new FakeMaster();
    const { endpoint, address } = await startEndpoint(
      { identity: () => ({ role: 'server', clusterId: CLUSTER, serverId }) },
      (each) => each.handleBinary('EXECUTE', master.serve),
    );
    const server = { master, endpoint, address, serverId };
    this.servers.push(server);
    return server;
  }

  table(name: string, owners: readonly FakeServer[]): TableInfo {
    const width = 2 ** 32 / owners.length;
    const table: TableInfo = {
      tableId: this.tables.size + 1,
      name,
      tablets: owners.map((owner, i): TabletInfo => {
        return {
          tableId: this.tables.size + 1,
          startSlot: Math.floor(i * width),
          endSlot: Math.floor((i + 1) * width) - 1,
          serverId: owner.serverId,
          address: owner.address,
          status: 'normal',
        };
      }),
    };
    this.tables.set(name, table);
    return table;
  }

  async close(): Promise<void> {
    await this.coordinator.close();
    for (const { endpoint } of this.servers) await endpoint.close();
  }

  #serveCoordinator(endpoint: UwsEndpoint): void {
    endpoint.handle('LIST_TABLES', () => ({ tables: [...this.tables.values()] }));
    endpoint.handle('GET_TABLE', ({ name }) => {
      this.getTableCalls += 1;
      const table = this.tables.get(name ?? '');
      if (table === undefined) throw new RekindleError('TABLE_NOT_FOUND', `no table ${name}`);
      return { table };
    });
    endpoint.handle('CREATE_TABLE', async ({ name, span }) => {
      const owners = Array.from(
        { length: span ?? 1 },
        (_, i) => this.servers[i % this.servers.length]!,
      );
      return { table: this.tables.get(name) ?? this.table(name, owners) };
    });
    endpoint.handle('DROP_TABLE', ({ name }) => ({ existed: this.tables.delete(name) }));
  }
}

/**
 * The handlers of a server, behind one gate. A server must listen before it can enlist, and others
 * talk to it from that moment on: until it is ready they are told RETRY, never that the RPC does
 * not exist.
 */
import { RekindleError } from '../rpc/errors.js';
import { type JsonRpcName, RPC, type RpcName } from '../rpc/table.js';
import type { BinaryCall, JsonHandler, RpcEndpoint } from '../rpc/transport.js';

const notReadyRetryMs = 50;

type AnyJsonHandler = (request: unknown, call: Parameters<JsonHandler<'PING'>>[1]) => unknown;

export class HandlerTable implements Pick<RpcEndpoint, 'handle' | 'handleBinary'> {
  readonly #json = new Map<RpcName, AnyJsonHandler>();
  readonly #binary = new Map<RpcName, (call: BinaryCall) => void>();
  #ready = false;

  handle<K extends JsonRpcName>(name: K, handler: JsonHandler<K>): void {
    this.#json.set(name, handler as AnyJsonHandler);
  }

  handleBinary(name: RpcName, handler: (call: BinaryCall) => void): void {
    this.#binary.set(name, handler);
  }

  /** From now on an RPC without a handler is one that this server does not serve. */
  open(): void {
    this.#ready = true;
  }

  /** Registers every RPC of servers, masters and backups. */
  install(endpoint: RpcEndpoint): void {
    for (const [key, row] of Object.entries(RPC)) {
      const name = key as RpcName;
      const served = row.service === 'server' || row.service === 'master';
      if (!served && row.service !== 'backup' && name !== 'PING') continue;
      if (row.request === 'json' && row.reply === 'json') this.#installJson(endpoint, name);
      else this.#installBinary(endpoint, name);
    }
  }

  #installJson(endpoint: RpcEndpoint, name: RpcName): void {
    const handler: AnyJsonHandler = (request, call) => {
      const target = this.#json.get(name);
      if (target === undefined) throw this.#absent(name);
      return target(request, call);
    };
    endpoint.handle(name as JsonRpcName, handler as JsonHandler<JsonRpcName>);
  }

  #installBinary(endpoint: RpcEndpoint, name: RpcName): void {
    endpoint.handleBinary(name, (call) => {
      const target = this.#binary.get(name);
      if (target === undefined) call.fail(this.#absent(name));
      else target(call);
    });
  }

  #absent(name: RpcName): RekindleError {
    return this.#ready
      ? new RekindleError('UNSUPPORTED_OPCODE', `${name} is not served here`)
      : new RekindleError('RETRY', 'the server is starting', { retryAfterMs: notReadyRetryMs });
  }
}

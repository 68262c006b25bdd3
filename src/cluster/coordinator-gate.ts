/**
 * The RPCs of a coordinator, behind one gate: handlers of whoever leads while this process leads;
 * otherwise PING is answered, for those who look after this process, and everything else with the
 * way to the leader.
 */
import type { RekindleError } from '../rpc/errors.js';
import { type JsonRpcName, RPC, type RpcName } from '../rpc/table.js';
import type { JsonHandler, RpcEndpoint } from '../rpc/transport.js';

type AnyHandler = (request: unknown, call: Parameters<JsonHandler<'PING'>>[1]) => unknown;

export class CoordinatorGate implements Pick<RpcEndpoint, 'handle'> {
  readonly #handlers = new Map<RpcName, AnyHandler>();
  readonly #absent: () => RekindleError;

  /** `absent`: what callers are told while nobody leads here. */
  constructor(absent: () => RekindleError) {
    this.#absent = absent;
  }

  handle<K extends JsonRpcName>(name: K, handler: JsonHandler<K>): void {
    this.#handlers.set(name, handler as AnyHandler);
  }

  /** Nobody leads here any more. */
  shut(): void {
    this.#handlers.clear();
  }

  /** Registers every RPC of coordinators. */
  install(endpoint: RpcEndpoint): void {
    for (const [name, { service }] of Object.entries(RPC)) {
      if (service !== 'coordinator' && name !== 'PING') continue;
      const handler: AnyHandler = (request, call) => {
        const target = this.#handlers.get(name as RpcName);
        if (target !== undefined) return target(request, call);
        if (name === 'PING') return { serverListVersion: 0, member: true, lagMs: 0 };
        throw this.#absent();
      };
      endpoint.handle(name as JsonRpcName, handler as JsonHandler<JsonRpcName>);
    }
  }
}

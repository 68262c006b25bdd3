/**
 * The interface between the RPC layer and those who use it: servers register handlers on an
 * `RpcEndpoint`, callers hold `RpcLink`s from a `LinkPool`. The only implementations are
 * `uws-endpoint.ts` (uWebSockets.js, servers) and `ws-link.ts` (callers).
 *
 * Everything is bounded: message size, outstanding bytes a link, back-pressure a connection.
 */
import type { RekindleError } from './errors.js';
import { HEADER_BYTES } from './frame.js';
import type { Hello } from './messages.js';
import type { JsonRpcName, ReplyOf, RequestOf, RpcName } from './table.js';

/** Who is at the other end of a served connection, as its HELLO said. */
export interface Peer {
  readonly role: Hello['role'];
  readonly serverId: number | null;
  readonly remoteAddress: string;
}

/** One request whose body is bytes. `body` is valid only until the handler returns. */
export interface BinaryCall {
  readonly peer: Peer;
  readonly body: Uint8Array;
  /** On `performance.now()`'s clock, as `deadlineMs`. */
  readonly receivedMs: number;
  /** When the caller stops waiting. */
  readonly deadlineMs: number;
  /**
   * Sends the reply: at once if called inside the handler, else with all others of this
   * event-loop turn. The bytes are copied before it returns. A gone connection is ignored.
   */
  reply(body: Uint8Array): void;
  /**
   * The same without a copy where that can be: the `REPLY_ROOM_BYTES` before `body` in its memory
   * are for what the transport puts in front of it.
   */
  replyInPlace(body: Uint8Array): void;
  fail(error: RekindleError): void;
}

export const REPLY_ROOM_BYTES = HEADER_BYTES;

export type JsonHandler<K extends JsonRpcName> = (
  request: RequestOf<K>,
  call: { peer: Peer; deadlineMs: number },
) => Promise<ReplyOf<K>> | ReplyOf<K>;

export interface EndpointIdentity {
  role: 'server' | 'coordinator';
  clusterId: string | null;
  serverId: number | null;
  /** Of a server that does not know its id yet: that with which it asks for one. */
  nonce?: string;
}

export interface RpcEndpoint {
  /** Registers the handler of a JSON RPC. Requests are validated before it is called. */
  handle<K extends JsonRpcName>(name: K, handler: JsonHandler<K>): void;
  /** Registers the handler of an RPC with a binary request or reply (JSON requests: raw bytes). */
  handleBinary(name: RpcName, handler: (call: BinaryCall) => void): void;
  /** `port` 0 picks a free one. Resolves with the port. */
  listen(host: string, port: number): Promise<number>;
  /** Refuses new connections and closes all. */
  close(): Promise<void>;
  /** connections, requests, bytes in and out, protocol errors … */
  stats(): Record<string, number>;
}

export interface CallOptions {
  /** Overrides the RPC's default. */
  timeoutMs?: number;
  signal?: AbortSignal;
  /**
   * Where the body of a successful reply is to be read into: memory of exactly this many bytes,
   * which is the caller's again when the call has ended. Default: memory of its own.
   */
  place?: (bytes: number) => Uint8Array;
}

/** A connection to one address that reconnects by itself with backoff while it is wanted. */
export interface RpcLink {
  readonly address: string;
  /** True after a successful handshake, until the connection is lost. */
  readonly connected: boolean;
  /** Reply of the newest handshake. */
  readonly remote: EndpointIdentity | null;
  /**
   * Connects if need be. For callers whose message must not leave late: they encode it when this
   * has resolved, and send it in the same turn.
   */
  connect(options?: CallOptions): Promise<void>;
  /** Calls and waits: `TIMEOUT`, `CONNECTION_LOST`, `ABORTED` or the server's error. */
  call<K extends JsonRpcName>(
    name: K,
    request: RequestOf<K>,
    options?: CallOptions,
  ): Promise<ReplyOf<K>>;
  /**
   * The same with bytes. `parts` are sent as one message without copying them together; they
   * must not change until the call has ended.
   */
  callBinary(
    name: RpcName,
    parts: readonly Uint8Array[],
    options?: CallOptions,
  ): Promise<Uint8Array>;
  /** Bytes sent and not yet answered. */
  readonly outstandingBytes: number;
  /**
   * Sends at once what this turn has queued; for callers that coalesce by themselves. Without it
   * the queue leaves in `setImmediate`.
   */
  flush(): void;
  /** Called at each loss of an established connection. */
  onLost(listener: (error: RekindleError) => void): void;
  close(): void;
}

/** One link per address; links that nobody has used for a while are closed. */
export interface LinkPool {
  /** `expectServerId` is checked at the handshake (`WRONG_SERVER`). */
  link(address: string, expectServerId?: number | null): RpcLink;
  /** Closes the links to an address, or only that to one expected server. */
  drop(address: string, expectServerId?: number): void;
  close(): void;
}

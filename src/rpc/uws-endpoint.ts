/**
 * The server side of the RPC layer over uWebSockets.js, of which this is the only importer.
 *
 * Rules it keeps (measured, and the reason for most of the shape): replies made inside a handler
 * leave in the implicit cork of its connection; all others are copied to the outbox and leave in
 * one cork per connection from `setImmediate`, never from a tick, which uWebSockets drains after
 * every message. A send that answers 2 was dropped: the connection is closed.
 *
 * Bounds: message size, connections, requests in flight per connection and in all (`RETRY`), bytes
 * that a peer does not read (closed). Meaning of requests is left to the handlers.
 */

import uws from 'uWebSockets.js';
import { createServer } from 'node:net';
import { ComplaintLog } from './complaint-log.js';
import { EndpointConnection, type Session } from './endpoint-connection.js';
import { type EndpointLimits, EndpointTraffic, LIMITS } from './endpoint-traffic.js';
import { asRekindleError, invariant, RekindleError } from './errors.js';
import { faultsAreArmed } from './fault-point.js';
import { emptyHeader, HEADER_BYTES, KIND_REQUEST, MESSAGE_BYTES_MAX, readHeader } from './frame.js';
import { HandlerWatchdog } from './handler-watchdog.js';
import { answerHello, PATH_OF_CLIENTS, PATH_OF_SERVERS, pathOfRole } from './handshake.js';
import { messageStep, passMessage } from './message-fault.js';
import { parseRequest } from './request-schemas.js';
import { type JsonRpcName, RPC, type RpcName, rpcByOpcode } from './table.js';
import type { BinaryCall, EndpointIdentity, JsonHandler, Peer, RpcEndpoint } from './transport.js';

export type EndpointLog = (
  level: 'debug' | 'info' | 'warn' | 'error',
  message: string,
  fields: Record<string, unknown>,
) => void;

export interface UwsEndpointOptions {
  /** A function, since a server learns its id after it has started. */
  identity: () => EndpointIdentity;
  log: EndpointLog;
  features?: readonly string[];
  limits?: Partial<EndpointLimits>;
}

const CHECK_MS = 250;
/** Exclusive: a second process on the same port is an error, not a silent sharer. */
const LISTEN_EXCLUSIVE = 1;
const FREE_PORT_ATTEMPTS = 10;
const REMOTE_UNKNOWN = 'unknown';

/** One request on its way through a handler. */
class ServedCall implements BinaryCall {
  readonly deadlineMs: number;
  readonly peer: Peer;
  /** Of message-fault.ts; null unless faults were armed when it came. */
  faultStep: string | null = null;
  #answered = false;

  constructor(
    readonly connection: EndpointConnection,
    readonly opcode: number,
    readonly callId: number,
    public body: Uint8Array,
    readonly bytes: number,
    readonly receivedMs: number,
    budgetMs: number,
    readonly traffic: EndpointTraffic,
  ) {
    invariant(connection.peer !== null, 'requests are served after the handshake');
    this.peer = connection.peer;
    this.deadlineMs = receivedMs + budgetMs;
  }

  reply(body: Uint8Array): void {
    this.#end();
    const send = (bytes: Uint8Array): void =>
      this.traffic.reply(this.connection, this.opcode, this.callId, bytes);
    if (this.faultStep === null) {
      send(body);
      return;
    }
    passMessage(`reply-${this.faultStep}`, body, {
      deliver: send,
      fail: (error) => this.traffic.fail(this.connection, this.opcode, this.callId, error),
      lose: () => undefined,
      close: () => this.connection.terminate(),
    });
  }

  replyInPlace(body: Uint8Array): void {
    if (this.faultStep !== null) {
      this.reply(body);
      return;
    }
    this.#end();
    this.traffic.replyInPlace(this.connection, this.opcode, this.callId, body);
  }

  fail(error: RekindleError): void {
    this.#end();
    this.traffic.fail(this.connection, this.opcode, this.callId, error);
  }

  /** Never answered: a fault. */
  abandon(): void {
    this.#end();
  }

  #end(): void {
    invariant(!this.#answered, `request ${this.callId} is answered once`);
    this.#answered = true;
    this.traffic.leave(this.connection, this.bytes);
  }
}

export class UwsEndpoint implements RpcEndpoint {
  readonly #options: UwsEndpointOptions;
  readonly #limits: EndpointLimits;
  readonly #handlers = new Map<number, (call: ServedCall) => void>();
  readonly #connections = new Set<EndpointConnection>();
  /** Connected, HELLO still to come; in order of arrival. */
  readonly #unproven = new Set<EndpointConnection>();
  readonly #header = emptyHeader();
  readonly #traffic: EndpointTraffic;
  readonly #watchdog = new HandlerWatchdog();
  readonly #complaints: ComplaintLog;
  #app: uws.TemplatedApp | null = null;
  #checkTimer: NodeJS.Timeout | null = null;
  #connectionsRefused = 0;
  #protocolErrors = 0;
  /** HTTP sockets that were answered and will be seen to close. */
  #httpAnswered = 0;

  constructor(options: UwsEndpointOptions) {
    this.#options = options;
    this.#limits = { ...LIMITS, ...options.limits };
    this.#complaints = new ComplaintLog(options.log);
    this.#traffic = new EndpointTraffic(this.#limits, options.log);
  }

  handle<K extends JsonRpcName>(name: K, handler: JsonHandler<K>): void {
    this.#register(name, (call) => {
      const request = parseRequest(name, call.body) as Parameters<JsonHandler<K>>[0];
      const result = handler(request, { peer: call.peer, deadlineMs: call.deadlineMs });
      if (result instanceof Promise) {
        result.then(
          (reply) => this.#replyJson(name, call, reply),
          (thrown) => this.#failed(name, call, thrown),
        );
      } else {
        this.#replyJson(name, call, result);
      }
    });
  }

  handleBinary(name: RpcName, handler: (call: BinaryCall) => void): void {
    this.#register(name, handler);
  }

  #register(name: RpcName, serve: (call: ServedCall) => void): void {
    const { opcode } = RPC[name];
    invariant(name !== 'HELLO', 'the endpoint itself answers HELLO');
    invariant(!this.#handlers.has(opcode), `${name} has one handler`);
    this.#handlers.set(opcode, serve);
  }

  async listen(host: string, port: number): Promise<number> {
    invariant(this.#app === null, 'an endpoint listens once');
    const app = uws.App();
    this.#app = app;
    app.ws<Session>(PATH_OF_SERVERS, this.#behavior(PATH_OF_SERVERS, 0));
    app.ws<Session>(PATH_OF_CLIENTS, this.#behavior(PATH_OF_CLIENTS, this.#limits.idleTimeoutS));
    app.any('/*', (response) => {
      this.#httpAnswered += 1;
      const remote = text(response.getRemoteAddressAsText());
      this.#protocolError(remote, 'plain HTTP on the RPC port');
      response.writeStatus('426 Upgrade Required').end('Rekindle RPC: WebSocket only\n', true);
    });
    app.filter((_response, change) => this.#onHttpSocket(Number(change)));
    for (let attempt = 1; ; attempt++) {
      const chosen = port === 0 ? await freePort(host) : port;
      if (await listenOn(app, host, chosen)) {
        this.#checkTimer = setInterval(() => {
          this.#closeUnproven();
          this.#traffic.closeStalled(performance.now());
        }, CHECK_MS);
        return chosen;
      }
      if (port !== 0 || attempt === FREE_PORT_ATTEMPTS) {
        const error = `cannot listen on ${host}:${chosen} (in use, or no such address)`;
        throw new RekindleError('INVALID_ARGUMENT', error);
      }
    }
  }

  /** Replies that were made outside handlers leave now, not at the end of the turn. */
  flush(): void {
    this.#traffic.flush();
  }

  async close(): Promise<void> {
    if (this.#checkTimer !== null) clearInterval(this.#checkTimer);
    this.#checkTimer = null;
    this.#traffic.close();
    this.#app?.close();
    this.#app = null;
  }

  stats(): Record<string, number> {
    return {
      connections: this.#connections.size,
      connectionsRefused: this.#connectionsRefused,
      protocolErrors: this.#protocolErrors,
      ...this.#traffic.stats(),
      ...this.#watchdog.stats(),
    };
  }

  #behavior(path: string, idleTimeout: number): uws.WebSocketBehavior<Session> {
    return {
      maxPayloadLength: MESSAGE_BYTES_MAX,
      maxBackpressure: this.#limits.unreadBytesMax,
      compression: uws.DISABLED,
      idleTimeout,
      sendPingsAutomatically: true,
      upgrade: (response, request, context) => {
        if (this.#connections.size >= this.#limits.connectionsMax) {
          this.#connectionsRefused += 1;
          this.#httpAnswered += 1;
          response.writeStatus('503 Service Unavailable').end('too many connections\n', true);
          return;
        }
        response.upgrade<Session>(
          { connection: null },
          request.getHeader('sec-websocket-key'),
          request.getHeader('sec-websocket-protocol'),
          request.getHeader('sec-websocket-extensions'),
          context,
        );
      },
      open: (socket) => {
        const connection = new EndpointConnection(
          socket,
          path,
          text(socket.getRemoteAddressAsText()),
          performance.now(),
        );
        socket.getUserData().connection = connection;
        this.#connections.add(connection);
        this.#unproven.add(connection);
      },
      message: (socket, message, isBinary) => {
        const { connection } = socket.getUserData();
        invariant(connection !== null, 'a message follows the opening');
        this.#traffic.enterHandler(connection, message.byteLength);
        const startMs = performance.now();
        try {
          this.#onMessage(connection, new Uint8Array(message), isBinary, startMs);
        } finally {
          this.#traffic.leaveHandler();
          this.#watchdog.note(this.#header.opcode, performance.now() - startMs);
        }
      },
      drain: (socket) => {
        const { connection } = socket.getUserData();
        if (connection !== null) this.#traffic.onDrain(connection);
      },
      close: (socket, code) => {
        const { connection } = socket.getUserData();
        if (connection === null) return;
        // 1009, or an abrupt close, is what uWebSockets makes of a message over the limit.
        if (code === 1009) this.#protocolError(connection.remoteAddress, 'message too large');
        this.#connections.delete(connection);
        this.#unproven.delete(connection);
        this.#traffic.forget(connection);
        connection.markClosed();
      },
    };
  }

  /** Sockets that end as HTTP sockets never became WebSockets: garbage, or nothing at all. */
  #onHttpSocket(change: number): void {
    if (change > 0) return;
    if (this.#httpAnswered > 0) this.#httpAnswered -= 1;
    else this.#protocolError(REMOTE_UNKNOWN, 'no WebSocket handshake (garbage, or a port probe)');
  }

  #closeUnproven(): void {
    const openedBeforeMs = performance.now() - this.#limits.helloTimeoutMs;
    for (const connection of [...this.#unproven]) {
      if (connection.openedAtMs > openedBeforeMs) break;
      this.#reject(connection, 'no HELLO in time');
    }
  }

  #protocolError(remoteAddress: string, problem: string): void {
    this.#protocolErrors += 1;
    this.#complaints.add(remoteAddress, problem, performance.now());
  }

  #reject(connection: EndpointConnection, problem: string): void {
    this.#protocolError(connection.remoteAddress, problem);
    connection.end(1002, problem.slice(0, 100));
  }

  #onMessage(
    connection: EndpointConnection,
    bytes: Uint8Array,
    isBinary: boolean,
    receivedMs: number,
  ): void {
    const header = this.#header;
    const problem = isBinary ? readHeader(bytes, header) : 'text message';
    if (problem !== null || header.kind !== KIND_REQUEST) {
      this.#reject(connection, problem ?? 'a reply to a server');
      return;
    }
    const { opcode, callId } = header;
    const body = bytes.subarray(HEADER_BYTES);
    if (connection.peer === null) {
      if (opcode !== RPC.HELLO.opcode) {
        this.#reject(connection, 'first message is no HELLO');
        return;
      }
      this.#onHello(connection, callId, body);
      return;
    }
    const name = rpcByOpcode(opcode);
    const serve = this.#handlers.get(opcode);
    if (name === undefined || serve === undefined) {
      const error = new RekindleError(
        'UNSUPPORTED_OPCODE',
        `${name ?? `opcode ${opcode}`} is not served here`,
      );
      this.#traffic.fail(connection, opcode, callId, error);
      return;
    }
    const refusal = this.#traffic.admit(connection, bytes.length);
    if (refusal !== null) {
      this.#traffic.fail(connection, opcode, callId, refusal);
      return;
    }
    const budgetMs = header.deadlineMs === 0 ? RPC[name].timeoutMs : header.deadlineMs;
    const call = new ServedCall(
      connection,
      opcode,
      callId,
      body,
      bytes.length,
      receivedMs,
      budgetMs,
      this.#traffic,
    );
    if (!faultsAreArmed()) {
      this.#serve(name, call, serve);
      return;
    }
    call.faultStep = messageStep(name, body);
    passMessage(`request-${call.faultStep}`, body, {
      deliver: (passed) => {
        call.body = passed;
        this.#serve(name, call, serve);
      },
      fail: (injected) => call.fail(injected),
      lose: () => call.abandon(),
      close: () => connection.terminate(),
    });
  }

  #serve(name: RpcName, call: ServedCall, serve: (call: ServedCall) => void): void {
    try {
      serve(call);
    } catch (thrown) {
      this.#failed(name, call, thrown);
    }
  }

  #onHello(connection: EndpointConnection, callId: number, body: Uint8Array): void {
    const { opcode } = RPC.HELLO;
    let error: RekindleError;
    try {
      const hello = parseRequest('HELLO', body);
      const identity = this.#options.identity();
      const answer = answerHello(hello, identity, this.#options.features ?? []);
      if (!(answer instanceof RekindleError)) {
        if (connection.path !== pathOfRole(hello.role)) {
          this.#reject(connection, `role ${hello.role} on path ${connection.path}`);
          return;
        }
        this.#unproven.delete(connection);
        connection.peer = {
          role: hello.role,
          serverId: hello.serverId,
          remoteAddress: connection.remoteAddress,
        };
        const reply = Buffer.from(JSON.stringify(answer));
        this.#traffic.reply(connection, opcode, callId, reply);
        return;
      }
      error = answer;
    } catch (thrown) {
      error = asRekindleError(thrown);
    }
    this.#traffic.fail(connection, opcode, callId, error);
    this.#reject(connection, `${error.code}: ${error.message}`);
  }

  #replyJson(name: RpcName, call: ServedCall, reply: unknown): void {
    let body: Buffer;
    try {
      body = Buffer.from(JSON.stringify(reply ?? {}));
    } catch (thrown) {
      this.#failed(name, call, thrown);
      return;
    }
    call.reply(body);
  }

  #failed(name: RpcName, call: ServedCall, thrown: unknown): void {
    const error = asRekindleError(thrown);
    if (error.code === 'INTERNAL') {
      const stack = thrown instanceof Error ? thrown.stack : String(thrown);
      this.#options.log('error', 'request failed unexpectedly', { rpc: name, stack });
    }
    call.fail(error);
  }
}

function text(bytes: ArrayBuffer): string {
  return Buffer.from(bytes).toString();
}

/**
 * uWebSockets sets SO_REUSEADDR only on ports that are given. Without it the port of a server that
 * died could not be used again for a minute: so port 0 becomes a port that was just free.
 */
function freePort(host: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.on('error', (cause) => {
      const problem = `cannot listen on ${host}: ${cause.message}`;
      reject(new RekindleError('INVALID_ARGUMENT', problem, { cause }));
    });
    probe.listen(0, host, () => {
      const address = probe.address();
      invariant(address !== null && typeof address === 'object', 'a TCP listener has a port');
      probe.close(() => resolve(address.port));
    });
  });
}

function listenOn(app: uws.TemplatedApp, host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    // The typings lack this overload: host, port, options, callback.
    const listen = app.listen as unknown as (
      host: string,
      port: number,
      options: number,
      done: (token: uws.us_listen_socket | false) => void,
    ) => void;
    listen.call(app, host, port, LISTEN_EXCLUSIVE, (token) => resolve(token !== false));
  });
}

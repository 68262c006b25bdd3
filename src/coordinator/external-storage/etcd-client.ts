/**
 * Calls to etcd's v3 API through the JSON gateway that every member serves at its client port, by
 * Node's own HTTP client. (The npm package `etcd3` has had no release since 2023, brings 37
 * packages, and repeats transactions by itself, so that nobody could say what became of one.)
 *
 * Rules: a call is repeated, at one member after the other, until there is a definite answer or
 * its time is over; so a request must be safe to repeat. What a repeated transaction means is left
 * to `etcd.ts`.
 */
import {
  type Agent,
  type ClientRequest,
  Agent as HttpAgent,
  request as httpRequest,
} from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { setTimeout as sleep } from 'node:timers/promises';
import { backoffMs } from '../../rpc/backoff.js';
import { asRekindleError, RekindleError } from '../../rpc/errors.js';
import type { StatusCode } from '../../rpc/status.js';
import type { Log } from '../context.js';

export interface EtcdClientOptions {
  endpoints: readonly string[];
  /** null: without TLS. PEM. */
  tls: { ca?: Buffer; cert?: Buffer; key?: Buffer } | null;
  credentials: { user: string; password: string } | null;
  log: Log;
  attemptTimeoutMs?: number;
}

export interface CallLimits {
  /** Infinity: until the client is closed. */
  timeoutMs: number;
}

interface Reply {
  httpStatus: number;
  text: string;
}

const ATTEMPT_TIMEOUT_MS = 1_500;
const PAUSE_MS_MIN = 10;
const PAUSE_MS_MAX = 500;
/** Calls in vain after which the log says so, and then each so many. */
const COMPLAIN_AT = 4;
const REPLY_BYTES_MAX = 64 * 2 ** 20;

/** Of gRPC: the request itself is refused, here and elsewhere, now and later. */
const DEFINITE: Readonly<Record<number, StatusCode>> = {
  3: 'INVALID_ARGUMENT',
  5: 'INVALID_ARGUMENT',
  7: 'UNAUTHENTICATED',
  9: 'INVALID_ARGUMENT',
  11: 'INVALID_ARGUMENT',
  12: 'INVALID_ARGUMENT',
};
const GRPC_UNAUTHENTICATED = 16;

export class EtcdClient {
  private readonly agent: Agent;
  private readonly closing = new AbortController();
  private readonly requests = new Set<ClientRequest>();
  private preferred = 0;
  private token: string | null = null;

  constructor(private readonly options: EtcdClientOptions) {
    const { tls } = options;
    this.agent =
      tls === null
        ? new HttpAgent({ keepAlive: true })
        : new HttpsAgent({ keepAlive: true, ...tls });
  }

  async call<T>(path: string, body: unknown, { timeoutMs }: CallLimits): Promise<T> {
    const deadlineMs = performance.now() + timeoutMs;
    const { endpoints, log } = this.options;
    for (let attempt = 0; ; attempt += 1) {
      const endpoint = this.endpoint();
      const leftMs = deadlineMs - performance.now();
      const outcome = await this.attempt<T>(endpoint, path, body, leftMs);
      if (!(outcome instanceof RekindleError)) return outcome.value;
      if (this.closing.signal.aborted) throw closed();
      if (!outcome.retryable) throw outcome;
      this.preferred = (endpoints.indexOf(endpoint) + 1) % endpoints.length;
      if (attempt % (10 * COMPLAIN_AT) === COMPLAIN_AT) {
        log('warn', 'etcd does not answer', { endpoint, path, reason: outcome.message });
      }
      const round = Math.floor(attempt / endpoints.length);
      const roundOver = (attempt + 1) % endpoints.length === 0;
      const pauseMs = roundOver ? backoffMs(round, PAUSE_MS_MIN, PAUSE_MS_MAX, Math.random()) : 0;
      if (performance.now() + pauseMs >= deadlineMs) throw outcome;
      await this.pause(pauseMs);
    }
  }

  /**
   * Opens a stream of messages at one member; `onEnd` is called once, at whatever ends it but the
   * returned function.
   */
  stream<T>(
    path: string,
    body: unknown,
    onMessage: (message: T) => void,
    onEnd: (error: RekindleError) => void,
  ): () => void {
    const endpoint = this.endpoint();
    let over = false;
    let request: ClientRequest | null = null;
    const end = (error: unknown): void => {
      if (over) return;
      over = true;
      request?.destroy();
      const { endpoints } = this.options;
      this.preferred = (endpoints.indexOf(endpoint) + 1) % endpoints.length;
      onEnd(asRekindleError(error));
    };
    const begin = async (): Promise<void> => {
      await this.authenticated(endpoint, ATTEMPT_TIMEOUT_MS);
      if (over) return;
      request = this.open(endpoint, path, JSON.stringify(body), (response) => {
        let rest = '';
        response.setEncoding('utf8').on('data', (piece: string) => {
          const lines = (rest + piece).split('\n');
          rest = lines.pop() ?? '';
          if (rest.length > REPLY_BYTES_MAX) end(unanswered(endpoint, 'the message is too long'));
          try {
            for (const line of lines) {
              if (over || line === '') continue;
              const { result, error } = JSON.parse(line) as { result?: T; error?: unknown };
              if (result !== undefined) onMessage(result);
              else end(unanswered(endpoint, JSON.stringify(error)));
            }
          } catch (error) {
            end(error);
          }
        });
        response.once('close', () => end(unanswered(endpoint, 'the stream ended')));
      });
      request.once('error', (cause) => end(unanswered(endpoint, cause.message)));
    };
    begin().catch(end);
    return () => {
      over = true;
      request?.destroy();
    };
  }

  close(): void {
    this.closing.abort();
    for (const request of this.requests) request.destroy();
    this.agent.destroy();
  }

  private endpoint(): string {
    const { endpoints } = this.options;
    return endpoints[this.preferred % endpoints.length] ?? '';
  }

  private async attempt<T>(
    endpoint: string,
    path: string,
    body: unknown,
    leftMs: number,
  ): Promise<{ value: T } | RekindleError> {
    const attemptMs = this.options.attemptTimeoutMs ?? ATTEMPT_TIMEOUT_MS;
    const timeoutMs = Math.max(1, Math.min(leftMs, attemptMs));
    try {
      await this.authenticated(endpoint, timeoutMs);
      return { value: parseReply<T>(endpoint, await this.post(endpoint, path, body, timeoutMs)) };
    } catch (thrown) {
      const error = asRekindleError(thrown);
      if (error.details?.grpcCode === GRPC_UNAUTHENTICATED) this.token = null;
      return error;
    }
  }

  private async authenticated(endpoint: string, timeoutMs: number): Promise<void> {
    const { credentials } = this.options;
    if (credentials === null || this.token !== null) return;
    const { user, password } = credentials;
    const body = { name: user, password };
    const reply = await this.post(endpoint, 'auth/authenticate', body, timeoutMs);
    this.token = parseReply<{ token: string }>(endpoint, reply).token;
  }

  private post(endpoint: string, path: string, body: unknown, timeoutMs: number): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const request = this.open(endpoint, path, JSON.stringify(body), (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (piece: string) => {
          text += piece;
          if (text.length > REPLY_BYTES_MAX) request.destroy(new Error('the reply is too long'));
        });
        response.once('end', () => resolve({ httpStatus: response.statusCode ?? 0, text }));
        response.once('error', (error) => reject(unanswered(endpoint, error.message)));
      });
      const timer = setTimeout(() => {
        request.destroy(new Error(`no answer within ${Math.round(timeoutMs)} ms`));
      }, timeoutMs);
      request.once('error', (error) => reject(unanswered(endpoint, error.message)));
      request.once('close', () => {
        clearTimeout(timer);
        reject(unanswered(endpoint, 'the connection was closed'));
      });
    });
  }

  private open(
    endpoint: string,
    path: string,
    text: string,
    onResponse: Parameters<typeof httpRequest>[2],
  ): ClientRequest {
    if (this.closing.signal.aborted) throw closed();
    const { tls } = this.options;
    const url = new URL(`${tls === null ? 'http' : 'https'}://${endpoint}/v3/${path}`);
    const headers = {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(text),
      // A member without a leader ends its watches instead of keeping still.
      'grpc-metadata-hasleader': 'true',
      ...(this.token === null ? {} : { authorization: this.token }),
    };
    const send = tls === null ? httpRequest : httpsRequest;
    const request = send(url, { method: 'POST', agent: this.agent, headers }, onResponse);
    this.requests.add(request);
    request.once('close', () => this.requests.delete(request));
    request.end(text);
    return request;
  }

  private async pause(ms: number): Promise<void> {
    if (ms <= 0) return;
    try {
      await sleep(ms, undefined, { signal: this.closing.signal });
    } catch (cause) {
      throw closed(cause);
    }
  }
}

function parseReply<T>(endpoint: string, { httpStatus, text }: Reply): T {
  let body: { message?: unknown; error?: unknown; code?: unknown };
  try {
    body = JSON.parse(text) as typeof body;
  } catch {
    throw unanswered(endpoint, `HTTP ${httpStatus}: ${text.slice(0, 200)}`);
  }
  if (httpStatus === 200) return body as T;
  const message = String(body.message ?? body.error ?? `HTTP ${httpStatus}`);
  const grpcCode = typeof body.code === 'number' ? body.code : -1;
  const code = message.includes('too large') ? 'REQUEST_TOO_LARGE' : DEFINITE[grpcCode];
  if (code === undefined) throw unanswered(endpoint, message, grpcCode);
  throw new RekindleError(code, `etcd refuses: ${message}`, { details: { grpcCode } });
}

/** The request may have been carried out, or may be later. */
function unanswered(endpoint: string, reason: string, grpcCode?: number): RekindleError {
  return new RekindleError('CONNECTION_LOST', `etcd at ${endpoint}: ${reason}`, {
    ...(grpcCode === undefined ? {} : { details: { grpcCode } }),
  });
}

function closed(cause?: unknown): RekindleError {
  return new RekindleError('SHUTTING_DOWN', 'the storage was closed', {
    cause,
    outcome: 'unknown',
  });
}

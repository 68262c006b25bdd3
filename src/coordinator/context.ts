/**
 * What the parts of the coordinator's runtime share: the committed state, the one way to change it,
 * calls to servers, timers that end with the coordinator.
 */
import type { Clock } from '../rpc/clock.js';
import type { FaultPoint } from '../rpc/fault-point.js';
import type { JsonRpcName, ReplyOf, RequestOf } from '../rpc/table.js';
import type { CallOptions } from '../rpc/transport.js';
import type { CoordinatorState, Decision } from './coordinator-state.js';

export type LogLevel = 'debug' | 'info' | 'warn' | 'error';
export type Log = (level: LogLevel, message: string, fields?: Record<string, unknown>) => void;

export interface CoordinatorContext {
  readonly state: CoordinatorState;
  /** Of the newest commit. */
  readonly revision: number;
  readonly log: Log;
  readonly faultPoint: FaultPoint;
  readonly clock: Clock;
  /** ms since 1970. */
  now(): number;
  /**
   * Runs `decide` on the committed state, no other commit in between, and commits its writes.
   * Resolves with its result when they are flushed. What `decide` throws goes to the caller.
   */
  commit<T>(decide: (state: CoordinatorState) => Decision<T>): Promise<T>;
  /** Calls a server of the list; a lost connection makes the server a suspect. */
  call<K extends JsonRpcName>(
    serverId: number,
    name: K,
    request: RequestOf<K>,
    options?: CallOptions,
  ): Promise<ReplyOf<K>>;
  /** A timer that dies with the coordinator. Returns a function that cancels it. */
  after(ms: number, action: () => void): () => void;
  /** Lets a promise run by itself; a rejection nobody expected stops the coordinator. */
  background(promise: Promise<unknown>, what: string): void;
}

/**
 * One WebSocket that an endpoint serves: its socket while it lives, who is at the other end, and
 * the counts that bound it. After `markClosed` the native socket must not be touched again; every
 * use goes through `socket`, which is null from then on.
 */
import type uws from 'uWebSockets.js';
import type { Peer } from './transport.js';

/** User data of the native socket. */
export interface Session {
  connection: EndpointConnection | null;
}

export class EndpointConnection {
  /** Null: the handshake is still to come. */
  peer: Peer | null = null;
  socket: uws.WebSocket<Session> | null;
  /** Requests whose reply is still to come, and their bytes. */
  requestsInFlight = 0;
  requestBytesInFlight = 0;
  /** Bytes sent that the peer had not read when we last looked. */
  unreadBytes = 0;
  /** When the peer was last seen to take some of them. */
  readAtMs = 0;
  /** Replies in the outbox: offset and length by turns. */
  readonly outbox: number[] = [];

  constructor(
    socket: uws.WebSocket<Session>,
    readonly path: string,
    readonly remoteAddress: string,
    readonly openedAtMs: number,
  ) {
    this.socket = socket;
  }

  /** Says goodbye with a reason. `socket` is null when it returns. */
  end(code: number, reason: string): void {
    this.socket?.end(code, reason);
  }

  /** Drops the connection and all that is buffered for it. */
  terminate(): void {
    this.socket?.close();
  }

  markClosed(): void {
    this.socket = null;
    this.outbox.length = 0;
  }
}

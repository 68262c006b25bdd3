/**
 * A WebSocket that speaks docs/formats.md §3 with bytes written here, not by src/rpc: what a
 * foreign or broken client can send, the tests can send.
 */
import { once } from 'node:events';
import { WebSocket } from 'ws';

export interface RawMessage {
  kind: number;
  opcode: number;
  status: number;
  callId: number;
  body: Buffer;
}

const MAGIC = 0x4b52;
const HEADER_BYTES = 16;

export function rawMessage(
  opcode: number,
  body: Buffer,
  fields: { magic?: number; version?: number; kind?: number; callId?: number } = {},
): Buffer {
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt16LE(fields.magic ?? MAGIC, 0);
  header.writeUInt8(fields.version ?? 1, 2);
  header.writeUInt8(fields.kind ?? 0, 3);
  header.writeUInt16LE(opcode, 4);
  header.writeUInt32LE(fields.callId ?? 1, 8);
  return Buffer.concat([header, body]);
}

export function helloBody(fields: Record<string, unknown> = {}): Buffer {
  const hello = {
    protocol: { min: 1, max: 1 },
    features: [],
    role: 'client',
    clusterId: null,
    serverId: null,
    expectServerId: null,
    credential: null,
    ...fields,
  };
  return Buffer.from(JSON.stringify(hello));
}

export interface RawOperation {
  op: number;
  tableId: number;
  key: Buffer;
  value?: Buffer;
  rpcId?: number;
}

const align8 = (bytes: number): number => (bytes + 7) & ~7;

/** An EXECUTE request body. */
export function executeBody(clientId: number, operations: readonly RawOperation[]): Buffer {
  const head = Buffer.alloc(24);
  head.writeBigUInt64LE(BigInt(clientId), 0);
  head.writeUInt32LE(operations.length, 16);
  const pieces = operations.map(({ op, tableId, key, value = Buffer.alloc(0), rpcId = 0 }) => {
    const bytes = Buffer.alloc(align8(32 + key.length + value.length));
    bytes.writeUInt8(op, 0);
    bytes.writeUInt16LE(key.length, 2);
    bytes.writeUInt32LE(value.length, 4);
    bytes.writeBigUInt64LE(BigInt(tableId), 8);
    bytes.writeBigUInt64LE(BigInt(rpcId), 16);
    key.copy(bytes, 32);
    value.copy(bytes, 32 + key.length);
    return bytes;
  });
  return Buffer.concat([head, ...pieces]);
}

/** Status numbers of an EXECUTE reply. */
export function resultStatuses(body: Buffer): number[] {
  const count = body.readUInt32LE(0);
  const statuses: number[] = [];
  for (let at = 8; statuses.length < count; ) {
    statuses.push(body.readUInt16LE(at));
    at += align8(16 + body.readUInt32LE(at + 4));
  }
  return statuses;
}

export class RawConnection {
  readonly socket: WebSocket;
  readonly #messages: RawMessage[] = [];
  #closed = false;
  #wake: () => void = () => undefined;

  private constructor(socket: WebSocket) {
    this.socket = socket;
    socket.on('message', (data: Buffer) => {
      this.#messages.push({
        kind: data.readUInt8(3),
        opcode: data.readUInt16LE(4),
        status: data.readUInt16LE(6),
        callId: data.readUInt32LE(8),
        body: data.subarray(HEADER_BYTES),
      });
      this.#wake();
    });
    socket.on('close', () => {
      this.#closed = true;
      this.#wake();
    });
    socket.on('error', () => this.#wake()); // always followed by 'close'
  }

  /** Connects; says nothing yet. */
  static async open(port: number): Promise<RawConnection> {
    const socket = new WebSocket(`ws://127.0.0.1:${port}/`, { perMessageDeflate: false });
    const connection = new RawConnection(socket);
    await once(socket, 'open');
    return connection;
  }

  /** Connects and has said a proper HELLO. */
  static async greeted(port: number): Promise<RawConnection> {
    const connection = await RawConnection.open(port);
    connection.send(rawMessage(1, helloBody()));
    const reply = await connection.next();
    if (reply?.status !== 0) throw new Error(`HELLO was refused: ${reply?.body.toString()}`);
    return connection;
  }

  send(bytes: Buffer): void {
    this.socket.send(bytes);
  }

  /** The next message; undefined if the connection is closed instead. */
  async next(timeoutMs = 10_000): Promise<RawMessage | undefined> {
    const end = performance.now() + timeoutMs;
    for (;;) {
      const message = this.#messages.shift();
      if (message !== undefined || this.#closed) return message;
      const leftMs = end - performance.now();
      if (leftMs <= 0) throw new Error(`neither answer nor close within ${timeoutMs} ms`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leftMs);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Whether the connection ends, whatever is received before. */
  async ends(timeoutMs = 10_000): Promise<boolean> {
    while ((await this.next(timeoutMs)) !== undefined);
    return true;
  }

  close(): void {
    this.socket.terminate();
  }
}

/**
 * Bytes on the wire per object, of `rekindle bench throughput`: what the client's sockets to the
 * server have sent and received while it made a known number of operations. The same for all
 * stores, since it is counted below their protocols: with the headers of messages, frames and HTTP,
 * without those of TCP and IP.
 */
import { subscribe } from 'node:diagnostics_channel';
import type { Socket } from 'node:net';
import { invariant } from '../src/rpc/errors.js';
import { repeatFor } from './concurrency.js';
import { type Dataset, randomStream } from './dataset.js';
import { type Metric, metric } from './report.js';
import {
  getBatch,
  getOne,
  type Operation,
  putBatch,
  putOne,
  type Side,
} from './throughput-works.js';

export interface Traffic {
  sent: number;
  received: number;
}

/** Of all sockets that this process opens from now on, by the address they go to. */
export class SocketTraffic {
  readonly #sockets: Socket[] = [];

  constructor() {
    subscribe('net.client.socket', (message) => {
      this.#sockets.push((message as { socket: Socket }).socket);
    });
  }

  /** `address`: host:port. Closed sockets count too. */
  total(address: string): Traffic {
    const port = Number(address.slice(address.lastIndexOf(':') + 1));
    const total = { sent: 0, received: 0 };
    for (const { remotePort, bytesWritten, bytesRead } of this.#sockets) {
      if (remotePort !== port) continue;
      total.sent += bytesWritten;
      total.received += bytesRead;
    }
    return total;
  }
}

interface Load {
  name: string;
  metric: string;
  inFlight: number;
  operation: Operation;
}

const MS = 60;

const loads: readonly Load[] = [
  { name: 'get, one at a time', metric: 'get-1', inFlight: 1, operation: getOne },
  { name: 'get, 256 in flight', metric: 'get-256', inFlight: 256, operation: getOne },
  { name: 'put, one at a time', metric: 'put-1', inFlight: 1, operation: putOne },
  { name: 'put, 256 in flight', metric: 'put-256', inFlight: 256, operation: putOne },
  {
    name: 'getMany 100, one at a time',
    metric: 'get-many-100-1',
    inFlight: 1,
    operation: getBatch,
  },
  { name: 'getMany 100, 16 in flight', metric: 'get-many-100', inFlight: 16, operation: getBatch },
  {
    name: 'putMany 100, one at a time',
    metric: 'put-many-100-1',
    inFlight: 1,
    operation: putBatch,
  },
  { name: 'putMany 100, 16 in flight', metric: 'put-many-100', inFlight: 16, operation: putBatch },
];

/** Of one object, for each load. */
export async function measureWireBytes(
  side: Side,
  traffic: SocketTraffic,
  dataset: Dataset,
): Promise<Traffic[]> {
  const bytes: Traffic[] = [];
  for (const load of loads) bytes.push(await bytesOf(load, side, traffic, dataset));
  return bytes;
}

/** What `measureWireBytes` gave for a side. */
export interface SideBytes {
  name: Side['name'];
  loads: readonly Traffic[];
}

/** Rows of name and one cell for each side, and the metrics. */
export function wireBytesTable(sides: readonly SideBytes[]): {
  rows: string[][];
  metrics: Metric[];
} {
  const metrics: Metric[] = [];
  const rows = loads.map((load, index) => {
    const cells = sides.map(({ name: store, loads: bytes }) => {
      const found = bytes[index];
      invariant(found !== undefined, 'every load was measured on every side');
      const { sent, received } = found;
      const name = `wire-bytes-per-${load.metric}`;
      const suffix = store === 'rekindle' ? '' : `-${store}`;
      metrics.push({ ...metric(`${name}${suffix}`, 'B', sent + received), work: name, store });
      return `${sent.toFixed(0)} + ${received.toFixed(0)}`;
    });
    return [load.name, ...cells];
  });
  return { rows, metrics };
}

/** Of one object. */
async function bytesOf(
  { inFlight, operation }: Load,
  { store, address }: Side,
  traffic: SocketTraffic,
  dataset: Dataset,
): Promise<Traffic> {
  const round = { dataset, random: randomStream(1) };
  const before = traffic.total(address);
  const { operations } = await repeatFor(MS, inFlight, () => operation(store, round));
  const after = traffic.total(address);
  return {
    sent: (after.sent - before.sent) / operations,
    received: (after.received - before.received) / operations,
  };
}

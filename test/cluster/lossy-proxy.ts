/**
 * A proxy before an etcd, or any server, that loses what a network loses. Where to is the caller's;
 * it knows nothing of what passes.
 */
import { once } from 'node:events';
import { createServer, connect as dial, type Server, type Socket } from 'node:net';

const HOST = '127.0.0.1';

/** What the proxy does to each connection from now on. */
export type ProxyFault =
  | 'none'
  /** Requests arrive; the connection is cut instead of the reply. */
  | 'lose-replies'
  /** Nothing passes, nothing is closed. */
  | 'stall';

/** Stands before one address; a fault strikes also what is under way. */
export class LossyProxy {
  port = 0;
  fault: ProxyFault = 'none';
  private readonly server: Server;
  private readonly sockets = new Set<Socket>();

  private constructor(target: string) {
    const [host, port] = target.split(':');
    this.server = createServer((near) => {
      const far = dial(Number(port), host);
      this.join(near, far);
    });
  }

  static async start(target: string): Promise<LossyProxy> {
    const proxy = new LossyProxy(target);
    proxy.server.listen(0, HOST);
    await once(proxy.server, 'listening');
    const address = proxy.server.address();
    if (address !== null && typeof address === 'object') proxy.port = address.port;
    return proxy;
  }

  get endpoint(): string {
    return `${HOST}:${this.port}`;
  }

  /** Ends what is under way. */
  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  async stop(): Promise<void> {
    this.cut();
    this.server.close();
    await once(this.server, 'close');
  }

  private join(near: Socket, far: Socket): void {
    const end = (): void => {
      near.destroy();
      far.destroy();
      this.sockets.delete(near);
      this.sockets.delete(far);
    };
    for (const socket of [near, far]) {
      this.sockets.add(socket);
      socket.once('close', end).on('error', end);
    }
    near.on('data', (bytes) => {
      if (this.fault !== 'stall') far.write(bytes);
    });
    far.on('data', (bytes) => {
      if (this.fault === 'lose-replies') end();
      else if (this.fault === 'none') near.write(bytes);
    });
  }
}

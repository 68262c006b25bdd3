/**
 * Brings the newest server list to every server that is up. One call per server at a time, always
 * with the list of the moment, repeated until the server has it or is not up any more.
 */
import type { CoordinatorContext } from './context.js';

const RETRY_MS = 200;

export class ServerListPusher {
  private readonly acknowledged = new Map<number, number>();
  private readonly inFlight = new Set<number>();

  constructor(private readonly context: CoordinatorContext) {}

  /** The list may have changed. */
  kick(): void {
    const { state } = this.context;
    const version = state.cluster.serverListVersion;
    for (const serverId of this.acknowledged.keys()) {
      if (!state.isUp(serverId)) this.acknowledged.delete(serverId);
    }
    for (const { serverId } of state.upServers()) {
      if (this.inFlight.has(serverId)) continue;
      if ((this.acknowledged.get(serverId) ?? -1) >= version) continue;
      this.inFlight.add(serverId);
      this.context.background(this.push(serverId), 'pushing the server list');
    }
  }

  private async push(serverId: number): Promise<void> {
    const list = this.context.state.serverList();
    let pauseMs = 0;
    try {
      const reply = await this.context.call(serverId, 'UPDATE_SERVER_LIST', { list });
      if (reply.version >= list.version) this.acknowledged.set(serverId, list.version);
      else pauseMs = RETRY_MS;
    } catch (error) {
      pauseMs = RETRY_MS;
      this.context.log('debug', 'a server did not take the server list', {
        serverId,
        version: list.version,
        error: String(error),
      });
    }
    this.context.after(pauseMs, () => {
      this.inFlight.delete(serverId);
      this.kick();
    });
  }
}

/**
 * Carries out what `server-list-push.ts` decides: calls servers with what has changed in the list,
 * and lets them tell others.
 */
import type { ReplyOf } from '../rpc/table.js';
import type { CoordinatorContext } from './context.js';
import {
  LIST_FAN_OUT,
  type PushEffect,
  type PushEvent,
  pushTimeoutMs,
  ServerListPush,
} from './server-list-push.js';
import { ServerListHistory } from './server-list-update.js';

export class ServerListPusher {
  private readonly push: ServerListPush;
  private history: ServerListHistory | null = null;
  private wakeAtMs = Number.POSITIVE_INFINITY;
  private cancelWake: () => void = () => undefined;

  constructor(
    private readonly context: CoordinatorContext,
    private readonly fanOut: number = LIST_FAN_OUT,
  ) {
    this.push = new ServerListPush(fanOut);
  }

  /** The list may have changed. */
  kick(): void {
    const { state } = this.context;
    if (this.history === null) this.history = new ServerListHistory(state.serverList());
    // Most commits change nothing of it.
    const news = this.history.version !== state.cluster.serverListVersion;
    if (news) this.history.advance(state.serverList());
    this.step({ kind: 'look' });
  }

  private step(event: PushEvent): void {
    const { context, history } = this;
    if (history === null) return;
    const up = context.state.upServers().map(({ serverId }) => serverId);
    const view = { version: history.version, base: history.base, up };
    for (const effect of this.push.step(event, view, context.clock.monotonicMs())) {
      if (effect.kind === 'wake') this.wake(effect.atMs);
      else context.background(this.send(effect, history), 'pushing the server list');
    }
  }

  private wake(atMs: number): void {
    if (this.wakeAtMs <= atMs) return;
    this.cancelWake();
    this.wakeAtMs = atMs;
    const delayMs = Math.max(1, atMs - this.context.clock.monotonicMs());
    this.cancelWake = this.context.after(delayMs, () => {
      this.wakeAtMs = Number.POSITIVE_INFINITY;
      this.step({ kind: 'look' });
    });
  }

  private async send(
    { serverId, fromVersion, forward }: PushEffect & { kind: 'send' },
    history: ServerListHistory,
  ): Promise<void> {
    const { context, fanOut } = this;
    const update = history.updateFrom(fromVersion);
    const alone = forward.length === 0;
    const options = alone ? {} : { timeoutMs: pushTimeoutMs(forward.length, fanOut) };
    let reply: ReplyOf<'UPDATE_SERVER_LIST'>;
    try {
      const request = { update, forward, fanOut };
      reply = await context.call(serverId, 'UPDATE_SERVER_LIST', request, options);
    } catch (error) {
      const fields = { serverId, version: update.version, error: String(error) };
      context.log('debug', 'a server did not take the server list', fields);
      this.step({ kind: 'failed', serverId });
      return;
    }
    this.step({ kind: 'answered', serverId, reply });
  }
}

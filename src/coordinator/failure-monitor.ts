/**
 * Watches the servers that are up: holds a link to each, pings it now and then, and runs the probes
 * that `crash-verifier.ts` asks for. It says who is dead; what follows is the coordinator's.
 */
import { asRekindleError, RekindleError } from '../rpc/errors.js';
import type { LinkPool, RpcLink } from '../rpc/transport.js';
import type { CoordinatorContext } from './context.js';
import type { ServerRecord } from './coordinator-state.js';
import {
  CRASH_VERIFIER_DEFAULTS,
  CrashVerifier,
  type CrashVerifierConfig,
  type CrashVerifierEvent,
  type ProbeOutcome,
} from './crash-verifier.js';

export interface FailureMonitorConfig {
  pingIntervalMs: number;
  probeTimeoutMs: number;
  verifier: CrashVerifierConfig;
}

export const FAILURE_MONITOR_DEFAULTS: FailureMonitorConfig = {
  pingIntervalMs: 1_000,
  probeTimeoutMs: 500,
  verifier: CRASH_VERIFIER_DEFAULTS,
};

export type CrashListener = (serverId: number, suspectedAtMs: number, reason: string) => void;

export class FailureMonitor {
  private readonly verifier: CrashVerifier;
  private readonly watched = new WeakSet<RpcLink>();
  private readonly pinging = new Set<number>();
  private stopped = false;

  constructor(
    private readonly context: CoordinatorContext,
    private readonly links: LinkPool,
    private readonly onCrashed: CrashListener,
    private readonly config: FailureMonitorConfig = FAILURE_MONITOR_DEFAULTS,
  ) {
    this.verifier = new CrashVerifier(config.verifier);
  }

  /** Every server that the list has as up is pinged now, then each interval. */
  start(): void {
    const round = (): void => {
      if (this.stopped) return;
      this.pingAll();
      this.context.after(this.config.pingIntervalMs, round);
    };
    round();
  }

  stop(): void {
    this.stopped = true;
  }

  suspect(serverId: number, reason: string): void {
    if (this.stopped || !this.context.state.isUp(serverId)) return;
    if (this.verifier.isSuspected(serverId)) return;
    this.context.log('info', 'a server is suspected', { serverId, reason });
    this.step({ kind: 'suspected', serverId });
  }

  /** The server has left the list of those that are up. */
  left(serverId: number): void {
    this.step({ kind: 'left', serverId });
  }

  link(server: ServerRecord): RpcLink {
    const link = this.links.link(server.address, server.serverId);
    if (!this.watched.has(link)) {
      this.watched.add(link);
      link.onLost(() => this.suspect(server.serverId, 'its connection was lost'));
    }
    return link;
  }

  private pingAll(): void {
    for (const server of this.context.state.upServers()) {
      if (this.pinging.has(server.serverId) || this.verifier.isSuspected(server.serverId)) continue;
      this.pinging.add(server.serverId);
      this.context.background(this.ping(server), 'pinging a server');
    }
  }

  private async ping(server: ServerRecord): Promise<void> {
    const { serverId } = server;
    try {
      await this.link(server).call(
        'PING',
        { callerServerId: null },
        { timeoutMs: this.config.probeTimeoutMs },
      );
    } catch (error) {
      this.suspect(serverId, `a ping failed: ${asRekindleError(error).message}`);
    } finally {
      this.pinging.delete(serverId);
    }
  }

  private step(event: CrashVerifierEvent): void {
    const up = this.context.state.upServers().length;
    for (const effect of this.verifier.step(event, up, this.context.now())) {
      const { serverId } = effect;
      if (effect.kind === 'probe') {
        this.context.after(effect.afterMs, () =>
          this.context.background(this.probe(serverId), 'probing a server'),
        );
      } else if (effect.kind === 'crashed') {
        this.onCrashed(serverId, effect.suspectedAtMs, effect.reason);
      } else if (effect.kind === 'limited') {
        this.context.log(
          'warn',
          'a server does not answer, but too many fell silent at once to declare it crashed; ' +
            'is this coordinator cut off?',
          { serverId },
        );
      } else this.context.log('info', 'the suspected server answers', { serverId });
    }
  }

  private async probe(serverId: number): Promise<void> {
    if (this.stopped) return;
    const server = this.context.state.servers.get(serverId);
    if (server === undefined || server.status !== 'up') return this.left(serverId);
    const outcome = await this.probeOutcome(server);
    if (!this.stopped) this.step({ kind: 'probed', serverId, outcome });
  }

  private async probeOutcome(server: ServerRecord): Promise<ProbeOutcome> {
    const { probeTimeoutMs } = this.config;
    const startedAtMs = performance.now();
    try {
      // A link that waits to reconnect would hide what the address says now.
      if (!this.link(server).connected) this.links.drop(server.address);
      await this.link(server).call('PING', { callerServerId: null }, { timeoutMs: probeTimeoutMs });
      return 'alive';
    } catch (error) {
      const outcome = probeOutcomeOf(error);
      // Silence is a time without an answer, however fast the call failed.
      const leftMs = probeTimeoutMs - (performance.now() - startedAtMs);
      if (outcome === 'silent' && leftMs > 0) {
        await new Promise<void>((resolve) => this.context.after(leftMs, resolve));
      }
      return outcome;
    }
  }
}

/** What a failed ping says. A server that answers with an error is alive. */
export function probeOutcomeOf(error: unknown): ProbeOutcome {
  if (isRefusal(error)) return 'refused';
  if (!(error instanceof RekindleError)) return 'silent';
  if (error.code === 'WRONG_CLUSTER') return 'refused';
  // Another server has this address: the process that had it is gone.
  if (error.code === 'WRONG_SERVER') return answersWithoutId(error) ? 'silent' : 'refused';
  const unanswered = ['TIMEOUT', 'CONNECTION_LOST', 'ABORTED', 'CLIENT_CLOSED'];
  return unanswered.includes(error.code) ? 'silent' : 'alive';
}

/**
 * A process answers that does not know its server id yet: perhaps the very server that is meant,
 * since its id is committed before it hears of it. That proves nothing.
 */
export function answersWithoutId(error: unknown): boolean {
  if (!(error instanceof RekindleError) || error.code !== 'WRONG_SERVER') return false;
  return !causes(error).some(({ details }) => typeof details?.serverId === 'number');
}

interface Failure {
  code?: unknown;
  message?: unknown;
  cause?: unknown;
  details?: { code?: unknown; serverId?: unknown };
}

const CAUSES_MAX = 8;

/** The error and what caused it, outermost first. */
function causes(error: unknown): Failure[] {
  const found: Failure[] = [];
  let at = error;
  while (at instanceof Object && found.length < CAUSES_MAX) {
    found.push(at);
    at = (at as Failure).cause;
  }
  return found;
}

function isRefusal(error: unknown): boolean {
  return causes(error).some(
    ({ code, message, details }) =>
      code === 'ECONNREFUSED' ||
      details?.code === 'ECONNREFUSED' ||
      (typeof message === 'string' && message.includes('ECONNREFUSED')),
  );
}

/**
 * Watches the servers that are up: holds a link to each, pings it again and again, and asks the
 * questions that `crash-verifier.ts` wants answered, of the suspect itself and of witnesses. It
 * says who is dead; what follows is the coordinator's.
 */
import { Sluggishness } from '../ops/sluggishness.js';
import { asRekindleError } from '../rpc/errors.js';
import type { ProbeOutcome } from '../rpc/messages.js';
import { patience, probe } from '../rpc/probe.js';
import type { LinkPool, RpcLink } from '../rpc/transport.js';
import type { CoordinatorContext } from './context.js';
import type { ServerRecord } from './coordinator-state.js';
import {
  CRASH_VERIFIER_DEFAULTS,
  CrashVerifier,
  type CrashVerifierConfig,
  type CrashVerifierEvent,
  type Obstacle,
} from './crash-verifier.js';
import { ReachComplaints } from './reach-complaints.js';

export interface FailureMonitorConfig {
  /** Of each server; longer by 1 ms for each server of a large cluster. */
  pingIntervalMs: number;
  /** Silence after which a server is suspected. */
  pingTimeoutMs: number;
  /** Silence that a probe, or that of a witness, takes for an answer. */
  probeTimeoutMs: number;
  witnesses: number;
  /** Of a server that has just started, whatever it says: it may stand still for a while. */
  newServerLagMs: number;
  verifier: CrashVerifierConfig;
}

export const FAILURE_MONITOR_DEFAULTS: FailureMonitorConfig = {
  pingIntervalMs: 100,
  pingTimeoutMs: 150,
  probeTimeoutMs: 250,
  witnesses: 2,
  newServerLagMs: 250,
  verifier: CRASH_VERIFIER_DEFAULTS,
};

const NEW_MS = 3_000;
/** What a witness may take beyond its probe, which it begins and ends late if it is slow. */
const WITNESS_MARGIN_MS = 250;

const OBSTACLES: Record<Obstacle, string> = {
  disputed: 'does not answer the coordinator but answers another server; is the network divided?',
  'no-witness': 'does not answer, but no other server is there to confirm it',
  'coordinator-cut-off':
    'does not answer, but neither do most others; is this coordinator cut off?',
  'too-many-at-once': 'does not answer, but too many fell silent at once to declare it crashed',
};

export type CrashListener = (serverId: number, suspectedAtMs: number, reason: string) => void;

export class FailureMonitor {
  private readonly verifier: CrashVerifier;
  private readonly complaints = new ReachComplaints();
  private readonly watched = new WeakSet<RpcLink>();
  private readonly pinging = new Set<number>();
  /** What each server said of its own lag, and when it said so first. */
  private readonly lags = new Map<number, { lagMs: number; sinceMs: number }>();
  private stopped = false;

  constructor(
    private readonly context: CoordinatorContext,
    private readonly links: LinkPool,
    private readonly onCrashed: CrashListener,
    private readonly config: FailureMonitorConfig = FAILURE_MONITOR_DEFAULTS,
    private readonly lag: Pick<Sluggishness, 'ms' | 'close'> = new Sluggishness(),
  ) {
    this.verifier = new CrashVerifier(config.verifier);
  }

  /** Every server that the list has as up is pinged now, then each interval. */
  start(): void {
    const round = (): void => {
      if (this.stopped) return;
      this.pingAll();
      const servers = this.context.state.upServers().length;
      this.context.after(Math.max(this.config.pingIntervalMs, servers), round);
    };
    round();
  }

  stop(): void {
    this.stopped = true;
    this.lag.close();
  }

  suspect(serverId: number, reason: string): void {
    if (this.stopped || !this.context.state.isUp(serverId)) return;
    if (this.verifier.isSuspected(serverId)) return;
    this.context.log('debug', 'a server is suspected', { serverId, reason });
    this.step({ kind: 'suspected', serverId });
  }

  /** A server says that it does not reach another one. */
  hinted(from: number | null, serverId: number, reason: string): void {
    if (from !== null) this.complaints.note(from, serverId, this.context.now());
    this.suspect(serverId, `a hint: ${reason.slice(0, 200)}`);
  }

  /** The server has left the list of those that are up. */
  left(serverId: number): void {
    this.lags.delete(serverId);
    this.step({ kind: 'left', serverId });
  }

  /** Suspects that cannot be judged, and servers that do not reach one another; for `status`. */
  warnings(): string[] {
    const { state } = this.context;
    const heldUp = this.verifier.heldUp().map(({ serverId, suspectedAtMs, obstacle }) => {
      const seconds = Math.round((this.context.now() - suspectedAtMs) / 1_000);
      return `server ${serverId} ${OBSTACLES[obstacle]} (for ${seconds} s)`;
    });
    const isUp = (serverId: number): boolean => state.isUp(serverId);
    return [...heldUp, ...this.complaints.warnings(isUp, this.context.now())];
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
    const timeoutMs = this.patienceWith(this.config.pingTimeoutMs, serverId);
    try {
      const request = { callerServerId: null };
      const { lagMs } = await this.link(server).call('PING', request, { timeoutMs });
      const sinceMs = this.lags.get(serverId)?.sinceMs ?? this.context.clock.monotonicMs();
      if (this.context.state.isUp(serverId)) this.lags.set(serverId, { lagMs, sinceMs });
    } catch (error) {
      this.suspect(serverId, `a ping failed: ${asRekindleError(error).message}`);
    } finally {
      this.pinging.delete(serverId);
    }
  }

  /** Of the coordinator and these servers, the slowest sets the pace. */
  private patienceWith(timeoutMs: number, ...serverIds: number[]): number {
    return patience(timeoutMs, Math.max(this.lag.ms(), ...serverIds.map((id) => this.lagOf(id))));
  }

  private lagOf(serverId: number): number {
    const { lagMs, sinceMs } = this.lags.get(serverId) ?? {
      lagMs: 0,
      sinceMs: this.context.clock.monotonicMs(),
    };
    const newMs =
      this.context.clock.monotonicMs() - sinceMs < NEW_MS ? this.config.newServerLagMs : 0;
    return Math.max(newMs, lagMs);
  }

  private step(event: CrashVerifierEvent): void {
    const up = this.context.state.upServers().length;
    for (const effect of this.verifier.step(event, up, this.context.now())) {
      const { serverId } = effect;
      if (effect.kind === 'ask') {
        const { round } = effect;
        if (effect.afterMs === 0) this.ask(serverId, round);
        else this.context.after(effect.afterMs, () => this.ask(serverId, round));
      } else if (effect.kind === 'crashed') {
        this.onCrashed(serverId, effect.suspectedAtMs, effect.reason);
      } else if (effect.kind === 'held-up') {
        this.context.log('warn', `a server ${OBSTACLES[effect.obstacle]}`, { serverId });
      } else this.context.log('debug', 'the suspected server answers', { serverId });
    }
  }

  /** One round: everybody is asked at once. */
  private ask(serverId: number, round: number): void {
    if (this.stopped) return;
    const server = this.context.state.servers.get(serverId);
    if (server === undefined || server.status !== 'up') {
      this.left(serverId);
      return;
    }
    const witnesses = this.chooseWitnesses(serverId);
    this.step({ kind: 'asked', serverId, round, witnesses: witnesses.length });
    const report = async (witness: number | null, answer: Promise<ProbeOutcome>): Promise<void> => {
      const outcome = await answer;
      if (!this.stopped) this.step({ kind: 'probed', serverId, round, witness, outcome });
    };
    const timeoutMs = this.patienceWith(this.config.probeTimeoutMs, serverId);
    const target = {
      link: () => this.link(server),
      freshLink: () => {
        this.links.drop(server.address, serverId);
        return this.link(server);
      },
    };
    this.context.background(
      report(null, probe(target, timeoutMs, server.nonce, this.context.clock)),
      'probing a server',
    );
    for (const witness of witnesses) {
      const answer = this.askWitness(witness, serverId);
      this.context.background(report(witness.serverId, answer), 'asking a witness');
    }
  }

  private async askWitness(witness: ServerRecord, serverId: number): Promise<ProbeOutcome> {
    const timeoutMs = this.patienceWith(this.config.probeTimeoutMs, serverId, witness.serverId);
    try {
      const link = this.link(witness);
      const request = { serverId, timeoutMs };
      const options = { timeoutMs: 1.5 * timeoutMs + WITNESS_MARGIN_MS };
      const { outcome } = await link.call('PROBE_SERVER', request, options);
      return outcome;
    } catch (error) {
      const fields = { serverId, witness: witness.serverId, code: asRekindleError(error).code };
      this.context.log('debug', 'a witness did not answer', fields);
      return 'unknown';
    }
  }

  /** Other servers that are not suspected themselves, by chance. */
  private chooseWitnesses(serverId: number): ServerRecord[] {
    const candidates = this.context.state
      .upServers()
      .filter((each) => each.serverId !== serverId && !this.verifier.isSuspected(each.serverId));
    const chosen: ServerRecord[] = [];
    while (chosen.length < this.config.witnesses && candidates.length > 0) {
      const at = Math.floor(this.context.clock.random() * candidates.length);
      chosen.push(...candidates.splice(at, 1));
    }
    return chosen;
  }
}

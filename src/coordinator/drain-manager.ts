/**
 * Carries drains out (`drain.ts`): lets tablets migrate, asks masters for what they have left, and
 * commits the end. Each server that is drained has one loop, which looks at the committed state in
 * each turn, so it does the same after a restart. Masters move replicas by themselves, because the
 * server list tells them to.
 */
import { asRekindleError } from '../rpc/errors.js';
import type { DrainReport } from '../rpc/messages.js';
import type { ReplyOf, RequestOf } from '../rpc/table.js';
import type { CoordinatorContext } from './context.js';
import {
  type DrainStep,
  type DrainTries,
  decideDrain,
  decideDrained,
  drainUnderWay,
  mastersToAsk,
  nextDrainStep,
} from './drain.js';
import type { MigrationManager } from './migration-manager.js';
import { pauseUntilWoken, type Wakeable } from './wakeable.js';

const POLL_MS = 200;
/** Between two tries of one tablet; doubled with each, so that a cleaner can make room. */
const RETRY_MS = 500;
const RETRY_DOUBLINGS_MAX = 4;

interface Tries extends DrainTries {
  notBeforeMs: number;
}

const NO_TRIES: Tries = { count: 0, targets: new Set(), notBeforeMs: 0 };

interface Loop extends Wakeable {
  waitingFor: string | null;
  replicas: number | null;
  /** By tablet. One that is still there in a later turn was sent away in vain. */
  readonly tries: Map<string, Tries>;
}

export class DrainManager {
  private readonly loops = new Map<number, Loop>();

  constructor(
    private readonly context: CoordinatorContext,
    private readonly migrations: Pick<MigrationManager, 'migrate'>,
  ) {}

  /** Some drain may have begun, or what one waits for may have come. */
  kick(): void {
    for (const { serverId } of this.context.state.upServers()) {
      if (drainUnderWay(this.context.state, serverId) === undefined) continue;
      const loop = this.loops.get(serverId);
      if (loop !== undefined) {
        loop.wake?.();
        continue;
      }
      const fresh: Loop = { wake: null, waitingFor: null, replicas: null, tries: new Map() };
      this.loops.set(serverId, fresh);
      this.context.background(this.run(serverId, fresh), 'a drain');
    }
  }

  async drain(request: RequestOf<'DRAIN_SERVER'>): Promise<ReplyOf<'DRAIN_SERVER'>> {
    await this.context.faultPoint('drain-1');
    await this.context.commit((state) => decideDrain(state, request, this.context.now()));
    await this.context.faultPoint('drain-2');
    return {};
  }

  reports(): DrainReport[] {
    const { state } = this.context;
    return state.upServers().flatMap(({ serverId, drain }) => {
      if (drain === undefined) return [];
      const tablets = state.tabletsOf(serverId).length;
      const loop = this.loops.get(serverId);
      const done = drain.state === 'drained';
      const replicas = done ? 0 : (loop?.replicas ?? null);
      const waitingFor = done ? null : (loop?.waitingFor ?? null);
      return [{ serverId, ...drain, tablets, replicas, waitingFor }];
    });
  }

  private async run(serverId: number, loop: Loop): Promise<void> {
    try {
      while (drainUnderWay(this.context.state, serverId) !== undefined) {
        const step = nextDrainStep(this.context.state, serverId, loop.tries);
        const delayMs = await this.take(serverId, loop, step);
        if (delayMs > 0) await pauseUntilWoken(this.context, loop, delayMs);
      }
    } finally {
      this.loops.delete(serverId);
    }
  }

  /** Says how long to wait for the next turn. */
  private async take(serverId: number, loop: Loop, step: DrainStep): Promise<number> {
    if (step.kind === 'wait') {
      loop.waitingFor = step.reason;
      return POLL_MS;
    }
    if (step.kind === 'move') return this.move(loop, step);
    const free = await this.ask(serverId, loop);
    if (free === null) return POLL_MS;
    await this.context.faultPoint('drain-3');
    const drained = await this.context.commit((state) => decideDrained(state, serverId, free));
    if (!drained) return POLL_MS;
    await this.context.faultPoint('drain-4');
    this.context.log('info', 'a server is drained: its process can be stopped', { serverId });
    return 0;
  }

  private async move(loop: Loop, { key, request }: DrainStep & { kind: 'move' }): Promise<number> {
    const nowMs = this.context.clock.monotonicMs();
    const { count, targets, notBeforeMs } = loop.tries.get(key) ?? NO_TRIES;
    if (nowMs < notBeforeMs) {
      loop.waitingFor = 'the next try of a migration that has failed';
      return notBeforeMs - nowMs;
    }
    const { targetServerId } = request;
    loop.tries.set(key, {
      count: count + 1,
      // All have been tried: it starts anew.
      targets: new Set([...(targets.has(targetServerId) ? [] : targets), targetServerId]),
      notBeforeMs: nowMs + RETRY_MS * 2 ** Math.min(count, RETRY_DOUBLINGS_MAX),
    });
    try {
      await this.migrations.migrate(request);
    } catch (error) {
      const { message, retryable, code } = asRekindleError(error);
      // What was true of the state has changed since.
      if (!retryable && code !== 'INVALID_ARGUMENT' && code !== 'TABLE_NOT_FOUND') throw error;
      loop.waitingFor = message;
      return POLL_MS;
    }
    return 0;
  }

  /** Those that have nothing there; null: not all. */
  private async ask(serverId: number, loop: Loop): Promise<Set<number> | null> {
    const { state } = this.context;
    const { serverListVersion } = state.cluster;
    const masters = mastersToAsk(state, serverId);
    const answers = await Promise.all(
      masters.map((id) => this.replicasOf(id, serverId, serverListVersion)),
    );
    const silent = masters.filter((_, at) => answers[at] === null);
    const replicas = answers.reduce<number>((sum, each) => sum + (each ?? 0), 0);
    loop.replicas = silent.length === masters.length ? null : replicas;
    loop.waitingFor = null;
    if (silent.length > 0) loop.waitingFor = `an answer of server ${silent.join(', ')}`;
    else if (replicas > 0) loop.waitingFor = `${replicas} replicas that masters have there`;
    return loop.waitingFor === null ? new Set(masters) : null;
  }

  /** null: it does not answer, or does not know of the drain yet. */
  private async replicasOf(
    masterId: number,
    backupServerId: number,
    versionMin: number,
  ): Promise<number | null> {
    try {
      const reply = await this.context.call(masterId, 'COUNT_REPLICAS', { backupServerId });
      return reply.serverListVersion >= versionMin ? reply.replicas : null;
    } catch (error) {
      const fields = { masterId, backupServerId, error: String(error) };
      this.context.log('info', 'COUNT_REPLICAS will be repeated', fields);
      return null;
    }
  }
}

/**
 * Keeps copies of the coordinator's state on the servers. Changes are collected for a moment, then
 * the newest state goes to every server that is up; `copies` counts those that hold the newest.
 *
 * A copy is a second line: nothing waits for it, and the storage stays the truth.
 */
import type { CoordinatorContext } from './context.js';
import { copyOf, type StateCopy } from './state-copy.js';

const COLLECT_MS = 100;
const RETRY_MS = 1_000;
/** Servers that should hold the newest state. */
export const STATE_COPIES_WANTED = 2;
/** A change is on its way for a moment; an operator hears of it if it stays so. */
const LATE_MS = 5_000;
/** A copy travels in one message. */
const COPY_BYTES_MAX = 7 * 1024 * 1024;

export class StateCopier {
  private readonly revisions = new Map<number, number>();
  private readonly inFlight = new Set<number>();
  private scheduled = false;
  private tooLargeLogged = false;
  /** When the wanted number of servers last held the newest state. */
  private enoughAtMs: number;

  constructor(private readonly context: CoordinatorContext) {
    this.enoughAtMs = context.now();
  }

  /** Too few servers have held the newest state for too long. */
  get late(): boolean {
    const enough = this.copies >= STATE_COPIES_WANTED;
    return !enough && this.context.now() - this.enoughAtMs > LATE_MS;
  }

  get copies(): number {
    const { state, revision } = this.context;
    return state.upServers().filter(({ serverId }) => this.revisions.get(serverId) === revision)
      .length;
  }

  kick(): void {
    this.schedule(COLLECT_MS);
  }

  private schedule(ms: number): void {
    if (this.scheduled) return;
    this.scheduled = true;
    this.context.after(ms, () => {
      this.scheduled = false;
      this.copy();
    });
  }

  private copy(): void {
    const { state, revision } = this.context;
    for (const serverId of this.revisions.keys()) {
      if (!state.isUp(serverId)) this.revisions.delete(serverId);
    }
    const behind = state
      .upServers()
      .filter(({ serverId }) => this.revisions.get(serverId) !== revision)
      .filter(({ serverId }) => !this.inFlight.has(serverId));
    if (behind.length === 0) return;
    const copy = copyOf(state, revision);
    if (copy.state.length > COPY_BYTES_MAX) {
      if (!this.tooLargeLogged) {
        this.context.log('error', 'the state is too large to be copied to servers', {
          bytes: copy.state.length,
          bytesMax: COPY_BYTES_MAX,
        });
      }
      this.tooLargeLogged = true;
      return;
    }
    for (const { serverId } of behind) {
      this.inFlight.add(serverId);
      this.context.background(this.send(serverId, copy), 'copying the state');
    }
  }

  private async send(serverId: number, copy: StateCopy): Promise<void> {
    let pauseMs = COLLECT_MS;
    try {
      await this.context.call(serverId, 'STORE_COORDINATOR_STATE', copy);
      this.revisions.set(serverId, copy.revision);
      if (this.copies >= STATE_COPIES_WANTED) this.enoughAtMs = this.context.now();
    } catch (error) {
      pauseMs = RETRY_MS;
      this.context.log('debug', 'a server did not take the copy of the state', {
        serverId,
        revision: copy.revision,
        error: String(error),
      });
    } finally {
      this.inFlight.delete(serverId);
    }
    if (this.context.state.isUp(serverId)) this.schedule(pauseMs);
  }
}

/**
 * Who is to be told of the newest server list, by whom, and until when: a pure machine. The leader
 * tells a few servers, each of which tells a few of those that it is given, and so on; who has it
 * is told the other way. Up to `fanOut` servers are told one by one.
 *
 * Rules: every server that is up is told until it has said, to this leader, that it has the list
 * of the moment; the leader has one call at a server at a time; who did not answer tells nobody
 * else until it does, so a tree loses a branch to it once. I/O belongs to `server-list-pusher.ts`
 * and, at servers, to `server-list-forwarder.ts`.
 */
import type { ReplyOf } from '../rpc/table.js';

export const LIST_FAN_OUT = 8;
const RETRY_MS = 200;
/** Between two trees: changes that follow one another closely go together. */
const TREE_INTERVAL_MS = 50;
/** Of a call to one server, and more for each level below it. */
const LEVEL_MS = 500;

export interface PushView {
  /** Of the newest list. */
  version: number;
  /** Older lists than this need a whole one. */
  base: number;
  /** Ascending. */
  up: readonly number[];
}

export type PushEvent =
  /** The view may have changed, or time has passed. */
  | { kind: 'look' }
  | { kind: 'answered'; serverId: number; reply: ReplyOf<'UPDATE_SERVER_LIST'> }
  | { kind: 'failed'; serverId: number };

export type PushEffect =
  /** Answered by `answered` or `failed`. */
  | { kind: 'send'; serverId: number; fromVersion: number; forward: number[] }
  | { kind: 'wake'; atMs: number };

interface Target {
  /** That it has, as far as is known. */
  version: number;
  /** What it has said to this leader; -1: nothing. */
  confirmed: number;
  /** It did not answer last. */
  silent: boolean;
  notBeforeMs: number;
  /** Whose call is to reach it, and with which version. */
  via: { serverId: number; version: number } | null;
}

/** Whom each of the first ones is to tell, silent ones at the ends. */
export function pushGroups(serverIds: readonly number[], fanOut: number): number[][] {
  const count = Math.min(fanOut, serverIds.length);
  return Array.from({ length: count }, (_, at) => serverIds.filter((_id, i) => i % count === at));
}

/** Who tells waits longer than those whom it tells. */
export function pushTimeoutMs(forwardCount: number, fanOut: number): number {
  if (forwardCount === 0) return LEVEL_MS;
  return LEVEL_MS + pushTimeoutMs(Math.ceil(forwardCount / fanOut) - 1, fanOut);
}

export class ServerListPush {
  private readonly targets = new Map<number, Target>();
  private treeAtMs = Number.NEGATIVE_INFINITY;

  constructor(private readonly fanOut: number = LIST_FAN_OUT) {}

  /** Servers that have said that they have this version. */
  confirmed(version: number): number {
    return [...this.targets.values()].filter((each) => each.confirmed >= version).length;
  }

  step(event: PushEvent, view: PushView, nowMs: number): PushEffect[] {
    this.follow(view);
    if (event.kind === 'answered') this.answered(event.serverId, event.reply, nowMs);
    if (event.kind === 'failed') this.failed(event.serverId, nowMs);
    return this.push(view, nowMs);
  }

  private follow({ up, version }: PushView): void {
    const listed = new Set(up);
    for (const serverId of this.targets.keys()) {
      if (!listed.has(serverId)) this.targets.delete(serverId);
    }
    for (const serverId of up) {
      if (this.targets.has(serverId)) continue;
      // It has the list that it was told when it joined, or that of the leader before.
      const fresh = { confirmed: -1, silent: false, notBeforeMs: 0, via: null };
      this.targets.set(serverId, { version, ...fresh });
    }
  }

  private answered(
    head: number,
    { version, behind, silent, untold }: ReplyOf<'UPDATE_SERVER_LIST'>,
    nowMs: number,
  ): void {
    const late = new Map(behind.map((each) => [each.serverId, each.version]));
    const quiet = new Set(silent);
    const unknown = new Set(untold);
    for (const [serverId, target] of this.targets) {
      if (target.via?.serverId !== head) continue;
      const sent = target.via.version;
      target.via = null;
      const has = serverId === head ? version : (late.get(serverId) ?? sent);
      if (unknown.has(serverId)) continue;
      target.silent = quiet.has(serverId);
      if (!target.silent) target.version = has;
      if (target.silent || has < sent) target.notBeforeMs = nowMs + RETRY_MS;
      else target.confirmed = Math.max(target.confirmed, has);
    }
  }

  /** Those whom it should have told are told by others. */
  private failed(head: number, nowMs: number): void {
    for (const [serverId, target] of this.targets) {
      if (target.via?.serverId !== head) continue;
      target.via = null;
      if (serverId !== head) continue;
      target.silent = true;
      target.notBeforeMs = nowMs + RETRY_MS;
    }
  }

  private push({ version, base }: PushView, nowMs: number): PushEffect[] {
    const due: number[] = [];
    let wakeAtMs = Number.POSITIVE_INFINITY;
    for (const [serverId, { confirmed, notBeforeMs, via }] of this.targets) {
      if (confirmed >= version || this.isBusy(serverId, via, version)) continue;
      if (notBeforeMs <= nowMs) due.push(serverId);
      else wakeAtMs = Math.min(wakeAtMs, notBeforeMs);
    }
    if (due.length > this.fanOut) {
      if (nowMs < this.treeAtMs) return [{ kind: 'wake', atMs: this.treeAtMs }];
      this.treeAtMs = nowMs + TREE_INTERVAL_MS;
    }
    const effects: PushEffect[] = [];
    const isOld = (serverId: number): boolean => (this.targets.get(serverId)?.version ?? 0) < base;
    for (const some of [due.filter(isOld), due.filter((serverId) => !isOld(serverId))]) {
      for (const [head, ...forward] of pushGroups(this.inOrder(some, version), this.fanOut)) {
        if (head !== undefined) effects.push(this.send(head, forward, base, version));
      }
    }
    if (wakeAtMs < Number.POSITIVE_INFINITY) effects.push({ kind: 'wake', atMs: wakeAtMs });
    return effects;
  }

  /** Whoever is called is; those that it tells are for the version that they are told. */
  private isBusy(serverId: number, via: Target['via'], version: number): boolean {
    return via !== null && (via.serverId === serverId || via.version >= version);
  }

  /** Others come first with each version; who did not answer comes last. */
  private inOrder(serverIds: readonly number[], version: number): number[] {
    const isSilent = (serverId: number): boolean => this.targets.get(serverId)?.silent ?? false;
    const heard = serverIds.filter((serverId) => !isSilent(serverId)).sort((a, b) => a - b);
    const first = heard.length === 0 ? 0 : (version * this.fanOut) % heard.length;
    return [...heard.slice(first), ...heard.slice(0, first), ...serverIds.filter(isSilent)];
  }

  private send(head: number, forward: number[], base: number, version: number): PushEffect {
    let oldest = version;
    for (const serverId of [head, ...forward]) {
      const target = this.targets.get(serverId);
      if (target === undefined) continue;
      target.via = { serverId: head, version };
      oldest = Math.min(oldest, target.version);
    }
    return { kind: 'send', serverId: head, fromVersion: oldest < base ? 0 : oldest, forward };
  }
}

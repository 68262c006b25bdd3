/**
 * Server lists as what has changed in them. The leader remembers since when each entry is what it
 * is; a server makes the new list of the one that it has. An update from version 0 is the whole
 * list.
 *
 * Rule: an update from version v makes the same list of every version from v on. Pure.
 */
import { invariant } from '../rpc/errors.js';
import type { ServerEntry, ServerList, ServerListUpdate } from '../rpc/messages.js';

/** Servers that have left which are remembered; beyond it updates begin at a later version. */
const REMOVED_MAX = 1_024;

export class ServerListHistory {
  #list: ServerList;
  /** Updates from an older version are whole lists. */
  #base: number;
  /** Since when an entry is what it is, if that is later than the base. */
  readonly #changedAt = new Map<number, number>();
  /** When a server has left; the oldest first. */
  readonly #removedAt = new Map<number, number>();
  #copysetsAt: number;

  constructor(list: ServerList) {
    this.#list = list;
    this.#base = list.version;
    this.#copysetsAt = list.version;
  }

  get base(): number {
    return this.#base;
  }

  get version(): number {
    return this.#list.version;
  }

  /** The list may have changed. */
  advance(list: ServerList): void {
    const before = this.#list;
    invariant(list.version >= before.version, 'the version of the list does not go back');
    this.#list = list;
    if (list.version === before.version) return;
    const entries = new Map(before.servers.map((entry) => [entry.serverId, textOf(entry)]));
    for (const entry of list.servers) {
      const { serverId } = entry;
      if (entries.get(serverId) !== textOf(entry)) this.#changedAt.set(serverId, list.version);
      entries.delete(serverId);
    }
    for (const serverId of entries.keys()) {
      this.#changedAt.delete(serverId);
      this.#removedAt.set(serverId, list.version);
    }
    if (textOf(before.copysets) !== textOf(list.copysets)) this.#copysetsAt = list.version;
    for (const [serverId, version] of this.#removedAt) {
      if (this.#removedAt.size <= REMOVED_MAX) break;
      this.#removedAt.delete(serverId);
      this.#base = version;
    }
  }

  /** For servers that have at least this version. */
  updateFrom(version: number): ServerListUpdate {
    const { servers, copysets, ...rest } = this.#list;
    if (version < this.#base) return wholeUpdate(this.#list);
    const changed = servers.filter(
      ({ serverId }) => (this.#changedAt.get(serverId) ?? 0) > version,
    );
    const removed = [...this.#removedAt].filter(([, at]) => at > version).map(([id]) => id);
    return {
      ...rest,
      fromVersion: version,
      copysets: this.#copysetsAt > version ? copysets : null,
      servers: changed,
      removed,
    };
  }
}

export function wholeUpdate(list: ServerList): ServerListUpdate {
  return { ...list, fromVersion: 0, removed: [] };
}

/** null: it is about a newer list than this one. */
export function updatedList(list: ServerList | null, update: ServerListUpdate): ServerList | null {
  const { fromVersion, removed, servers, copysets, ...rest } = update;
  if (fromVersion > (list?.version ?? 0)) return null;
  const entries = new Map<number, ServerEntry>();
  if (fromVersion > 0) for (const entry of list?.servers ?? []) entries.set(entry.serverId, entry);
  for (const serverId of removed) entries.delete(serverId);
  for (const entry of servers) entries.set(entry.serverId, entry);
  return {
    ...rest,
    copysets: copysets ?? list?.copysets ?? [],
    servers: [...entries.values()].sort((a, b) => a.serverId - b.serverId),
  };
}

function textOf(value: unknown): string {
  return JSON.stringify(value);
}

/**
 * What masters note in their logs about themselves, as keys and JSON texts (docs/formats.md §2,
 * NOTE): which tablets they have, and what they last heard of the cluster. Written by
 * `master/ownership-notes.ts`; read when a coordinator's state is rebuilt from the logs.
 */
import type { Durability, Ownership, SlotRange } from '../rpc/messages.js';

/** A tablet that a master says to have. */
export interface TabletClaim extends SlotRange, Ownership {
  /** Of the table. */
  name: string;
  /** Entries of older segments of this log do not count. */
  ctimeSegmentId: number;
  /**
   * null: it is its own. Else all of it is here, but the coordinator may not have given it; this is
   * how the owner has it that it comes from.
   */
  after: Ownership | null;
}

/** The cluster, as the newest server list had it. */
export interface ClusterNote {
  clusterId: string;
  term: number;
  serverListVersion: number;
  replicas: number;
  durability: Durability;
  allowSameHost: boolean;
  /** Ids of all that were listed, crashed ones included. */
  servers: number[];
}

/** All notes of a log, by key. */
export type LogNotes = Readonly<Record<string, string>>;

const clusterKey = 'cluster';
const tabletKeyPattern = /^tablet\/(\d+)\/(\d+)-(\d+)$/;

export interface Note {
  key: string;
  /** Empty: there is no such note any more. */
  value: string;
}

export function clusterNote(note: ClusterNote): Note {
  return { key: clusterKey, value: JSON.stringify(note) };
}

export function tabletNoteKey({ tableId, startSlot, endSlot }: SlotRange): string {
  return `tablet/${tableId}/${startSlot}-${endSlot}`;
}

export function tabletNote(claim: TabletClaim): Note {
  const { tableId: _, startSlot: __, endSlot: ___, ...value } = claim;
  return { key: tabletNoteKey(claim), value: JSON.stringify(value) };
}

export function parseNotes(notes: LogNotes): {
  cluster: ClusterNote | null;
  claims: TabletClaim[];
} {
  const cluster = notes[clusterKey];
  const claims = Object.entries(notes).flatMap(([key, value]): TabletClaim[] => {
    const range = tabletKeyPattern.exec(key);
    if (range === null) return [];
    const [tableId = 0, startSlot = 0, endSlot = 0] = range.slice(1).map(Number);
    const rest = JSON.parse(value) as Omit<TabletClaim, keyof SlotRange>;
    return [{ tableId, startSlot, endSlot, ...rest }];
  });
  return {
    cluster: cluster === undefined ? null : (JSON.parse(cluster) as ClusterNote),
    claims,
  };
}

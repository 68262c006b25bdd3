/**
 * Notes in this master's log which tablets it has and what it last heard of the cluster, so that
 * the map can be rebuilt from the logs (docs/rebuild.md).
 *
 * Order that matters: what replaces a note is written before the old one goes, so a log that ends
 * in between says too much and never too little. Merges and splits where a tablet is are not noted:
 * the notes say the same without.
 */
import type { MasterCore } from '../native/contract.js';
import { clusterNote, type Note, type TabletClaim, tabletNote } from '../ops/log-notes.js';
import type { ServerList, SlotRange } from '../rpc/messages.js';

export class OwnershipNotes {
  readonly #core: Pick<MasterCore, 'note'>;
  /** By key of their notes; they may overlap for a moment only. */
  readonly #claims = new Map<string, TabletClaim>();

  constructor(core: Pick<MasterCore, 'note'>) {
    this.#core = core;
  }

  /** In force where the log is durable up to its present end. */
  claim(claims: readonly TabletClaim[]): void {
    for (const claim of claims) {
      const key = this.#put(claim);
      this.#subtract(claim, key);
    }
  }

  /** Nothing of the range is this master's any more. */
  forget(range: SlotRange): void {
    this.#subtract(range, null);
  }

  noteCluster({ clusterId, term, version, ...list }: ServerList): void {
    const { replicas, durability, allowSameHost } = list;
    const servers = list.servers.map(({ serverId }) => serverId);
    const settings = { replicas, durability, allowSameHost };
    this.#write(clusterNote({ clusterId, term, serverListVersion: version, ...settings, servers }));
  }

  #subtract(range: SlotRange, except: string | null): void {
    for (const [key, claim] of [...this.#claims]) {
      if (key === except || !overlap(claim, range)) continue;
      const { startSlot, endSlot } = range;
      if (claim.startSlot < startSlot) this.#put({ ...claim, endSlot: startSlot - 1 });
      if (endSlot < claim.endSlot) this.#put({ ...claim, startSlot: endSlot + 1 });
      this.#write({ key, value: '' });
      this.#claims.delete(key);
    }
  }

  #put(claim: TabletClaim): string {
    const note = tabletNote(claim);
    this.#write(note);
    this.#claims.set(note.key, claim);
    return note.key;
  }

  #write({ key, value }: Note): void {
    this.#core.note(key, value);
  }
}

function overlap(one: SlotRange, other: SlotRange): boolean {
  return (
    one.tableId === other.tableId &&
    one.startSlot <= other.endSlot &&
    other.startSlot <= one.endSlot
  );
}

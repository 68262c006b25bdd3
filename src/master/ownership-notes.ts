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
import type { Ownership, ServerList, SlotRange } from '../rpc/messages.js';

export class OwnershipNotes {
  readonly #core: Pick<MasterCore, 'note'>;
  /** By table, then by key of their notes; they may overlap for a moment only. */
  readonly #claims = new Map<number, Map<string, TabletClaim>>();

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

  /** How this master has the parts of a range. */
  within({ tableId, startSlot, endSlot }: SlotRange): (SlotRange & Ownership)[] {
    const claims = [...(this.#claims.get(tableId)?.values() ?? [])];
    return claims
      .filter((one) => one.startSlot <= endSlot && startSlot <= one.endSlot)
      .map((one) => ({
        tableId,
        startSlot: Math.max(startSlot, one.startSlot),
        endSlot: Math.min(endSlot, one.endSlot),
        ownershipId: one.ownershipId,
        generation: one.generation,
      }));
  }

  noteCluster({ clusterId, term, version, ...list }: ServerList): void {
    const { replicas, durability, allowSameHost } = list;
    const servers = list.servers.map(({ serverId }) => serverId);
    const settings = { replicas, durability, allowSameHost };
    this.#write(clusterNote({ clusterId, term, serverListVersion: version, ...settings, servers }));
  }

  #subtract(range: SlotRange, except: string | null): void {
    const { tableId, startSlot, endSlot } = range;
    const claims = this.#claims.get(tableId);
    for (const [key, claim] of [...(claims ?? [])]) {
      const apart = endSlot < claim.startSlot || claim.endSlot < startSlot;
      if (key === except || apart) continue;
      if (claim.startSlot < startSlot) this.#put({ ...claim, endSlot: startSlot - 1 });
      if (endSlot < claim.endSlot) this.#put({ ...claim, startSlot: endSlot + 1 });
      this.#write({ key, value: '' });
      claims?.delete(key);
    }
    if (claims?.size === 0) this.#claims.delete(tableId);
  }

  #put(claim: TabletClaim): string {
    const note = tabletNote(claim);
    this.#write(note);
    const claims = this.#claims.get(claim.tableId) ?? new Map<string, TabletClaim>();
    this.#claims.set(claim.tableId, claims.set(note.key, claim));
    return note.key;
  }

  #write({ key, value }: Note): void {
    this.#core.note(key, value);
  }
}

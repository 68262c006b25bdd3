/**
 * The books of a simulated master: which tablets it has, from which segment on, and whether it
 * serves them. `native/core/src/master/tablets.rs` and `ownership.rs` keep them so, with objects.
 */
import { RekindleError } from '../../src/rpc/errors.js';
import type { SlotRange } from '../../src/rpc/messages.js';

export interface SimulatedTablet extends SlotRange {
  service: 'coming' | 'full' | 'readsOnly' | 'leaving';
  ctimeSegmentId: number;
  /** Segments below may hold entries of an earlier ownership. */
  staleBelow: number;
  /** A migration gives it away. */
  moving: boolean;
}

/** What is left of a log on disks: it outlives its master. */
export interface SimulatedLog {
  headSegmentId: number;
  /** The lowest that is still there. */
  firstSegmentId: number;
  epoch: number;
  /** Named by the head, and on no disk. */
  lostSegmentIds: number[];
}

export function overlaps(a: SlotRange, b: SlotRange): boolean {
  return a.tableId === b.tableId && a.startSlot <= b.endSlot && b.startSlot <= a.endSlot;
}

function sameRange(a: SlotRange, b: SlotRange): boolean {
  return overlaps(a, b) && a.startSlot === b.startSlot && a.endSlot === b.endSlot;
}

const rangeOf = ({ tableId, startSlot, endSlot }: SlotRange): SlotRange => ({
  tableId,
  startSlot,
  endSlot,
});

export class SimulatedMaster {
  tablets: SimulatedTablet[] = [];
  private erasing: SlotRange[] = [];
  private readonly givenUp = new Map<number, number>();

  constructor(readonly log: SimulatedLog) {}

  serves(range: SlotRange): SimulatedTablet[] {
    return this.tablets.filter(
      (each) => overlaps(each, range) && (each.service === 'full' || each.service === 'readsOnly'),
    );
  }

  take(range: SlotRange): void {
    const tablet = this.exact(range);
    if (tablet === undefined) this.insert(rangeOf(range), 'full', this.log.headSegmentId);
    else if (tablet.service === 'coming') throw busy();
  }

  /** What is to be erased, if anything; `erased` ends that. */
  drop(range: SlotRange): SlotRange | null {
    const parts = this.within(range);
    if (parts.some(({ service }) => service === 'coming') || this.erases(range)) throw busy();
    if (parts.length === 0) return null;
    this.givenUp.set(range.tableId, this.log.headSegmentId + 1);
    this.tablets = this.tablets.filter((each) => !parts.includes(each));
    const gone = rangeOf(range);
    this.erasing.push(gone);
    return gone;
  }

  erased(range: SlotRange): void {
    this.erasing = this.erasing.filter((each) => each !== range);
  }

  mergedCtime(range: SlotRange): number {
    const parts = this.parts(range);
    const oldest = Math.min(...parts.map(({ ctimeSegmentId }) => ctimeSegmentId));
    const countsFrom = Math.max(oldest, this.log.firstSegmentId);
    for (const { service, moving, ctimeSegmentId, staleBelow } of parts) {
      const clean = ctimeSegmentId === oldest || staleBelow <= countsFrom;
      if (service !== 'full' || moving || !clean) throw busy();
    }
    return oldest;
  }

  merge(range: SlotRange): void {
    const parts = this.parts(range);
    if (parts.length === 1) return;
    const ctimeSegmentId = this.mergedCtime(range);
    const staleBelow = Math.max(...parts.map((each) => each.staleBelow));
    this.tablets = this.tablets.filter((each) => !parts.includes(each));
    const merged = { ctimeSegmentId, staleBelow, moving: false, service: 'full' } as const;
    this.tablets.push({ ...rangeOf(range), ...merged });
  }

  /** Nothing if it is cut there already. */
  split(range: SlotRange, slot: number): void {
    const parts = this.parts(range);
    if (parts.some(({ startSlot }) => startSlot === slot)) return;
    const tablet = parts.find(({ startSlot, endSlot }) => startSlot < slot && slot <= endSlot);
    if (tablet === undefined) throw invalid('the slot is not within');
    if (tablet.service !== 'full' || tablet.moving) throw busy();
    this.tablets = this.tablets.filter((each) => each !== tablet);
    this.tablets.push({ ...tablet, endSlot: slot - 1 }, { ...tablet, startSlot: slot });
  }

  /** Tablets on their way here, and the segment from which on their entries will count. */
  prepare(ranges: readonly SlotRange[]): SimulatedTablet[] {
    const coming: SimulatedTablet[] = [];
    try {
      for (const range of ranges) {
        if (this.exact(range) !== undefined) throw invalid('it is here already');
        coming.push(this.insert(rangeOf(range), 'coming', 0));
      }
    } catch (error) {
      this.forget(coming);
      throw error;
    }
    this.log.headSegmentId++;
    for (const tablet of coming) tablet.ctimeSegmentId = this.log.headSegmentId;
    return coming;
  }

  activate(coming: readonly SimulatedTablet[]): void {
    for (const tablet of coming) tablet.service = 'full';
  }

  forget(tablets: readonly SimulatedTablet[]): void {
    this.tablets = this.tablets.filter((each) => !tablets.includes(each));
  }

  /** The one tablet that a migration gives away; several of a cut that was cut short become one. */
  moving(range: SlotRange): SimulatedTablet {
    this.merge(range);
    const tablet = this.exact(range);
    if (tablet === undefined) throw new RekindleError('UNKNOWN_TABLET', 'it is not here');
    if (tablet.service !== 'full') throw busy();
    tablet.moving = true;
    return tablet;
  }

  /** The cleaner has been at work. */
  clean(firstSegmentId: number): void {
    this.log.firstSegmentId = Math.max(this.log.firstSegmentId, firstSegmentId);
    for (const [tableId, below] of this.givenUp) {
      if (below <= this.log.firstSegmentId) this.givenUp.delete(tableId);
    }
  }

  private erases(range: SlotRange): boolean {
    return this.erasing.some((each) => overlaps(each, range));
  }

  private insert(
    range: SlotRange,
    service: SimulatedTablet['service'],
    ctimeSegmentId: number,
  ): SimulatedTablet {
    if (this.erases(range)) throw busy();
    const staleBelow = this.givenUp.get(range.tableId) ?? 0;
    const tablet = { ...range, service, ctimeSegmentId, staleBelow, moving: false };
    this.tablets.push(tablet);
    return tablet;
  }

  private exact(range: SlotRange): SimulatedTablet | undefined {
    const [found] = this.tablets.filter((each) => overlaps(each, range));
    if (found !== undefined && !sameRange(found, range)) throw invalid('another one overlaps it');
    return found;
  }

  private within(range: SlotRange): SimulatedTablet[] {
    const parts = this.tablets
      .filter((each) => overlaps(each, range))
      .sort((a, b) => a.startSlot - b.startSlot);
    const inside = parts.every(
      (each) => range.startSlot <= each.startSlot && each.endSlot <= range.endSlot,
    );
    if (!inside) throw invalid('one reaches beyond the range');
    return parts;
  }

  private parts(range: SlotRange): SimulatedTablet[] {
    const parts = this.within(range);
    let next = range.startSlot;
    for (const { startSlot, endSlot } of parts) {
      if (startSlot !== next) throw invalid('they leave a gap');
      next = endSlot + 1;
    }
    if (next !== range.endSlot + 1) throw invalid('they leave a gap');
    return parts;
  }
}

function busy(): RekindleError {
  return new RekindleError('RETRY', 'not at present', { retryAfterMs: 50 });
}

function invalid(message: string): RekindleError {
  return new RekindleError('INVALID_ARGUMENT', message);
}

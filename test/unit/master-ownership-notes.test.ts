/**
 * Notes of ownership: at each moment they say at least what the master has, in any order of takes,
 * drops of parts, and returns; when all is written they say just that.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { OwnershipNotes } from '../../src/master/ownership-notes.js';
import { parseNotes, type TabletClaim } from '../../src/ops/log-notes.js';

const last = 2 ** 32 - 1;

class Log {
  readonly entries: { key: string; value: string }[] = [];
  readonly notes = new OwnershipNotes({
    note: (key, value) => void this.entries.push({ key, value }),
  });

  claims(end = this.entries.length): TabletClaim[] {
    const notes = new Map<string, string>();
    for (const { key, value } of this.entries.slice(0, end)) {
      if (value === '') notes.delete(key);
      else notes.set(key, value);
    }
    return parseNotes(Object.fromEntries(notes)).claims;
  }

  ranges(): string[] {
    return this.claims()
      .map(({ tableId, startSlot, endSlot, ownershipId }) =>
        [tableId, startSlot, endSlot, ownershipId].join(' '),
      )
      .sort();
  }
}

function claim(tableId: number, startSlot: number, endSlot: number, ownershipId = 0): TabletClaim {
  const after = null;
  const range = { tableId, startSlot, endSlot };
  return { ...range, name: `t${tableId}`, ctimeSegmentId: 4, ownershipId, generation: 1, after };
}

test('a part that goes leaves the rest, at every moment', () => {
  const log = new Log();
  log.notes.claim([claim(1, 0, last), claim(2, 0, last)]);
  const before = log.entries.length;
  log.notes.forget({ tableId: 1, startSlot: 100, endSlot: 199 });
  assert.deepEqual(log.ranges(), ['1 0 99 0', `1 200 ${last} 0`, `2 0 ${last} 0`]);
  for (let end = before; end <= log.entries.length; end += 1) {
    for (const slot of [0, 99, 200, last]) {
      const holds = (one: TabletClaim): boolean =>
        one.tableId === 1 && one.startSlot <= slot && slot <= one.endSlot;
      assert.ok(log.claims(end).some(holds), `slot ${slot} after ${end} entries`);
    }
  }
});

test('neighbours go together, and what comes back is newer', () => {
  const log = new Log();
  log.notes.claim([claim(1, 0, 99), claim(1, 100, last)]);
  log.notes.forget({ tableId: 1, startSlot: 50, endSlot: last });
  assert.deepEqual(log.ranges(), ['1 0 49 0']);
  log.notes.claim([claim(1, 40, 59, 7)]);
  assert.deepEqual(log.ranges(), ['1 0 39 0', '1 40 59 7']);
  log.notes.claim([claim(1, 40, 59, 9)]);
  assert.deepEqual(log.ranges(), ['1 0 39 0', '1 40 59 9']);
  const within = log.notes.within({ tableId: 1, startSlot: 30, endSlot: 49 });
  assert.deepEqual(
    within.sort((a, b) => a.startSlot - b.startSlot),
    [
      { tableId: 1, startSlot: 30, endSlot: 39, ownershipId: 0, generation: 1 },
      { tableId: 1, startSlot: 40, endSlot: 49, ownershipId: 9, generation: 1 },
    ],
  );
  log.notes.forget({ tableId: 1, startSlot: 0, endSlot: last });
  assert.deepEqual(log.ranges(), []);
});

test('what is read is what was written', () => {
  const log = new Log();
  const odd = { ...claim(3, 5, 6, 8), name: 'a "b" ü', after: { ownershipId: 5, generation: 2 } };
  log.notes.claim([odd]);
  assert.deepEqual(log.claims(), [odd]);
});

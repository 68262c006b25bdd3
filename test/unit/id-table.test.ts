/** The table of what waits for an answer, beside a Map that does the same. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomStream } from '../../bench/dataset.js';
import { IdTable } from '../../src/rpc/id-table.js';

test('ids that come and go at random are found, in order, and never given out twice', () => {
  const random = randomStream(7);
  const table = new IdTable<string>();
  const model = new Map<number, string>();
  for (let step = 0; step < 20_000; step++) {
    // Grows and shrinks by turns, so that old ids are met by new ones of the same slot.
    const grows = Math.floor(step / 1_000) % 2 === 0;
    if (random() % 10 < (grows ? 7 : 3)) {
      const id = table.nextId();
      assert.ok(!model.has(id), `${id} is in use`);
      table.set(id, `value ${id}`);
      model.set(id, `value ${id}`);
    } else {
      const ids = [...model.keys()];
      const id = ids[random() % Math.max(1, ids.length)] ?? 12_345;
      assert.equal(table.delete(id), model.delete(id));
      assert.equal(table.get(id), undefined);
    }
    assert.equal(table.size, model.size);
  }
  assert.deepEqual(table.values(), [...model.values()]);
  for (const [id, value] of model) assert.equal(table.get(id), value);
  table.clear();
  assert.equal(table.size, 0);
  assert.deepEqual(table.values(), []);
});

test('one that waits for long is passed over, and holds up no other', () => {
  const table = new IdTable<number>();
  const old = table.nextId();
  table.set(old, old);
  for (let count = 0; count < 100_000; count++) {
    const id = table.nextId();
    table.set(id, id);
    assert.ok(table.delete(id));
  }
  assert.equal(table.get(old), old);
  assert.equal(table.get(0), undefined);
  assert.equal(table.delete(0), false);
});

test('an id is set at once or not at all', () => {
  const table = new IdTable<number>();
  const id = table.nextId();
  table.nextId();
  assert.throws(() => table.set(id, 1), /an id is set before the next one is made/);
});

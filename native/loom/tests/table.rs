//! The hash table: no entry is missed, lost or doubled, whoever else changes the table meanwhile.
#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use rekindle_core::master::hash_table::{Decision, HashTable, Upserted};
use rekindle_loom::{Cells, Gate, filled, find, hash, model};

const PREEMPTIONS: usize = 3;

struct World {
    table: HashTable,
    cells: Cells,
    gate: Gate,
}

/// Starts a thread of a model.
fn spawn<T: 'static>(
    world: &Arc<World>,
    run: impl FnOnce(&World) -> T + 'static,
) -> thread::JoinHandle<T> {
    let world = Arc::clone(world);
    thread::spawn(move || {
        world.gate.pass();
        run(&world)
    })
}

/// A table with keys 1 to `keys`, and room for `more` entries behind theirs.
fn world(keys: u64, more: usize) -> Arc<World> {
    let cells = Cells::new(keys as usize + 1 + more);
    let table = filled(keys, &cells).expect("room");
    let gate = Gate::new();
    Arc::new(World { table, cells, gate })
}

/// Overwrites a key as a serving thread does: looks again when the cleaner was faster.
fn overwrite(world: &World, key: u64, entry: usize) {
    let offset = world.cells.write(entry, key);
    loop {
        let matches = |offset: usize| world.cells.read(offset) == key;
        let (slot, _) = world.table.find(hash(key), matches).expect("never missed");
        if slot.replace(offset) {
            return;
        }
    }
}

/// Removes a key as a serving thread does: looks again when the cleaner was faster.
fn erase(world: &World, key: u64) {
    while let Some(offset) = find(&world.table, key, &world.cells) {
        if world.table.erase(hash(key), offset) {
            return;
        }
    }
}

/// Every key from 1 to `keys` but `gone` is there, and nothing else.
fn check(world: &World, keys: u64, gone: &[u64]) {
    for key in 1..=keys {
        let found = find(&world.table, key, &world.cells);
        assert!(found.is_some() != gone.contains(&key), "key {key}");
    }
    let left = keys - gone.len() as u64;
    assert_eq!(world.table.shape(usize::MAX).entries, left, "none twice");
    assert_eq!(world.table.report().entries, left);
}

#[test]
fn a_write_wins_over_the_cleaner_and_a_reader_never_misses() {
    model(PREEMPTIONS, || {
        let world = world(1, 2);
        let cleaner = spawn(&world, move |world| {
            let copy = world.cells.write(2, world.cells.read(8));
            world.table.relocate(hash(1), 8, copy)
        });
        let reader = spawn(&world, move |world| {
            assert!(find(&world.table, 1, &world.cells).is_some())
        });
        world.gate.pass();
        overwrite(&world, 1, 3);
        cleaner.join().expect("ends");
        reader.join().expect("ends");
        assert_eq!(find(&world.table, 1, &world.cells), Some(3 * 8));
        assert!(!world.table.refers_to(hash(1), 8) && !world.table.refers_to(hash(1), 16));
        check(&world, 1, &[]);
    });
}

#[test]
fn relocation_never_misses_an_entry_that_a_growing_chain_moves() {
    model(PREEMPTIONS, || {
        let world = world(8, 2);
        let cleaner = spawn(&world, move |world| {
            // The entry of the last slot moves to the overflow bucket.
            let copy = world.cells.write(10, world.cells.read(8 * 8));
            assert!(world.table.relocate(hash(8), 8 * 8, copy), "it is alive");
        });
        world.gate.pass();
        let ninth = world.cells.write(9, 9);
        world.table.insert(hash(9), ninth).expect("room");
        cleaner.join().expect("ends");
        assert_eq!(find(&world.table, 8, &world.cells), Some(10 * 8));
        check(&world, 9, &[]);
    });
}

#[test]
fn a_bucket_may_be_unlinked_and_used_again_beside_the_cleaner() {
    model(PREEMPTIONS, || {
        let world = world(9, 3);
        let cleaner = spawn(&world, move |world| {
            let copy = world.cells.write(10, world.cells.read(9 * 8));
            world.table.relocate(hash(9), 9 * 8, copy);
        });
        world.gate.pass();
        // The overflow bucket becomes empty, is unlinked, and a bucket is needed again.
        erase(&world, 9);
        erase(&world, 8);
        for (key, entry) in [(8, 11), (9, 12)] {
            let offset = world.cells.write(entry, key);
            world.table.insert(hash(key), offset).expect("room");
        }
        cleaner.join().expect("ends");
        assert_eq!(find(&world.table, 9, &world.cells), Some(12 * 8));
        check(&world, 9, &[]);
    });
}

#[test]
fn removing_and_relocating_leave_no_entry_behind() {
    model(PREEMPTIONS, || {
        let world = world(2, 1);
        let cleaner = spawn(&world, move |world| {
            let copy = world.cells.write(3, world.cells.read(8));
            world.table.relocate(hash(1), 8, copy)
        });
        world.gate.pass();
        erase(&world, 1);
        cleaner.join().expect("ends");
        check(&world, 2, &[1]);
    });
}

/// Contents of replayed entries: key and version.
fn versioned(key: u64, version: u64) -> u64 {
    version << 32 | key
}

fn replay(world: &World, key: u64, version: u64, entry: usize) -> Upserted {
    let offset = world.cells.write(entry, versioned(key, version));
    let upserted = world.table.upsert(hash(key), offset, |found| {
        let content = world.cells.read(found);
        if content & 0xffff_ffff != key {
            Decision::Other
        } else if version > content >> 32 {
            Decision::Replace
        } else {
            Decision::Keep
        }
    });
    let upserted = upserted.expect("room");
    if upserted == Upserted::Inserted {
        world.table.count_inserted(1);
    }
    upserted
}

/// Two threads replay two versions of one key into a bucket with `before` entries.
fn two_replays(before: u64) {
    model(PREEMPTIONS, move || {
        let world = world(before, 2);
        world.table.begin_replay();
        let (key, first) = (before + 1, before as usize + 1);
        let older = spawn(&world, move |world| replay(world, key, 1, first));
        world.gate.pass();
        let newer = replay(&world, key, 2, first + 1);
        let older = older.join().expect("ends");
        world.table.end_replay();
        let inserted = [older, newer]
            .into_iter()
            .filter(|one| *one == Upserted::Inserted);
        assert!(inserted.count() == 1, "{older:?}, {newer:?}");
        assert!(
            !matches!(newer, Upserted::Kept(_)),
            "the newer version wins"
        );
        assert!(world.table.refers_to(hash(key), (first + 1) * 8));
        assert_eq!(world.table.shape(usize::MAX).entries, before + 1);
        assert_eq!(world.table.report().entries, before + 1);
    });
}

#[test]
fn two_replays_insert_a_key_once() {
    two_replays(0);
}

#[test]
fn two_replays_insert_a_key_once_where_the_chain_grows() {
    two_replays(8);
}

#[test]
fn a_replay_inserts_a_key_once_beside_removes() {
    model(PREEMPTIONS, || {
        let world = world(2, 2);
        world.table.begin_replay();
        let older = spawn(&world, move |world| replay(world, 3, 1, 3));
        let newer = spawn(&world, move |world| replay(world, 3, 2, 4));
        world.gate.pass();
        // Were the slot empty again, the two could take different ones.
        erase(&world, 1);
        older.join().expect("ends");
        newer.join().expect("ends");
        world.table.end_replay();
        assert!(
            world.table.refers_to(hash(3), 4 * 8),
            "the newer version wins"
        );
        assert_eq!(world.table.shape(usize::MAX).entries, 2, "once");
    });
}

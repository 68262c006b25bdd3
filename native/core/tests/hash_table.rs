//! The hash table's promises: chains grow and shrink, no entry is ever missed or doubled by
//! threads that change the table as its contract allows, and few buckets overflow.

mod master_support;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use master_support::Random;
use rekindle_core::master::hash_table::{Decision, HashTable, Upserted};
use rekindle_core::status::Status;

/// Two buckets and four overflow buckets.
const SMALL_LOG_BYTES: usize = 1600;

/// A hash in bucket 0 of the small table, with a tag of its own.
fn in_bucket_0(number: usize) -> u64 {
    (number as u64) << 32
}

fn spread(number: usize) -> u64 {
    let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[test]
fn chains_grow_shrink_and_say_no() {
    let table = HashTable::new(SMALL_LOG_BYTES).expect("small table");
    // Seven entries before each chain word, and eight in the last bucket.
    let room = 7 * 4 + 8;
    for number in 0..room {
        let inserted = table.insert(in_bucket_0(number), number * 8);
        inserted.expect("room");
    }
    assert_eq!(table.overflow_buckets(), 4);
    let refused = table.insert(in_bucket_0(room), room * 8);
    assert_eq!(refused, Err(Status::OutOfMemory));
    let shape = table.shape(usize::MAX);
    assert_eq!((shape.entries, shape.chain_buckets_max), (room as u64, 5));
    assert_eq!(table.report().entries, room as u64);
    for number in 0..room {
        let (hash, offset) = (in_bucket_0(number), number * 8);
        let found = table.find(hash, |found| found == offset);
        assert_eq!(found.map(|(_, found)| found), Some(offset));
        assert!(table.refers_to(hash, offset) && !table.refers_to(hash, offset + 8));
    }
    for number in (0..room).rev() {
        assert!(table.erase(in_bucket_0(number), number * 8));
        assert!(!table.erase(in_bucket_0(number), number * 8));
    }
    assert_eq!(table.overflow_buckets(), 0);
    assert_eq!(table.report().entries, 0);
}

#[test]
fn a_slot_changes_only_from_the_word_that_was_seen() {
    let table = HashTable::new(SMALL_LOG_BYTES).expect("small table");
    table.insert(1, 80).expect("room");
    let (slot, _) = table.find(1, |_| true).expect("there");
    assert!(table.relocate(1, 80, 160));
    assert!(!table.relocate(1, 80, 240), "not there any more");
    assert!(!slot.replace(320), "the cleaner was first");
    let (slot, offset) = table.find(1, |_| true).expect("there");
    assert_eq!(offset, 160);
    assert!(slot.replace(320));
    assert!(!table.refers_to(1, 160) && table.refers_to(1, 320));
}

#[test]
fn no_slot_becomes_empty_for_a_replay_while_it_runs() {
    let table = HashTable::new(SMALL_LOG_BYTES).expect("small table");
    for number in 0..10 {
        table.insert(in_bucket_0(number), number * 8).expect("room");
    }
    table.begin_replay();
    for number in 0..10 {
        assert!(table.erase(in_bucket_0(number), number * 8));
    }
    assert_eq!(table.overflow_buckets(), 1, "nothing is unlinked");
    let first = table.upsert(in_bucket_0(10), 80, |_| Decision::Keep);
    assert_eq!(first, Ok(Upserted::Inserted));
    table.count_inserted(1);
    for number in 20..30 {
        table.insert(in_bucket_0(number), number * 8).expect("room");
    }
    let shape = table.shape(1);
    assert_eq!(
        (shape.entries, shape.chain_buckets_max),
        (11, 2),
        "graves are used"
    );
    let twice = table.upsert(in_bucket_0(10), 88, |_| Decision::Keep);
    assert_eq!(twice, Ok(Upserted::Kept(80)));
    table.end_replay();
    for number in [10, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29] {
        assert!(table.erase(in_bucket_0(number), number * 8));
    }
    assert_eq!(table.overflow_buckets(), 0);
}

#[test]
fn a_sweep_clears_what_is_named_in_its_buckets() {
    let table = HashTable::new(16 * 800).expect("small table");
    for number in 0..200 {
        table.insert(spread(number), number * 8).expect("room");
    }
    let mut gone = Vec::new();
    for from in (0..16).step_by(4) {
        let in_sweep = |number: &usize| table.place(spread(*number)).0 < from + 4;
        table.sweep(
            from..from + 4,
            |offset| offset % 16 == 0,
            |offset| gone.push(offset / 8),
        );
        for number in 0..200 {
            let there = table.refers_to(spread(number), number * 8);
            assert_eq!(there, number % 2 == 1 || !in_sweep(&number), "{number}");
        }
    }
    gone.sort_unstable();
    assert_eq!(gone, (0..200).step_by(2).collect::<Vec<_>>());
    assert_eq!(table.report().entries, 100);
}

const KEYS: usize = 4_000;
const VERSIONS: usize = 16;
const SERVED: usize = 1_000;

fn offset_of(key: usize, version: usize) -> usize {
    (key * VERSIONS + version) * 8
}

/// Replay threads upsert the same keys with versions as offsets, the serving thread inserts,
/// replaces and erases others, the cleaner relocates those, all in a table that overflows much.
#[test]
fn threads_neither_miss_nor_double_an_entry() {
    let mut random = Random::new();
    let table = HashTable::new(800 * 800).expect("small table");
    table.begin_replay();
    let (ended, relocated) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Where each served key is; 0: nowhere, 1: it is being changed.
    let places: Vec<AtomicUsize> = (0..SERVED).map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        let (table, places, ended, relocated) = (&table, &places, &ended, &relocated);
        let replays = [random.next(), random.next(), random.next()];
        let replays = replays.map(|seed| scope.spawn(move || replay(table, seed as usize)));
        scope.spawn(move || serve(table, places, ended));
        scope.spawn(move || clean(table, places, ended, relocated));
        for replay in replays {
            replay.join().expect("replayed");
        }
        // On a busy machine the cleaner may not have had its turn yet.
        while relocated.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        ended.store(true, Ordering::Release);
    });
    table.end_replay();
    for key in 0..KEYS {
        let newest = offset_of(key, VERSIONS - 1);
        assert!(table.refers_to(spread(key), newest), "{key}");
    }
    let served = places
        .iter()
        .filter(|place| place.load(Ordering::Relaxed) != 0);
    let entries = (KEYS + served.count()) as u64;
    let found = table.shape(usize::MAX).entries;
    assert_eq!(found, entries, "none is there twice");
    assert_eq!(table.report().entries, entries);
}

fn replay(table: &HashTable, seed: usize) {
    for step in 0..KEYS * VERSIONS {
        let at = step.wrapping_mul(7919).wrapping_add(seed) % (KEYS * VERSIONS);
        let (key, version) = (at % KEYS, at / KEYS);
        let offset = offset_of(key, version);
        let done = table.upsert(spread(key), offset, |found| {
            if found / 8 / VERSIONS != key {
                Decision::Other
            } else if found < offset {
                Decision::Replace
            } else {
                Decision::Keep
            }
        });
        if done.expect("room") == Upserted::Inserted {
            table.count_inserted(1);
        }
    }
}

fn take(place: &AtomicUsize, seen: usize) -> bool {
    seen != 1
        && place
            .compare_exchange(seen, 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
}

fn clean(table: &HashTable, places: &[AtomicUsize], ended: &AtomicBool, relocated: &AtomicUsize) {
    while !ended.load(Ordering::Acquire) {
        for (served, place) in places.iter().enumerate() {
            let old = place.load(Ordering::Acquire);
            if old != 0 && take(place, old) {
                let moved = table.relocate(spread(KEYS + served), old, old ^ 8);
                assert!(moved, "never missed");
                relocated.fetch_add(1, Ordering::Relaxed);
                place.store(old ^ 8, Ordering::Release);
            }
        }
    }
}

fn serve(table: &HashTable, places: &[AtomicUsize], ended: &AtomicBool) {
    let mut version = 0;
    while !ended.load(Ordering::Acquire) || version < 4 {
        version += 1;
        for (served, place) in places.iter().enumerate() {
            let (key, hash) = (KEYS + served, spread(KEYS + served));
            let new = offset_of(key, version * 2 % VERSIONS);
            let old = loop {
                let old = place.load(Ordering::Acquire);
                if take(place, old) {
                    break old;
                }
                std::thread::yield_now();
            };
            let erase = old != 0 && version % 5 == 4;
            if old == 0 {
                table.insert(hash, new).expect("room");
            } else if erase {
                assert!(table.erase(hash, old), "never missed");
            } else {
                // A replay may move the slot on between the two.
                let replaced = || {
                    let found = table.find(hash, |found| found == old);
                    found.expect("never missed").0.replace(new)
                };
                while !replaced() {}
            }
            place.store(if erase { 0 } else { new }, Ordering::Release);
        }
    }
}

/// Fills a table as a log of entries of one size does, to 90 %.
fn fill(entry_bytes: usize) -> HashTable {
    let log_bytes = 64 << 20;
    let table = HashTable::new(log_bytes).expect("a table");
    for number in 0..log_bytes / 10 * 9 / entry_bytes {
        table.insert(spread(number), number * 8).expect("room");
    }
    table
}

#[test]
fn chains_stay_short_whatever_the_entries_size() {
    let usual = fill(160);
    let load_factor = usual.report().load_factor;
    assert!((0.5..0.65).contains(&load_factor), "{load_factor}");
    let shape = usual.shape(usize::MAX);
    let overflowing = shape.chains - shape.chains_by_buckets[0];
    assert!(overflowing * 20 < shape.chains, "{shape:?}");
    // The smallest objects there are: a key of 8 bytes at most, no value.
    let tiny = fill(40);
    let shape = tiny.shape(usize::MAX);
    assert!(shape.chain_buckets_max <= 8, "{shape:?}");
    assert_eq!(tiny.report().entries, shape.entries);
}

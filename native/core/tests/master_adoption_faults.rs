//! A piece with a fault leaves nothing, wherever the fault lies, and the same piece from another
//! replica is then accepted; and the tombstones of what a piece supersedes find room.

mod master_support;

use std::collections::HashMap;
use std::sync::Arc;

use master_support::*;
use rekindle_core::entry::{EntryHeader, EntryIterator, EntryType, PieceChecksum, write_entry};
use rekindle_core::master::Master;
use rekindle_core::master::recovery::Recovery;
use rekindle_core::status::Status;

const KEYS: u64 = 70;

fn append(piece: &mut Vec<u8>, entry_type: EntryType, version: u64, key: &[u8], value: &[u8]) {
    let start = piece.len();
    piece.resize(start + 64 + key.len() + value.len(), 0);
    let header = EntryHeader {
        entry_type,
        flags: 0,
        timestamp: 0,
        table_id: 1,
        version,
    };
    let length = write_entry(&mut piece[start..], &header, &[], key, value);
    piece.truncate(start + length);
}

/// Keys of all lengths around the hash's blocks.
fn key(index: u64) -> Vec<u8> {
    let mut key = vec![b'k'; 8 + (index * 5 % 40) as usize];
    key[..8].copy_from_slice(&index.to_le_bytes());
    key
}

fn value(index: u64, version: u64) -> Vec<u8> {
    vec![version as u8; (index * 7 % 90) as usize]
}

/// All keys at a version; every ninth is removed by its newest entry if `removes`.
fn piece(version: u64, removes: bool) -> Vec<u8> {
    let mut piece = Vec::new();
    for index in 0..KEYS {
        let dead = removes && index % 9 == 0;
        let (entry_type, value) = if dead {
            (EntryType::Tombstone, Vec::new())
        } else {
            (EntryType::Object, value(index, version))
        };
        append(&mut piece, entry_type, version, &key(index), &value);
    }
    piece
}

fn sum(piece: &[u8]) -> u32 {
    PieceChecksum::of(piece).expect("parses")
}

/// Offers the piece with every fault there is at each of its entries.
fn offer_damaged(recovery: &Recovery, thread: usize, sound: &[u8]) {
    let checksum = sum(sound);
    let mismatch = Err(Status::ChecksumMismatch);
    for item in EntryIterator::new(sound) {
        let (at, entry) = item.expect("parses");
        let behind = at + entry.total_bytes();
        // The last one may lie behind what the entry's own checksum covers.
        for place in [at + entry.bytes().len() - 1, behind - 1] {
            let mut flipped = sound.to_vec();
            flipped[place] ^= 4;
            assert_eq!(recovery.replay(thread, &flipped, checksum), mismatch);
            let sifted = recovery.replay_sifted(thread, &flipped, checksum);
            assert_eq!(sifted, mismatch);
        }
        let without = [&sound[..at], &sound[behind..]].concat();
        assert_eq!(recovery.replay(thread, &without, checksum), mismatch);
        assert_eq!(
            recovery.replay(thread, &sound[..at + 8], checksum),
            mismatch
        );
        let mut foreign = sound[..at].to_vec();
        let start = foreign.len();
        append(&mut foreign, EntryType::Object, 99, b"foreign", b"");
        let header = EntryHeader {
            entry_type: EntryType::Object,
            flags: 0,
            timestamp: 0,
            table_id: 2,
            version: 99,
        };
        write_entry(&mut foreign[start..], &header, &[], b"foreign", b"");
        foreign.extend_from_slice(&sound[at..]);
        let refused = recovery.replay(thread, &foreign, sum(&foreign));
        assert_eq!(refused, Err(Status::InvalidArgument));
    }
    assert_eq!(recovery.replay(thread, sound, checksum ^ 1), mismatch);
}

fn take_over(next: &Arc<Master>, recovery: &Recovery) {
    recovery.finish_replay().expect("finished");
    let position = recovery.commit().expect("committed");
    next.set_durable(position).expect("known");
    recovery.activate().expect("active");
}

/// The objects are those of the newest sound piece, and nothing dead is unguarded.
fn check(next: &Arc<Master>, version: u64, removes: bool) {
    log_bytes(next, &mut Random::new());
    let live: HashMap<u64, Vec<u8>> = (0..KEYS)
        .filter(|index| !removes || index % 9 != 0)
        .map(|index| (index, value(index, version)))
        .collect();
    assert_eq!(stats(next)["objects"], live.len() as u64);
    let mut client = Client::new(next, 1);
    for index in 0..KEYS {
        let answer = client.read(&key(index));
        match live.get(&index) {
            Some(value) => assert_eq!((answer.version, &answer.value), (version, value)),
            None => assert_eq!(answer.status, Status::ObjectNotFound as u16),
        }
    }
}

#[test]
fn a_fault_at_any_entry_leaves_nothing() {
    for removes in [false, true] {
        let next = master(96 << 20);
        let recovery = next.start_recovery(&[WHOLE]).expect("starts");
        offer_damaged(&recovery, 0, &piece(5, removes));
        let older = piece(3, false);
        recovery.replay(1, &older, sum(&older)).expect("sound");
        take_over(&next, &recovery);
        check(&next, 3, false);
    }
}

#[test]
fn a_fault_of_what_is_dead_on_arrival_is_one_too() {
    let next = master(96 << 20);
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    let (older, newer) = (piece(3, false), piece(5, false));
    recovery.replay(0, &newer, sum(&newer)).expect("sound");
    offer_damaged(&recovery, 0, &older);
    take_over(&next, &recovery);
    check(&next, 5, false);
}

#[test]
fn after_faults_the_piece_is_accepted_from_another_replica() {
    for removes in [false, true] {
        let next = master(96 << 20);
        let recovery = next.start_recovery(&[WHOLE]).expect("starts");
        let (older, newer) = (piece(3, false), piece(5, removes));
        recovery.replay(0, &older, sum(&older)).expect("sound");
        offer_damaged(&recovery, 0, &newer);
        offer_damaged(&recovery, 1, &older);
        recovery.replay(0, &newer, sum(&newer)).expect("sound");
        offer_damaged(&recovery, 1, &newer);
        take_over(&next, &recovery);
        check(&next, 5, removes);
    }
}

#[test]
fn faults_on_one_thread_do_not_disturb_another() {
    let next = master(96 << 20);
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    let newest = 40;
    std::thread::scope(|scope| {
        scope.spawn(|| offer_damaged(&recovery, 0, &piece(newest + 1, true)));
        scope.spawn(|| {
            for version in 1..=newest {
                let sound = piece(version, false);
                recovery.replay(1, &sound, sum(&sound)).expect("sound");
            }
        });
    });
    take_over(&next, &recovery);
    check(&next, newest, false);
}

/// Long keys: the tombstones are nearly as long as the objects and fill several side segments.
#[test]
fn tombstones_of_a_piece_may_need_more_than_one_segment() {
    const COUNT: u64 = 120;
    let next = master(160 << 20);
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    let long = |index: u64| [&index.to_le_bytes()[..], &vec![b'k'; 60_000]].concat();
    for version in 1..4 {
        let mut piece = Vec::new();
        for index in 0..COUNT {
            append(&mut piece, EntryType::Object, version, &long(index), b"v");
        }
        recovery.replay(0, &piece, sum(&piece)).expect("sound");
    }
    let sides = recovery.side_segments().len();
    assert_eq!(sides, 5, "three pieces and two pieces' tombstones");
    take_over(&next, &recovery);
    log_bytes(&next, &mut Random::new());
    assert_eq!(stats(&next)["objects"], COUNT);
    let mut client = Client::new(&next, 1);
    for index in 0..COUNT {
        assert_eq!(client.read(&long(index)).version, 3);
    }
}

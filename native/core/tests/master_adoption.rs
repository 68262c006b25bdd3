//! The proof that adopting recovery segments is safe: a table lives through recoveries, overwrites,
//! removes and crashes at every step, against a plain map. `REKINDLE_SEED` repeats a run.
//!
//! What a crash leaves is what the newest durable digest names, nothing else. A recovery that is
//! cut off leaves the old log, one that has committed leaves the new one: the same state.

mod master_support;

use std::collections::HashMap;
use std::sync::Arc;

use master_support::*;
use rekindle_core::backup::lz4_image;
use rekindle_core::backup::split::{self, PIECE_HEADER_BYTES, Partition, PartitionMap};
use rekindle_core::entry::{EntryIterator, EntryType, PieceChecksum, SEGMENT_BYTES};
use rekindle_core::master::Master;
use rekindle_core::master::recovery::Recovery;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::status::Status;

const ROUNDS: u64 = 6;
const KEYS: u64 = 150;

/// A log as backups have it: bytes by segment id, and from where on the tablet's entries count.
struct Log {
    segments: HashMap<u64, Vec<u8>>,
    digest: Vec<u64>,
    ctime_segment_id: u64,
}

/// What the newest digest of a master's log names; the rest is not there after a crash.
fn crash(master: &Master, ctime_segment_id: u64, random: &mut Random) -> Log {
    verify(master);
    let mut segments = HashMap::new();
    let mut digest = Vec::new();
    let ids = master.log_segments().expect("open");
    for (id, bytes) in ids.iter().zip(log_bytes(master, random)) {
        for item in EntryIterator::new(&bytes) {
            let entry = item.expect("certified bytes parse").1;
            if entry.entry_type() == EntryType::LogDigest {
                let words = entry.value().as_chunks::<8>().0.iter();
                digest = words.map(|word| u64::from_le_bytes(*word)).collect();
            }
        }
        segments.insert(*id, bytes);
    }
    Log {
        segments,
        digest,
        ctime_segment_id,
    }
}

/// The pieces of a log for one range, as backups split them, some of them twice, in random order.
fn pieces(log: &Log, range: &SlotRange, random: &mut Random) -> Vec<Vec<u8>> {
    let tablet = split::Tablet {
        table_id: range.table_id,
        start_slot: range.start_slot,
        end_slot: range.end_slot,
        ctime_segment_id: log.ctime_segment_id,
    };
    let partition = Partition {
        partition_id: 1,
        tablets: vec![tablet],
    };
    let map = PartitionMap::new(&[partition]).expect("one partition");
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for id in &log.digest {
        let split = split::split(&log.segments[id], *id, &map).expect("sound");
        let again = random.below(8) == 0;
        pieces.extend(split.iter().cloned());
        pieces.extend(split.into_iter().filter(|_| again));
    }
    for index in (1..pieces.len()).rev() {
        pieces.swap(index, random.below(index as u64 + 1) as usize);
    }
    pieces
}

/// Replays one piece in one of the ways there are, after one that is damaged.
fn replay(recovery: &Recovery, piece: &[u8], random: &mut Random) {
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| piece[at + byte]));
    let (length, checksum, bytes) = (word(0) as usize, word(4), &piece[PIECE_HEADER_BYTES..]);
    assert_eq!(
        (bytes.len(), PieceChecksum::of(bytes)),
        (length, Ok(checksum))
    );
    let thread = random.below(THREADS as u64) as usize;
    if length > 0 && random.below(3) == 0 {
        let mut damaged = bytes.to_vec();
        damaged[random.below(length as u64) as usize] ^= 1 << random.below(8);
        for refuse in [Recovery::replay, Recovery::replay_sifted] {
            let refused = refuse(recovery, thread, &damaged, checksum);
            assert_eq!(refused, Err(Status::ChecksumMismatch));
            let cut = refuse(recovery, thread, &bytes[..length - 8], checksum);
            assert_eq!(cut, Err(Status::ChecksumMismatch));
        }
    }
    let mut image = vec![0; SEGMENT_BYTES];
    let replayed = match (random.below(4), lz4_image::encode(bytes, &mut image)) {
        (3, _) => recovery.replay_sifted(thread, bytes, checksum),
        (0, Some(stored)) => recovery.replay_image(thread, &image[..stored], length, checksum),
        (1, _) => {
            let mut room = recovery.reserve(thread, length).expect("room");
            room.bytes_mut().copy_from_slice(bytes);
            recovery.replay_in_place(thread, room, length, checksum)
        }
        _ => recovery.replay(thread, bytes, checksum),
    };
    assert_eq!(replayed.expect("replayed").bytes, length as u64);
}

/// Begins a recovery and replays the pieces, at random on all threads at once.
fn replayed(next: &Arc<Master>, log: &Log, range: SlotRange, random: &mut Random) -> Arc<Recovery> {
    let recovery = Arc::new(next.start_recovery(&[range]).expect("starts"));
    let pieces = pieces(log, &range, random);
    if random.below(2) == 0 {
        let bytes = pieces
            .iter()
            .map(|piece| piece[PIECE_HEADER_BYTES..].to_vec());
        replay_all(&recovery, &bytes.collect::<Vec<_>>(), random);
    } else {
        for piece in &pieces {
            replay(&recovery, piece, random);
        }
    }
    recovery
}

/// Cuts recoveries of a range off at every step; each leaves nothing behind.
fn cut_off(next: &Arc<Master>, log: &Log, range: SlotRange, random: &mut Random) {
    let before = stats(next)["objects"];
    let pieces = pieces(log, &range, random);
    for cut in 0..4 {
        let recovery = next.start_recovery(&[range]).expect("starts");
        for piece in &pieces[..random.below(pieces.len() as u64 + 1) as usize] {
            replay(&recovery, piece, random);
        }
        let sides = recovery.side_segments();
        let named = |side: &u64| next.log_segments().expect("open").contains(side);
        assert!(
            !sides.iter().any(named),
            "nothing enters the log before the commit"
        );
        if cut > 1 {
            recovery.finish_replay().expect("finished");
        }
        if cut > 2 {
            recovery.commit().expect("committed");
            assert!(sides.iter().all(named));
            recovery.withdraw().expect("withdrawn");
            next.roll_head().expect("rolled");
        }
        assert_eq!(recovery.abort(), Ok(sides));
        assert_eq!(stats(next)["objects"], before, "cut {cut}");
    }
}

fn recover_half(next: &Arc<Master>, log: &Log, range: SlotRange, random: &mut Random) -> u64 {
    cut_off(next, log, range, random);
    let recovery = replayed(next, log, range, random);
    recovery.finish_replay().expect("finished");
    let position = recovery.commit().expect("committed");
    next.set_durable(position).expect("known");
    recovery.activate().expect("active");
    recovery.ctime_segment_id
}

/// Overwrites and removes, over several segments. Whatever else moves entries belongs in here.
fn live(master: &Arc<Master>, model: &mut Model, id: u64, random: &mut Random) {
    let mut client = Client::new(master, id);
    for _ in 0..random.below(3) + 1 {
        run_ops(&mut client, model, random, 400, KEYS);
        master.roll_head().expect("rolled");
    }
    run_ops(&mut client, model, random, 100, KEYS);
    model.compare(&mut client);
}

#[test]
fn recover_overwrite_delete_crash_and_recover_again() {
    let mut random = Random::new();
    let mut model = Model::default();
    let first = master(256 << 20);
    first.take_tablet(WHOLE).expect("taken");
    live(&first, &mut model, 1, &mut random);
    let mut log = crash(&first, 0, &mut random);
    for round in 2..ROUNDS {
        let next = master(256 << 20);
        let middle = random.next() as u32 / 2 + 1;
        let (low, high) = (
            SlotRange {
                end_slot: middle,
                ..WHOLE
            },
            SlotRange {
                start_slot: middle + 1,
                ..WHOLE
            },
        );
        let ctime = recover_half(&next, &log, low, &mut random);
        recover_half(&next, &log, high, &mut random);
        model.compare(&mut Client::new(&next, 10 + round));
        assert_eq!(stats(&next)["objects"], model.live.len() as u64);
        // A crash straight after the takeover, and what a later one leaves.
        let taken = crash(&next, ctime, &mut random);
        let other = master(256 << 20);
        recover_half(&other, &taken, WHOLE, &mut random);
        model.compare(&mut Client::new(&other, 20 + round));
        live(&next, &mut model, 30 + round, &mut random);
        log = crash(&next, ctime, &mut random);
    }
}

/// Two copies of one state, replayed by many threads in any order: every entry of the side log is
/// live, padding, a marker, or guarded, and the table's counters are those of its objects.
#[test]
fn side_logs_hold_nothing_dead_that_is_not_guarded() {
    let mut random = Random::new();
    let mut model = Model::default();
    let first = master(256 << 20);
    first.take_tablet(WHOLE).expect("taken");
    for id in 1..5 {
        live(&first, &mut model, id, &mut random);
    }
    let log = crash(&first, 0, &mut random);
    for _ in 0..4 {
        let next = master(256 << 20);
        let recovery = replayed(&next, &log, WHOLE, &mut random);
        recovery.finish_replay().expect("finished");
        recovery.commit().expect("committed");
        recovery.activate().expect("active");
        log_bytes(&next, &mut random);
        for side in recovery.side_segments() {
            for item in EntryIterator::new(&certified(&next, side, &mut random)) {
                let entry = item.expect("parses").1;
                entry.verify().expect("sound");
                let mut named = entry.prior().filter(|id| *id != 0);
                let may_name = |id: u64| {
                    entry.entry_type() != EntryType::Object
                        && recovery.side_segments().contains(&id)
                };
                assert!(named.all(may_name), "segments of another log are not named");
            }
        }
        let sizes = stats(&next);
        assert_eq!(sizes["objects"], model.live.len() as u64);
        let entry_bytes = |key: &Vec<u8>, value: &Vec<u8>| (32 + key.len() + value.len()) as u64;
        let least: u64 = model
            .live
            .iter()
            .map(|(key, (_, value))| entry_bytes(key, value))
            .sum();
        assert!(sizes["liveBytes"] >= least);
        model.compare(&mut Client::new(&next, 9));
    }
}

/// Twice the log that fits is replayed, of which little is alive: on one thread newest segment
/// first, and on all in any order. Each key is overwritten many times in one segment, so that most
/// dies in its own piece, or now and then, so that it dies of another.
#[test]
fn a_log_of_mostly_dead_versions_needs_the_memory_of_what_is_alive() {
    const LOG_BYTES: usize = 192 << 20;
    const MEMORY_BYTES: usize = 96 << 20;
    let mut random = Random::new();
    for neighbours in [true, false] {
        let mut model = Model::default();
        let first = master_without_backups(2 * LOG_BYTES);
        first.take_tablet(WHOLE).expect("taken");
        let mut client = Client::new(&first, 1);
        let writes = LOG_BYTES as u64 / 4_200;
        for write in 0..writes {
            let key = if neighbours {
                write * KEYS / writes
            } else {
                random.below(KEYS)
            };
            let op = Op {
                kind: 2,
                table_id: 1,
                key: format!("key-{key}").into_bytes(),
                value: vec![random.next() as u8; 4_096],
                ..Op::default()
            };
            let answer = client.one(op.clone());
            model.check(&op, &answer);
        }
        first.roll_head().expect("rolled");
        let log = crash(&first, 0, &mut random);
        assert!(
            log.digest.len() * SEGMENT_BYTES > LOG_BYTES,
            "nothing was cleaned"
        );
        for threads in [1, THREADS] {
            let next = master(MEMORY_BYTES);
            let recovery = Arc::new(next.start_recovery(&[WHOLE]).expect("starts"));
            let newest_first = log.digest.iter().rev();
            let pieces: Vec<Vec<u8>> = newest_first
                .map(|id| split(&log.segments[id], &WHOLE))
                .collect();
            if threads > 1 {
                replay_all(&recovery, &pieces, &mut random);
            } else {
                for piece in &pieces {
                    let checksum = PieceChecksum::of(piece).expect("sound");
                    recovery
                        .replay(0, piece, checksum)
                        .expect("there is memory for it");
                }
            }
            recovery.finish_replay().expect("finished");
            recovery.commit().expect("committed");
            recovery.activate().expect("active");
            verify(&next);
            model.compare(&mut Client::new(&next, 2));
        }
    }
}

/// Quarters of a table move from master to master, which all die: what a log brings is what is
/// alive in it, however many crashes are behind it. What goes into each piece must not multiply.
#[test]
fn what_is_recovered_does_not_grow_with_the_crashes_behind_it() {
    const CRASHES: u64 = 12;
    let mut random = Random::new();
    let mut model = Model::default();
    let quarters = [0, 1, 2, 3].map(|quarter: u32| SlotRange {
        start_slot: quarter << 30,
        end_slot: (quarter << 30) + (u32::MAX >> 2),
        ..WHOLE
    });
    let mut present = master(256 << 20);
    for quarter in quarters {
        present.take_tablet(quarter).expect("taken");
    }
    let mut client = Client::new(&present, 1);
    run_ops(&mut client, &mut model, &mut random, 400, KEYS);
    let mut recovered_bytes = Vec::new();
    for crash_number in 0..CRASHES {
        let log = crash(&present, 0, &mut random);
        present = master(256 << 20);
        let mut bytes = 0;
        for quarter in quarters {
            let recovery = Arc::new(present.start_recovery(&[quarter]).expect("starts"));
            for piece in pieces(&log, &quarter, &mut random) {
                replay(&recovery, &piece, &mut random);
                bytes += piece.len() - PIECE_HEADER_BYTES;
            }
            recovery.finish_replay().expect("finished");
            recovery.commit().expect("committed");
            recovery.activate().expect("active");
        }
        model.compare(&mut Client::new(&present, 2 + crash_number));
        recovered_bytes.push(bytes);
    }
    // The first log had dead versions too, and some pieces came twice.
    let most = recovered_bytes[1..].iter().max();
    assert!(
        most < Some(&(3 * recovered_bytes[1])),
        "{recovered_bytes:?}"
    );
}

/// A log of little but removes: what was adopted of it has no task once the recovery is over, and
/// the cleaner must see that it is worth nothing.
#[test]
fn what_tombstones_take_in_a_recovery_comes_free() {
    const REMOVES: u32 = 1_500;
    const KEY_BYTES: usize = 32_000;
    const BLOCKS: usize = 12;
    let mut random = Random::new();
    let first = master_without_backups(256 << 20);
    first.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&first, 1);
    for number in 0..REMOVES {
        let key = [number.to_le_bytes()[0], number.to_le_bytes()[1]].repeat(KEY_BYTES / 2);
        client.write(&key, b"value");
        client.remove(&key);
    }
    let log = crash(&first, 0, &mut random);
    let next = master_without_backups(BLOCKS * SEGMENT_BYTES);
    let recovery = Arc::new(next.start_recovery(&[WHOLE]).expect("starts"));
    for id in log.digest.iter().rev() {
        let piece = split(&log.segments[id], &WHOLE);
        let checksum = PieceChecksum::of(&piece).expect("sound");
        let replayed = recovery.replay(0, &piece, checksum);
        replayed.expect("there is memory for it");
    }
    recovery.finish_replay().expect("finished");
    let sides = recovery.side_segments().len();
    assert!(sides >= BLOCKS / 2, "{sides} side segments");
    recovery.commit().expect("committed");
    recovery.activate().expect("active");
    drop(recovery);
    eventually("their memory is free", || {
        stats(&next)["segmentsFree"] as usize > BLOCKS - sides
    });
    verify(&next);
}

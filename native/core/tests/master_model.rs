//! The promises of the master over crashes, against a plain map: answers and versions as the rules
//! say, nothing certified is lost, versions never go back, replay and requests do not disturb each
//! other. `REKINDLE_SEED` repeats a run.

mod master_support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use master_support::*;
use rekindle_core::entry::PieceChecksum;
use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::status::Status;

fn sum_of(piece: &[u8]) -> u32 {
    PieceChecksum::of(piece).expect("parses")
}

#[test]
fn answers_as_the_rules_say_and_survives_crashes() {
    let mut random = Random::new();
    let mut model = Model::default();
    let first = master(256 << 20);
    first.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&first, 1);
    run_ops(&mut client, &mut model, &mut random, 20_000, 3_000);
    model.compare(&mut client);
    let mut log = log_bytes(&first, &mut random);
    for round in 2..5 {
        let next = recover(&log, &mut random);
        let mut client = Client::new(&next, round);
        model.compare(&mut client);
        assert_eq!(stats(&next)["objects"], model.live.len() as u64);
        run_ops(&mut client, &mut model, &mut random, 8_000, 3_000);
        model.compare(&mut client);
        log = log_bytes(&next, &mut random);
    }
}

#[test]
fn a_log_cut_at_a_certified_end_is_an_earlier_state() {
    let mut random = Random::new();
    let first = master(128 << 20);
    first.take_tablet(WHOLE).expect("taken");
    first.open_log().expect("open");
    let mut client = Client::new(&first, 1);
    let mut model = Model::default();
    let head = first.log_segments().expect("open")[0];
    let mut states = Vec::new();
    let mut from = first.chunk(head, 0, 1).expect("opening").end;
    for _ in 0..12 {
        run_ops(&mut client, &mut model, &mut random, 200, 60);
        loop {
            let piece = first.chunk(head, from, 64 << 10).expect("a piece");
            if piece.end == from {
                break;
            }
            from = piece.end;
        }
        states.push((from, model.clone()));
    }
    assert_eq!(
        first.log_segments().expect("open"),
        [head],
        "all in one segment"
    );
    let segment = first.segment(head).expect("there");
    let bytes = segment.copy();
    for (end, model) in states {
        let next = recover(&[bytes[..end].to_vec()], &mut random);
        model.compare(&mut Client::new(&next, 2));
        assert_eq!(stats(&next)["objects"], model.live.len() as u64);
    }
}

#[test]
fn replay_refuses_what_is_damaged_or_foreign_and_abort_leaves_nothing() {
    let mut random = Random::new();
    let first = master(64 << 20);
    first.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&first, 1);
    run_ops(&mut client, &mut Model::default(), &mut random, 2_000, 500);
    let piece = split(&log_bytes(&first, &mut random)[0], &WHOLE);

    let next = master(256 << 20); // enough that the cleaner takes no block for itself
    let before = stats(&next);
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    let overlap = next.start_recovery(&[SlotRange {
        end_slot: 7,
        ..WHOLE
    }]);
    assert_eq!(overlap.err(), Some(Status::InvalidArgument));
    let mut bad = piece.clone();
    let at = random.below(bad.len() as u64) as usize;
    bad[at] ^= 1;
    let sum = sum_of(&piece);
    assert_eq!(recovery.replay(0, &bad, sum), Err(Status::ChecksumMismatch));
    assert_eq!(stats(&next)["objects"], 0);
    recovery.replay(0, &piece, sum).expect("replayed");
    recovery
        .replay(1, &piece, sum)
        .expect("replayed twice changes nothing");
    let mut client = Client::new(&next, 2);
    assert_eq!(client.read(b"key-1").status, Status::UnknownTablet as u16);
    assert_eq!(recovery.commit(), Err(Status::InvalidArgument));
    let sides = recovery.side_segments();
    assert_eq!(recovery.abort().expect("aborted"), sides);
    assert_eq!(
        recovery.replay(0, &piece, sum),
        Err(Status::RecoveryUnknown)
    );
    eventually("one head was opened", || {
        stats(&next)["segmentsFree"] + 1 == before["segmentsFree"]
    });
    next.take_tablet(WHOLE).expect("nothing is left");
    assert_eq!(client.read(b"key-1").status, Status::ObjectNotFound as u16);

    let third = master(64 << 20);
    let half = SlotRange {
        end_slot: 1 << 31,
        ..WHOLE
    };
    let recovery = third.start_recovery(&[half]).expect("starts");
    assert_eq!(
        recovery.replay(0, &piece, sum),
        Err(Status::InvalidArgument)
    );
}

#[test]
fn recoveries_that_fail_again_and_again_cost_no_memory() {
    let next = master(256 << 20); // enough that the cleaner takes no block for itself
    let mut last = 0;
    for attempt in 0..20 {
        let recovery = next.start_recovery(&[WHOLE]).expect("starts");
        recovery.abort().expect("aborted");
        if attempt == 0 {
            last = stats(&next)["segmentsFree"];
        }
    }
    eventually("what failed costs nothing", || {
        stats(&next)["segmentsFree"] == last
    });
    next.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&next, 1);
    assert_eq!(client.write(b"key", b"value").status, 0);
    next.drop_tablet(WHOLE).expect("dropped");
    let head = next.log_segments().expect("open").last().copied();
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    assert!(
        Some(recovery.ctime_segment_id) > head,
        "older entries do not count"
    );
}

#[test]
fn what_was_committed_and_withdrawn_leaves_the_log_with_the_next_head() {
    let mut random = Random::new();
    let first = master(64 << 20);
    first.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&first, 1);
    run_ops(&mut client, &mut Model::default(), &mut random, 2_000, 500);
    let piece = split(&log_bytes(&first, &mut random)[0], &WHOLE);

    let next = master(256 << 20); // enough that the cleaner takes no block for itself
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    recovery
        .replay(0, &piece, sum_of(&piece))
        .expect("replayed");
    recovery.finish_replay().expect("finished");
    assert_eq!(recovery.withdraw(), Err(Status::InvalidArgument));
    recovery.commit().expect("committed");
    let sides = recovery.side_segments();
    assert!(!sides.is_empty());
    let log = next.log_segments().expect("open");
    assert!(sides.iter().all(|side| log.contains(side)));
    recovery.withdraw().expect("withdrawn");
    next.roll_head().expect("rolled");
    let log = next.log_segments().expect("open");
    assert!(
        sides.iter().all(|side| !log.contains(side)),
        "no digest names them"
    );
    for side in &sides {
        next.segment(*side).expect("still here: backups may die");
    }
    let free = stats(&next)["segmentsFree"];
    assert_eq!(recovery.abort().expect("aborted"), sides);
    eventually("the side segments are gone", || {
        stats(&next)["segmentsFree"] == free + sides.len() as u64
    });
    next.take_tablet(WHOLE).expect("nothing is left");
}

#[test]
fn a_replay_without_memory_fails_cleanly() {
    let mut random = Random::new();
    let first = master(256 << 20);
    first.take_tablet(WHOLE).expect("taken");
    let mut client = Client::new(&first, 1);
    for key in 0..1_000u32 {
        assert_eq!(client.write(&key.to_le_bytes(), &[1; 100_000]).status, 0);
    }
    let log = log_bytes(&first, &mut random);
    let next = master(64 << 20);
    next.take_tablet(SlotRange {
        table_id: 2,
        ..WHOLE
    })
    .expect("taken");
    let recovery = next.start_recovery(&[WHOLE]).expect("starts");
    let outcomes: Vec<_> = log
        .iter()
        .map(|segment| split(segment, &WHOLE))
        .map(|piece| recovery.replay(0, &piece, sum_of(&piece)))
        .collect();
    assert_eq!(outcomes.last(), Some(&Err(Status::OutOfMemory)));
    assert_eq!(recovery.finish_replay(), Err(Status::OutOfMemory));
    assert!(!recovery.abort().expect("aborted").is_empty());
    let mut client = Client::new(&next, 2);
    let op = Op {
        kind: 2,
        table_id: 2,
        key: b"k".to_vec(),
        value: vec![1],
        ..Op::default()
    };
    assert_eq!(client.one(op).status, 0, "the memory is back");
}

#[test]
fn requests_go_on_while_replay_runs() {
    let mut random = Random::new();
    // The dead master's half of the table, and the other half served by the recovery master.
    let half = SlotRange {
        end_slot: u32::MAX / 2,
        ..WHOLE
    };
    let rest = SlotRange {
        start_slot: u32::MAX / 2 + 1,
        ..WHOLE
    };
    let first = master(256 << 20);
    first.take_tablet(WHOLE).expect("taken");
    let mut model = Model::default();
    let mut client = Client::new(&first, 1);
    run_ops(&mut client, &mut model, &mut random, 60_000, 20_000);
    let log = log_bytes(&first, &mut random);

    let next = master(256 << 20);
    next.take_tablet(rest).expect("taken");
    let recovery = Arc::new(next.start_recovery(&[half]).expect("starts"));
    let pieces: Vec<_> = log.iter().map(|segment| split(segment, &half)).collect();
    let ended = Arc::new(AtomicBool::new(false));
    let server = {
        let (mut client, ended) = (Client::new(&next, 2), Arc::clone(&ended));
        std::thread::spawn(move || serve(&mut client, rest, &ended))
    };
    replay_all(&recovery, &pieces, &mut random);
    ended.store(true, Ordering::Relaxed);
    server.join().expect("served");
    recovery.finish_replay().expect("finished");
    recovery.commit().expect("committed");
    recovery.activate().expect("active");
    model
        .highest
        .retain(|key, _| half.contains(1, slot(key_hash(1, key))));
    model.compare(&mut Client::new(&next, 3));
}

/// Writes, reads and removes keys of `served` until `ended`; other keys are refused.
fn serve(client: &mut Client, served: SlotRange, ended: &AtomicBool) {
    let mut versions = HashMap::new();
    let mut number = 0u64;
    while !ended.load(Ordering::Relaxed) || number < 5_000 {
        let key = format!("other-{}", number % 4_000).into_bytes();
        number += 1;
        if !served.contains(1, slot(key_hash(1, &key))) {
            assert_eq!(client.read(&key).status, Status::UnknownTablet as u16);
            continue;
        }
        let answer = client.write(&key, &number.to_le_bytes());
        assert_eq!(answer.status, 0);
        let previous = versions.insert(key.clone(), answer.version);
        assert!(previous < Some(answer.version));
        let found = client.read(&key);
        assert_eq!(
            (found.version, found.value),
            (answer.version, number.to_le_bytes().to_vec())
        );
        if number.is_multiple_of(3) {
            assert_eq!(client.remove(&key).version, answer.version);
            assert_eq!(client.read(&key).status, Status::ObjectNotFound as u16);
        }
        let appended = client.master.appended_position().expect("open");
        client.master.set_durable(appended / 2).expect("known");
    }
}

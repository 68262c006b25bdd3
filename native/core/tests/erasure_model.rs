//! Tablets are dropped, and recoveries given up, in turns, while other tablets are read, written
//! and cleaned: nothing else changes, and no entry comes back when the range is owned again.
//! `REKINDLE_SEED` repeats a run.

mod master_support;

use std::collections::HashMap;
use std::sync::{Arc, mpsc};

use master_support::*;
use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::master::Master;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::status::Status;

const MEMORY_BYTES: usize = 128 << 20;
const ROUNDS: usize = 4;
const KEYS: u64 = 120;
const FILLER_KEYS: u64 = 4;
const FILLER_BYTES: usize = 600_000;

const fn range(table_id: u64, start_slot: u32, end_slot: u32) -> SlotRange {
    SlotRange {
        table_id,
        start_slot,
        end_slot,
    }
}

const FILLER: SlotRange = range(2, 0, u32::MAX);
/// The half that comes and goes, and the half that stays.
const LOW: SlotRange = range(3, 0, 1 << 31);
const HIGH: SlotRange = range(3, (1 << 31) + 1, u32::MAX);

/// What table 3 holds.
#[derive(Default)]
struct Third {
    values: HashMap<Vec<u8>, Vec<u8>>,
}

fn in_low(key: &[u8]) -> bool {
    LOW.contains(3, slot(key_hash(3, key)))
}

fn op(kind: u8, table_id: u64, key: &[u8], value: &[u8]) -> Op {
    Op {
        kind,
        table_id,
        key: key.to_vec(),
        value: value.to_vec(),
        ..Op::default()
    }
}

impl Third {
    /// Writes and removes; the low half answers as `low`.
    fn change(&mut self, client: &mut Client, random: &mut Random, count: usize, low: Status) {
        for _ in 0..count {
            let key = format!("key-{}", random.below(2_000)).into_bytes();
            let remove = random.below(4) == 0;
            let (kind, bytes) = if remove {
                (3, 0)
            } else {
                (2, random.below(900))
            };
            let value = vec![random.below(256) as u8; bytes as usize];
            let mut status = Status::Retry as u16;
            eventually("room for a write", || {
                status = client.one(op(kind, 3, &key, &value)).status;
                status != Status::Retry as u16
            });
            if in_low(&key) && low != Status::Ok {
                assert_eq!(status, low as u16);
                continue;
            }
            assert_eq!(status, Status::Ok as u16);
            if remove {
                self.values.remove(&key);
            } else {
                self.values.insert(key, value);
            }
        }
    }

    fn compare(&self, client: &mut Client) {
        for number in 0..2_000 {
            let key = format!("key-{number}").into_bytes();
            let answer = client.one(op(1, 3, &key, b""));
            match self.values.get(&key) {
                Some(value) => assert_eq!((answer.status, &answer.value), (0, value)),
                None => assert_eq!(answer.status, Status::ObjectNotFound as u16),
            }
        }
    }

    fn drop_low(&mut self) {
        self.values.retain(|key, _| !in_low(key));
    }
}

/// Overwrites what fills memory, so that segments are cleaned.
fn fill(client: &mut Client, random: &mut Random, count: usize) {
    for _ in 0..count {
        let key = [random.below(FILLER_KEYS) as u8 + 1];
        eventually("room for a write", || {
            client.one(op(2, 2, &key, &[7; FILLER_BYTES])).status == 0
        });
    }
}

fn owner() -> Arc<Master> {
    let master = master_without_backups(MEMORY_BYTES);
    for tablet in [WHOLE, FILLER, LOW, HIGH] {
        master.take_tablet(tablet).expect("free");
    }
    master.open_log().expect("open");
    master
}

/// What others do between two turns.
fn meanwhile(client: &mut Client, model: &mut Model, third: &mut Third, random: &mut Random) {
    match random.below(8) {
        0 => fill(client, random, 3),
        1 => third.change(client, random, 30, Status::UnknownTablet),
        2 | 3 => run_ops(client, model, random, 20, KEYS),
        _ => {}
    }
}

#[test]
fn a_tablet_is_dropped_in_turns_while_others_are_written_and_cleaned() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    let (mut model, mut third) = (Model::default(), Third::default());
    for round in 0..ROUNDS {
        third.change(&mut client, &mut random, 3_000, Status::Ok);
        run_ops(&mut client, &mut model, &mut random, 300, KEYS);
        fill(&mut client, &mut random, 20);
        let mut erasure = master
            .begin_drop(LOW)
            .expect("owned")
            .expect("there is something to erase");
        third.drop_low();
        let mut turns = 0;
        loop {
            meanwhile(&mut client, &mut model, &mut third, &mut random);
            if turns % 64 == round {
                verify(&master);
                assert_eq!(master.take_tablet(LOW), Err(Status::Retry));
                let early = master.start_recovery(&[LOW]).err();
                assert_eq!(early, Some(Status::Retry));
                assert_eq!(master.begin_drop(LOW).err(), Some(Status::Retry));
                let whole = range(3, 0, u32::MAX);
                assert_eq!(master.begin_drop(whole).err(), Some(Status::Retry));
            }
            turns += 1;
            if master.erase(&mut erasure).expect("open").is_some() {
                break;
            }
        }
        assert!(turns > 100, "{turns} turns");
        verify(&master);
        assert!(master.begin_drop(LOW).expect("gone").is_none());
        // Once by a recovery, once by an order.
        if round % 2 == 0 {
            master.roll_head().expect("room");
            master.take_tablet(LOW).expect("all of it is gone");
        } else {
            let recovery = master.start_recovery(&[LOW]).expect("all of it is gone");
            recovery.finish_replay().expect("nothing came");
            recovery.commit().expect("room");
            recovery.activate().expect("committed");
        }
        third.compare(&mut client);
        model.compare(&mut client);
    }
    assert!(
        stats(&master)["cleanerSegmentsCleaned"] > 0,
        "it was cleaned"
    );
}

#[test]
fn what_was_dropped_counts_as_dead_once() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    let mut third = Third::default();
    third.change(&mut client, &mut random, 3_000, Status::Ok);
    let before = stats(&master);
    let erasure = master.begin_drop(LOW).expect("owned");
    let mut erasure = erasure.expect("there is something to erase");
    let stays = stats(&master)["liveBytes"];
    assert!(stays < before["liveBytes"]);
    assert_eq!(stats(&master)["deadBytes"], before["deadBytes"]);
    while master.erase(&mut erasure).expect("open").is_none() {}
    let dead = stats(&master)["deadBytes"] - before["deadBytes"];
    assert_eq!(dead, before["liveBytes"] - stays);
    verify(&master);
}

#[test]
fn drops_on_the_pool_end_beside_serving_and_cleaning() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    let (mut model, mut third) = (Model::default(), Third::default());
    for _ in 0..ROUNDS {
        third.change(&mut client, &mut random, 3_000, Status::Ok);
        let (tell, told) = mpsc::channel();
        let later = master.drop_tablet_later(LOW, move |outcome| {
            tell.send(outcome).expect("the test waits");
        });
        later.expect("owned");
        third.drop_low();
        let outcome = loop {
            meanwhile(&mut client, &mut model, &mut third, &mut random);
            if let Ok(outcome) = told.try_recv() {
                break outcome;
            }
        };
        assert_eq!(outcome, Ok(()));
        // Orders are for new tables: what this one had in the present head would count.
        master.roll_head().expect("room");
        master.take_tablet(LOW).expect("all of it is gone");
        third.compare(&mut client);
        verify(&master);
    }
    model.compare(&mut client);
}

#[test]
fn a_drop_ends_with_the_master() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    Third::default().change(&mut client, &mut random, 2_000, Status::Ok);
    let mut unfinished = 0;
    let (tell, told) = mpsc::channel();
    for tablet in [LOW, HIGH] {
        let tell = tell.clone();
        let later = master.drop_tablet_later(tablet, move |outcome| {
            tell.send(outcome).expect("the test waits");
        });
        later.expect("owned");
    }
    master.close().expect("open");
    for _ in 0..2 {
        let outcome = told.recv().expect("each is answered");
        assert!(matches!(outcome, Ok(()) | Err(Status::InvalidArgument)));
        unfinished += usize::from(outcome.is_err());
    }
    assert!(
        unfinished > 0,
        "both had ended before the master was closed"
    );
}

#[test]
fn a_recovery_is_given_up_in_turns_while_others_are_written_and_cleaned() {
    let mut random = Random::new();
    let source = master(64 << 20);
    source.take_tablet(WHOLE).expect("free");
    for (name, erased) in [
        ("replaying", false),
        ("finished", true),
        ("committed", true),
    ] {
        let mut before = Client::new(&source, random.next());
        for number in 0..4_000u32 {
            let key = number.to_le_bytes();
            assert_eq!(before.write(&key, &[1; 40]).status, 0);
            if number % 3 == 0 {
                before.remove(&key);
            }
        }
        let pieces: Vec<_> = log_bytes(&source, &mut random)
            .iter()
            .map(|segment| split(segment, &WHOLE))
            .collect();
        let master = master_without_backups(MEMORY_BYTES);
        for tablet in [FILLER, LOW, HIGH] {
            master.take_tablet(tablet).expect("free");
        }
        let recovery = Arc::new(master.start_recovery(&[WHOLE]).expect("starts"));
        replay_all(&recovery, &pieces, &mut random);
        let mut client = Client::new(&master, 1);
        let mut third = Third::default();
        if erased {
            let mut finishing = recovery.begin_finish().expect("nothing runs");
            assert_eq!(recovery.commit(), Err(Status::InvalidArgument));
            while recovery.finish(&mut finishing).expect("open").is_none() {
                third.change(&mut client, &mut random, 20, Status::Ok);
            }
            verify(&master);
        }
        if name == "committed" {
            recovery.commit().expect("room");
        }
        let mut undoing = recovery.begin_abort().expect("not active").expect("first");
        assert!(recovery.begin_abort().expect("not active").is_none());
        let mut turns = 0;
        while recovery.undo(&mut undoing).expect("open").is_none() {
            turns += 1;
            assert_eq!(master.take_tablet(WHOLE), Err(Status::Retry));
            assert_eq!(master.begin_drop(WHOLE).err(), Some(Status::Retry));
            third.change(&mut client, &mut random, 20, Status::Ok);
            fill(&mut client, &mut random, 1);
        }
        assert!(turns > 5, "{turns} turns");
        verify(&master);
        master.take_tablet(WHOLE).expect("all of it is gone");
        for number in 0..4_000u32 {
            let status = client.read(&number.to_le_bytes()).status;
            assert_eq!(status, Status::ObjectNotFound as u16, "{name}");
        }
        third.compare(&mut client);
    }
}

#[test]
fn markers_of_a_recovery_that_is_given_up_are_left_alone() {
    let mut random = Random::new();
    let source = master(64 << 20);
    source.take_tablet(WHOLE).expect("free");
    let mut client = Client::new(&source, 1);
    for number in 0..2_000u32 {
        client.write(&number.to_le_bytes(), b"value");
        client.remove(&number.to_le_bytes());
    }
    let piece = split(&log_bytes(&source, &mut random)[0], &WHOLE);
    let next = master(64 << 20);
    let recovery = Arc::new(next.start_recovery(&[WHOLE]).expect("starts"));
    replay_all(&recovery, &[piece], &mut random);
    let mut finishing = recovery.begin_finish().expect("nothing runs");
    assert_eq!(recovery.finish(&mut finishing), Ok(None));
    recovery.abort().expect("not active");
    let late = recovery.finish(&mut finishing);
    assert_eq!(late, Err(Status::RecoveryUnknown));
    verify(&next);
    next.take_tablet(WHOLE).expect("all of it is gone");
}

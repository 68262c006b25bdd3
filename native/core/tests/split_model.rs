//! A tablet becomes two while it is written and cleaned: each counts exactly what it has (`verify`
//! compares), nothing is lost, and the halves go their own ways. `REKINDLE_SEED` repeats a run.

mod master_support;

use std::sync::{Arc, mpsc};

use master_support::*;
use rekindle_core::key_hash::{key_hash, slot};
use rekindle_core::master::Master;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::status::Status;

const MEMORY_BYTES: usize = 128 << 20;
const KEYS: u64 = 3_000;
const FILLER_KEYS: u64 = 4;
const FILLER_BYTES: usize = 600_000;
const MIDDLE: u32 = 1 << 31;
const FILLER: SlotRange = SlotRange {
    table_id: 2,
    ..WHOLE
};

fn halves(range: SlotRange, slot: u32) -> [SlotRange; 2] {
    let lower = SlotRange {
        end_slot: slot - 1,
        ..range
    };
    let upper = SlotRange {
        start_slot: slot,
        ..range
    };
    [lower, upper]
}

fn owner() -> Arc<Master> {
    let master = master_without_backups(MEMORY_BYTES);
    for tablet in [WHOLE, FILLER] {
        master.take_tablet(tablet).expect("free");
    }
    master.open_log().expect("open");
    master
}

fn tablets(master: &Master) -> Vec<SlotRange> {
    let tablets = master.tablets().expect("open").into_iter();
    let mut ranges: Vec<_> = tablets.map(|tablet| tablet.range).collect();
    ranges.retain(|range| range.table_id == 1);
    ranges.sort();
    ranges
}

/// What others do between two turns.
fn meanwhile(client: &mut Client, model: &mut Model, random: &mut Random) {
    match random.below(4) {
        0 => {
            for _ in 0..10 {
                let op = Op {
                    kind: 2,
                    table_id: FILLER.table_id,
                    key: vec![random.below(FILLER_KEYS) as u8 + 1],
                    value: vec![7; FILLER_BYTES],
                    ..Op::default()
                };
                eventually("room for a write", || client.one(op.clone()).status == 0);
            }
        }
        _ => run_ops(client, model, random, 200, KEYS),
    }
}

#[test]
fn a_tablet_is_cut_while_it_is_written_and_cleaned() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    let mut model = Model::default();
    run_ops(&mut client, &mut model, &mut random, 6_000, KEYS);
    // From here on memory is short, and the cleaner works beside the cuts.
    while stats(&master)["cleanerSegmentsCleaned"] == 0 {
        meanwhile(&mut client, &mut model, &mut random);
    }
    let mut cuts = vec![MIDDLE, MIDDLE / 2, 3 * (MIDDLE / 2), 1];
    while let Some(at) = cuts.pop() {
        let split = master.begin_split(WHOLE, at).expect("served");
        let mut split = split.expect("nothing begins there");
        let before = tablets(&master);
        let busy = master.begin_split(WHOLE, at + 1).err();
        assert_eq!(busy, Some(Status::Retry), "one at a time");
        loop {
            meanwhile(&mut client, &mut model, &mut random);
            verify(&master);
            assert_eq!(tablets(&master), before);
            if master.count_half(&mut split).expect("served").is_some() {
                break;
            }
        }
        verify(&master);
        assert_eq!(tablets(&master).len(), before.len() + 1);
        assert!(tablets(&master).iter().any(|one| one.start_slot == at));
        assert!(master.begin_split(WHOLE, at).expect("served").is_none());
        model.compare(&mut client);
    }
    run_ops(&mut client, &mut model, &mut random, 1_000, KEYS);
    verify(&master);
    eventually("the cleaner rests", || master.merge_tablets(WHOLE).is_ok());
    assert_eq!(tablets(&master), [WHOLE]);
    verify(&master);
    model.compare(&mut client);
}

#[test]
fn a_half_goes_and_the_other_stays() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    for number in 0..5_000u32 {
        assert_eq!(client.write(&number.to_le_bytes(), b"value").status, 0);
    }
    let (tell, told) = mpsc::channel();
    let later = master.split_tablet_later(WHOLE, MIDDLE, move |outcome| {
        tell.send(outcome).expect("the test waits");
    });
    later.expect("served");
    while told.try_recv().is_err() {
        let number = random.below(5_000) as u32;
        assert_eq!(client.write(&number.to_le_bytes(), b"again").status, 0);
    }
    let [lower, upper] = halves(WHOLE, MIDDLE);
    assert_eq!(tablets(&master), [lower, upper]);
    verify(&master);
    master.drop_tablet(upper).expect("a tablet of its own");
    verify(&master);
    for number in 0..5_000u32 {
        let key = number.to_le_bytes();
        let below = slot(key_hash(1, &key)) < MIDDLE;
        let expected = if below {
            Status::Ok
        } else {
            Status::UnknownTablet
        };
        assert_eq!(client.read(&key).status, expected as u16);
    }
    // What is left is empty and yet exactly counted.
    for number in 0..5_000u32 {
        client.remove(&number.to_le_bytes());
    }
    verify(&master);
    assert_eq!(master.tablets().expect("open")[0].records, 0);
}

#[test]
fn what_cannot_be_cut_stays_as_it_is() {
    let mut random = Random::new();
    let master = owner();
    let mut client = Client::new(&master, 1);
    run_ops(&mut client, &mut Model::default(), &mut random, 500, KEYS);
    let refused = |range, at| master.begin_split(range, at).err();
    let [lower, upper] = halves(WHOLE, MIDDLE);
    let other = SlotRange {
        table_id: 9,
        ..WHOLE
    };
    assert_eq!(refused(other, 5), Some(Status::UnknownTablet));
    assert_eq!(refused(lower, 5), Some(Status::InvalidArgument));
    assert_eq!(refused(WHOLE, 0), Some(Status::InvalidArgument));
    // Given away before it is cut, and while it is.
    let migration = master.start_migration(&WHOLE).expect("starts");
    assert_eq!(refused(WHOLE, MIDDLE), Some(Status::Retry));
    migration.end().expect("open");
    let mut split = master.begin_split(WHOLE, MIDDLE).expect("served");
    let split = split.as_mut().expect("nothing begins there");
    let migration = master.start_migration(&WHOLE).expect("starts");
    let outcome = loop {
        match master.count_half(split) {
            Ok(None) => {}
            outcome => break outcome,
        }
    };
    assert_eq!(outcome, Err(Status::Retry));
    migration.end().expect("open");
    assert_eq!(tablets(&master), [WHOLE]);
    // Dropped, and taken again, while it is counted.
    let mut split = master.begin_split(WHOLE, MIDDLE).expect("served");
    let split = split.as_mut().expect("nothing begins there");
    assert_eq!(master.count_half(split), Ok(None));
    master.drop_tablet(WHOLE).expect("owned");
    master.roll_head().expect("room");
    master.take_tablet(WHOLE).expect("free");
    while let Ok(None) = master.count_half(split) {}
    assert_eq!(tablets(&master), [WHOLE]);
    master.split_tablet(WHOLE, MIDDLE).expect("served");
    assert_eq!(tablets(&master), [lower, upper]);
    verify(&master);
}

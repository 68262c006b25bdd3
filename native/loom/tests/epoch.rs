//! Epochs and the table together: memory is used again only when no reader can see it.
#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use rekindle_core::master::epoch::Epochs;
use rekindle_loom::{Cells, Gate, filled, find, hash, model};

const PREEMPTIONS: usize = 3;

#[test]
fn a_moved_entry_is_freed_when_no_pin_can_see_it() {
    model(PREEMPTIONS, || {
        let cells = Cells::new(3);
        let table = filled(1, &cells).expect("room");
        let shared = Arc::new((table, cells, Epochs::new(2), Gate::new()));
        let readers: Vec<_> = (0..2)
            .map(|participant| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (table, cells, epochs, gate) = &*shared;
                    gate.pass();
                    let pin = epochs.pin(participant);
                    assert!(find(table, 1, cells).is_some(), "never missed");
                    drop(pin);
                })
            })
            .collect();
        let (table, cells, epochs, gate) = &*shared;
        gate.pass();
        let copy = cells.write(2, cells.read(8));
        assert!(table.relocate(hash(1), 8, copy));
        let epoch = epochs.advance();
        if epochs.passed(epoch) {
            // loom reports a reader that may still be there.
            cells.write(1, 99);
        }
        for reader in readers {
            reader.join().expect("ends");
        }
        assert!(
            epochs.passed(epoch),
            "a pin that is gone holds nothing back"
        );
    });
}

#[test]
fn a_participant_that_pins_again_and_again_holds_nothing_back() {
    model(PREEMPTIONS, || {
        let cells = Cells::new(3);
        let table = filled(1, &cells).expect("room");
        let shared = Arc::new((table, cells, Epochs::new(1), Gate::new()));
        let reader = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (table, cells, epochs, gate) = &*shared;
                gate.pass();
                for _ in 0..2 {
                    let _pin = epochs.pin(0);
                    assert!(find(table, 1, cells).is_some(), "never missed");
                }
            })
        };
        let (table, cells, epochs, gate) = &*shared;
        gate.pass();
        let copy = cells.write(2, cells.read(8));
        assert!(table.relocate(hash(1), 8, copy));
        let epoch = epochs.advance();
        if epochs.passed(epoch) {
            cells.write(1, 99);
        }
        reader.join().expect("ends");
    });
}

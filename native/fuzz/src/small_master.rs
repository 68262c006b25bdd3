//! The master that targets work on: two tables, of the second the lower half only; made anew when
//! its log runs short, since a fresh one for each input would cost more than the input.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use rekindle_core::master::tablets::SlotRange;
use rekindle_core::master::{Master, MasterOptions};

/// Tables 1 and 2.
pub const RANGES: [SlotRange; 2] = [
    SlotRange {
        table_id: 1,
        start_slot: 0,
        end_slot: u32::MAX,
    },
    SlotRange {
        table_id: 2,
        start_slot: 0,
        end_slot: u32::MAX / 2,
    },
];

const MEMORY_BYTES: usize = 96 << 20;
/// Head, reserve and what one input can fill.
const SEGMENTS_FREE_MIN: u64 = 5;
const USES_MAX: u32 = 20_000;

/// A master on which nothing is stored, of the calling thread.
#[derive(Default)]
pub struct SmallMaster {
    current: RefCell<Option<(Arc<Master>, u32)>>,
}

impl SmallMaster {
    /// The present one, or its successor if it is used up.
    ///
    /// # Panics
    /// If the system has no memory.
    pub fn get(&self, with_tablets: bool) -> (Arc<Master>, u32) {
        let mut current = self.current.borrow_mut();
        if let Some((master, uses)) = current.as_mut()
            && *uses < USES_MAX
            && stats(master)["segmentsFree"] >= SEGMENTS_FREE_MIN
        {
            *uses += 1;
            return (Arc::clone(master), *uses);
        }
        let options = MasterOptions {
            server_id: 5,
            memory_bytes: MEMORY_BYTES,
            replay_threads: 1,
            replicated: false,
            disk_expansion_factor: 1.0,
        };
        let master = Master::new(options).expect("a small master");
        if with_tablets {
            for range in RANGES {
                master.take_tablet(range).expect("nothing overlaps");
            }
        }
        drop(current);
        self.discard();
        self.current.replace(Some((Arc::clone(&master), 1)));
        (master, 1)
    }

    /// Gives the present one up, after an input that leaves something behind.
    ///
    /// # Panics
    /// If somebody else has closed it.
    pub fn discard(&self) {
        if let Some((old, _)) = self.current.take() {
            old.close().expect("closed once");
        }
    }
}

/// Its gauges and counters.
///
/// # Panics
/// If it is closed.
pub fn stats(master: &Master) -> HashMap<&'static str, u64> {
    master.stats().expect("open").into_iter().collect()
}

/// Whether a master of this kind owns a slot.
pub fn owns(table_id: u64, slot: u32) -> bool {
    RANGES.iter().any(|range| range.contains(table_id, slot))
}

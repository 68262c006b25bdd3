//! Masters whose memory is touched before anything is measured on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rekindle_core::entry::SEGMENT_BYTES;
use rekindle_core::master::tablets::SlotRange;
use rekindle_core::master::{Master, MasterOptions};
use rekindle_core::status::Status;

use crate::Failure;

/// Log id.
pub const SERVER_ID: u64 = 1;
/// The one table.
pub const TABLE_ID: u64 = 1;
/// All of it.
pub const WHOLE_TABLE: SlotRange = SlotRange {
    table_id: TABLE_ID,
    start_slot: 0,
    end_slot: u32::MAX,
};

const TOUCH_POLL: Duration = Duration::from_millis(5);
const TOUCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Segments on backups as a multiple of those in memory.
const DISK_EXPANSION_FACTOR: f64 = 2.0;

/// A master with an open log and no tablets; with `replicated`, on backups that follow.
///
/// # Errors
/// No memory, or it was not touched in time.
pub fn touched_master(
    memory_bytes: usize,
    replay_threads: usize,
    replicated: bool,
) -> Result<Arc<Master>, Failure> {
    let core = |status| Failure::Core("master", status);
    let memory_bytes = memory_bytes.next_multiple_of(SEGMENT_BYTES);
    let master = Master::new(MasterOptions {
        server_id: SERVER_ID,
        memory_bytes,
        replay_threads,
        replicated,
        disk_expansion_factor: DISK_EXPANSION_FACTOR,
    });
    let master = master.map_err(core)?;
    master.open_log().map_err(core)?;
    // Its own thread rests most of the time; what it comes to later is there already.
    master.arena().populate(0, memory_bytes);
    let end = Instant::now() + TOUCH_TIMEOUT;
    while stat(&master, "touchedBytes")? < memory_bytes as u64 {
        if Instant::now() > end {
            return Err(Failure::Core("memory is not touched", Status::Retry));
        }
        std::thread::sleep(TOUCH_POLL);
    }
    Ok(master)
}

/// The same, serving the table.
///
/// # Errors
/// As above.
pub fn serving_master(memory_bytes: usize, replicated: bool) -> Result<Arc<Master>, Failure> {
    let master = touched_master(memory_bytes, 1, replicated)?;
    let taken = master.take_tablet(WHOLE_TABLE);
    taken.map_err(|status| Failure::Core("take_tablet", status))?;
    Ok(master)
}

/// One of the master's counters.
///
/// # Errors
/// It is closed, or has no such counter.
pub fn stat(master: &Master, name: &str) -> Result<u64, Failure> {
    let stats = master.stats();
    let stats = stats.map_err(|status| Failure::Core("stats", status))?;
    let found = stats.iter().find(|(each, _)| *each == name);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| Failure::Wrong(format!("no counter {name}")))
}

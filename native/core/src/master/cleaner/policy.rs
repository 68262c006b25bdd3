//! What the cleaner does next, and with which segments: plain functions of what it sees.
//!
//! Combined cleaning (Rosenblum and Ousterhout '91; Rumble, FAST '14) frees memory, frames on
//! backups and tombstones, and costs replication of what survives. Compaction frees memory only,
//! and costs no replication: so it goes first as long as the backups have frames to spare.

use crate::entry::SEGMENT_BYTES;

/// Fuller segments and blocks are not worth the copy.
pub const LIVE_SHARE_MAX: f64 = 0.98;
/// Share of the segments that backups may hold from which on they are cleaned.
const LOG_SHARE_MAX: f64 = 0.9;
/// Blocks that are made free beyond the reserve: 1 of so many.
const LEAD_SHARE: usize = 40;
const LEAD_BLOCKS_MIN: usize = 2;

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// Blocks of log memory that should be free.
    pub wanted_blocks: usize,
    /// Those that are free, or will be when readers have gone on.
    pub free_blocks: usize,
    /// Segments that the log will have when all passes under way are done.
    pub log_segments: usize,
    /// Most segments that backups should hold; None without backups.
    pub log_segments_max: Option<usize>,
}

/// A thing that can be cleaned, a segment or a block, by its place in the caller's list.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// In the caller's list.
    pub index: usize,
    /// Bytes that must be copied, as far as anybody knows.
    pub live_bytes: u64,
    /// Blocks that were taken since it was opened.
    pub age: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// There is room.
    Nothing,
    /// Free memory without the help of backups.
    Compact,
    /// Free memory, frames and tombstones.
    Clean,
}

/// Blocks that should be free: writers take them while the next ones are made.
pub fn wanted_blocks(blocks: usize, reserve: usize) -> usize {
    reserve + LEAD_BLOCKS_MIN.max(blocks / LEAD_SHARE)
}

impl Pressure {
    /// Memory is short.
    pub fn memory_low(&self) -> bool {
        self.free_blocks < self.wanted_blocks
    }

    /// Frames on backups are short.
    pub fn frames_low(&self) -> bool {
        self.log_segments_max
            .is_some_and(|max| self.log_segments as f64 >= max as f64 * LOG_SHARE_MAX)
    }

    /// What comes first.
    pub fn work(&self) -> Work {
        if self.frames_low() {
            Work::Clean
        } else if !self.memory_low() {
            Work::Nothing
        } else if self.log_segments_max.is_some() {
            Work::Compact
        } else {
            Work::Clean
        }
    }
}

/// Live bytes when tombstones are discounted: of those whose fate is unknown since `released`
/// segments left a log of `segments`, that share may be dropped.
pub fn expected_live_bytes(
    live_bytes: u64,
    tombstone_bytes: u64,
    released: u64,
    segments: usize,
) -> u64 {
    let share = (released as f64 / segments.max(1) as f64).min(1.0);
    live_bytes.saturating_sub((tombstone_bytes as f64 * share) as u64)
}

fn live_share(candidate: &Candidate) -> f64 {
    candidate.live_bytes as f64 / SEGMENT_BYTES as f64
}

/// Free space gained, weighted by how long it is likely to stay, per byte copied.
fn benefit(candidate: &Candidate) -> f64 {
    let share = live_share(candidate).max(0.001);
    (1.0 - share).max(0.0) * (candidate.age + 1) as f64 / share
}

/// The segments to clean together, best first: no more than `live_bytes_max` to copy, but one in
/// any case.
pub fn choose_segments(candidates: &[Candidate], live_bytes_max: u64) -> Vec<usize> {
    let mut candidates = candidates.to_vec();
    candidates.retain(|candidate| live_share(candidate) <= LIVE_SHARE_MAX);
    candidates.sort_by(|one, other| {
        let order = benefit(other).total_cmp(&benefit(one));
        order.then(one.index.cmp(&other.index))
    });
    let mut total = 0;
    let fits = |candidate: &&Candidate| {
        let first = total == 0;
        total += candidate.live_bytes.max(1);
        first || total <= live_bytes_max
    };
    candidates
        .iter()
        .take_while(fits)
        .map(|candidate| candidate.index)
        .collect()
}

/// The block to compact: where least must be copied, but no more than that share of it.
pub fn choose_block(candidates: &[Candidate], live_share_max: f64) -> Option<usize> {
    candidates
        .iter()
        .filter(|candidate| live_share(candidate) <= live_share_max)
        .min_by_key(|candidate| candidate.live_bytes)
        .map(|candidate| candidate.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: usize, live_share: f64, age: u64) -> Candidate {
        Candidate {
            index,
            live_bytes: (SEGMENT_BYTES as f64 * live_share) as u64,
            age,
        }
    }

    #[test]
    fn old_segments_go_first_and_full_ones_never() {
        let candidates = vec![
            candidate(0, 0.5, 0),
            candidate(1, 0.5, 10),
            candidate(2, 0.99, 1000),
            candidate(3, 0.9, 1000),
        ];
        let all = choose_segments(&candidates, u64::MAX);
        assert_eq!(all, [3, 1, 0]);
        let one = choose_segments(&candidates, 1);
        assert_eq!(one, [3], "one in any case");
    }

    #[test]
    fn compaction_first_as_long_as_frames_last() {
        let mut pressure = Pressure {
            wanted_blocks: 6,
            free_blocks: 20,
            log_segments: 100,
            log_segments_max: Some(256),
        };
        assert_eq!(pressure.work(), Work::Nothing);
        pressure.free_blocks = 5;
        assert_eq!(pressure.work(), Work::Compact);
        pressure.log_segments = 250;
        assert_eq!(pressure.work(), Work::Clean);
        pressure.log_segments_max = None;
        assert_eq!(pressure.work(), Work::Clean);
    }

    #[test]
    fn tombstones_are_discounted_as_segments_leave() {
        assert_eq!(expected_live_bytes(100, 40, 0, 10), 100);
        assert_eq!(expected_live_bytes(100, 40, 5, 10), 80);
        assert_eq!(expected_live_bytes(100, 40, 50, 10), 60);
    }
}

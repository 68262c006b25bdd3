//! What the machine can do at most: copying 8 MB from DRAM to DRAM, reading it, touching random
//! cache lines. On huge pages, one thread.

use std::hint::black_box;

use crate::Failure;
use crate::figures::{Rounds, figure, seconds};
use crate::huge_memory::HugeMemory;

/// What is copied at once: a segment.
pub const COPY_BYTES: usize = 8 << 20;
/// Several times the last-level cache.
const AREA_BYTES: usize = 256 << 20;
const LINE_BYTES: usize = 64;
/// Lines that are fetched ahead.
const LINES_AHEAD: usize = 32;

/// Source and target of copies.
pub struct CopyLimit {
    source: HugeMemory,
    target: HugeMemory,
}

impl CopyLimit {
    /// Maps and touches both.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> Result<Self, Failure> {
        Ok(Self {
            source: HugeMemory::new(AREA_BYTES)?,
            target: HugeMemory::new(AREA_BYTES)?,
        })
    }

    /// Copies all of the source in pieces of 8 MB; bytes and seconds.
    pub fn timed(&mut self) -> (f64, f64) {
        let target = self.target.bytes_mut().chunks_exact_mut(COPY_BYTES);
        let source = self.source.bytes().chunks_exact(COPY_BYTES);
        let took = seconds(|| {
            for (to, from) in target.zip(source) {
                to.copy_from_slice(black_box(from));
            }
        });
        (AREA_BYTES as f64, took)
    }

    /// Memory that is not in the caches after a few uses in turn.
    pub fn target_mut(&mut self) -> &mut [u8] {
        self.target.bytes_mut()
    }

    fn gbps(&mut self) -> f64 {
        let (bytes, took) = self.timed();
        bytes / took / 1e9
    }

    fn read_gbps(&self) -> f64 {
        let mut sums = [0u64; 8];
        let took = seconds(|| {
            for line in self.source.bytes().as_chunks::<LINE_BYTES>().0 {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
        });
        black_box(sums);
        AREA_BYTES as f64 / took / 1e9
    }

    /// Random lines a second, read and written, each fetched 32 accesses ahead.
    fn random_lines(&mut self) -> f64 {
        let bytes = self.target.bytes_mut();
        let lines = bytes.len() / LINE_BYTES;
        let count = 4 << 20;
        let at = |number: usize| (mix(number as u64) as usize & (lines - 1)) * LINE_BYTES;
        let took = seconds(|| {
            for number in 0..count {
                prefetch(&bytes[at(number + LINES_AHEAD)]);
                let byte = &mut bytes[at(number)];
                *byte = byte.wrapping_add(1);
            }
        });
        count as f64 / took
    }
}

/// splitmix64's finaliser.
pub fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn prefetch(byte: &u8) {
    rekindle_core::master::hash_table::prefetch(std::ptr::from_ref(byte));
}

/// Prints the limits.
///
/// # Errors
/// No memory, or the reader is gone.
pub fn measure(quick: bool) -> Result<(), Failure> {
    let limit = std::cell::RefCell::new(CopyLimit::new()?);
    let rounds = Rounds::run(
        if quick { 5 } else { 15 },
        &mut [
            &mut || limit.borrow_mut().gbps(),
            &mut || limit.borrow().read_gbps(),
            &mut || limit.borrow_mut().random_lines(),
        ],
    );
    figure("memcpy-8mb-gbps", "GB/s", rounds.rate(0))?;
    figure("stream-read-gbps", "GB/s", rounds.rate(1))?;
    figure("random-lines-per-second", "lines/s", rounds.rate(2))
}

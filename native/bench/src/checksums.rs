//! CRC-32C as the core computes it, in cache and from DRAM.

use std::hint::black_box;

use rekindle_core::crc32c::crc32c;

use crate::Failure;
use crate::figures::{Rounds, figure, seconds};
use crate::huge_memory::HugeMemory;

/// Beyond the last-level cache.
const DRAM_BYTES: usize = 256 << 20;
/// Stays in the second-level cache.
const CACHE_BYTES: usize = 256 << 10;
/// The bytes of an object of 100 B with a key of 24 B that its checksum covers.
const ENTRY_BYTES: usize = 152;

fn gbps(area: &[u8], piece_bytes: usize, total: usize) -> f64 {
    let pieces = area.len() / piece_bytes;
    let repeats = (total / (pieces * piece_bytes)).max(1);
    let mut sum = 0;
    let took = seconds(|| {
        for _ in 0..repeats {
            for piece in black_box(area).chunks_exact(piece_bytes) {
                sum ^= crc32c(piece);
            }
        }
    });
    black_box(sum);
    (repeats * pieces * piece_bytes) as f64 / took / 1e9
}

/// Prints the figures.
///
/// # Errors
/// No memory, or the reader is gone.
pub fn measure(quick: bool) -> Result<(), Failure> {
    let memory = HugeMemory::new(DRAM_BYTES)?;
    let (all, cached) = (memory.bytes(), &memory.bytes()[..CACHE_BYTES]);
    let rounds = Rounds::run(
        if quick { 5 } else { 15 },
        &mut [
            &mut || gbps(cached, ENTRY_BYTES, 64 << 20),
            &mut || gbps(cached, 1024, 128 << 20),
            &mut || gbps(all, 8 << 20, DRAM_BYTES),
        ],
    );
    let entry_ns = ENTRY_BYTES as f64 / rounds.rate(0);
    figure("crc32c-100b-entry-ns", "ns", entry_ns)?;
    figure("crc32c-1kb-gbps", "GB/s", rounds.rate(1))?;
    figure("crc32c-8mb-gbps", "GB/s", rounds.rate(2))
}

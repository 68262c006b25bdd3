//! Fuzzing of every decoder of the core: what comes from a network or a disk.
//!
//! A [`Target`] takes any bytes and states what must hold beyond "does not crash". Two drivers run
//! the same targets: `tests/bounded.rs` mutates the corpus with a seeded generator as a part of
//! `cargo test`, `src/bin/libfuzzer.rs` lets libFuzzer follow the coverage for as long as one
//! likes (`npm run fuzz`). Most inputs begin with a mode byte, of which bit 0 repairs checksums
//! after the mutation: else next to nothing would get behind them.

pub mod allocation;
pub mod log_bytes;
pub mod mutate;
pub mod random;
pub mod reference;
pub mod requests;
pub mod scratch;
pub mod small_backup;
pub mod small_master;
pub mod targets;

use targets::{
    backup_write, digest, entries, execute, frame_slot, lz4_image, replay, restart, split,
    superblock,
};

/// Inputs by name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// A decoder under test.
pub struct Target {
    /// Also the folder of its corpus.
    pub name: &'static str,
    /// Panics if a property does not hold.
    pub check: fn(&[u8]),
    /// Valid inputs.
    pub seeds: fn() -> Seeds,
    /// Inputs of the bounded run, so that each target takes a second or two.
    pub iterations: u64,
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target {
        name: "backup-write",
        check: backup_write::check,
        seeds: backup_write::seeds,
        iterations: 2_000,
    },
    Target {
        name: "digest",
        check: digest::check,
        seeds: digest::seeds,
        iterations: 60_000,
    },
    Target {
        name: "entries",
        check: entries::check,
        seeds: entries::seeds,
        iterations: 50_000,
    },
    Target {
        name: "execute",
        check: execute::check,
        seeds: execute::seeds,
        iterations: 3_000,
    },
    Target {
        name: "frame-slot",
        check: frame_slot::check,
        seeds: frame_slot::seeds,
        iterations: 20_000,
    },
    Target {
        name: "lz4-image",
        check: lz4_image::check,
        seeds: lz4_image::seeds,
        iterations: 2_500,
    },
    Target {
        name: "replay",
        check: replay::check,
        seeds: replay::seeds,
        iterations: 2_000,
    },
    Target {
        name: "restart",
        check: restart::check,
        seeds: restart::seeds,
        iterations: 100,
    },
    Target {
        name: "split",
        check: split::check,
        seeds: split::seeds,
        iterations: 60_000,
    },
    Target {
        name: "superblock",
        check: superblock::check,
        seeds: superblock::seeds,
        iterations: 6_000,
    },
];

/// Longest input that the drivers make.
pub const INPUT_BYTES_MAX: usize = 16 << 10;

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

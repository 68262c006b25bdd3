//! Models of what threads share in the core: the code that ships, run by loom over all schedules
//! that its bound on preemptions allows, and over the reorderings of weak memory.
//!
//! Without `--cfg loom` there is nothing here; `npm run test:loom` sets it. Bytes in the arena are
//! plain memory that loom does not see, hence [`Cells`]: each stands for the bytes of one entry, is
//! written where these are written and read where these are read, and loom reports an access that
//! no publication has ordered.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use rekindle_core::master::hash_table::HashTable;
use rekindle_core::status::Status;

/// Log bytes for which a table has one bucket and two for overflow.
pub const ONE_BUCKET_BYTES: usize = 800;

/// What stands for the bytes of entries; entry `n` lies at the arena offset `8 n`.
pub struct Cells(Vec<UnsafeCell<u64>>);

// SAFETY: a cell is accessed through loom alone, which reports every access that is not ordered.
unsafe impl Sync for Cells {}
// SAFETY: a number has no thread affinity.
unsafe impl Send for Cells {}

impl Cells {
    /// Entries without contents.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    /// Writes an entry's bytes and returns its offset.
    pub fn write(&self, entry: usize, content: u64) -> usize {
        // SAFETY: loom checks that nobody else accesses the cell.
        self.0[entry].with_mut(|cell| unsafe { *cell = content });
        entry * 8
    }

    /// Reads the bytes of the entry at an offset.
    pub fn read(&self, offset: usize) -> u64 {
        // SAFETY: loom checks that nobody writes the cell.
        self.0[offset / 8].with(|cell| unsafe { *cell })
    }
}

/// What each thread of a model passes first, in every order.
///
/// loom remembers one access to each object only, the newest. A thread that loads what it then
/// stores hides from it that another had loaded the same before, and the schedule in which the
/// store comes first is never tried. At the gate nobody hides. It orders nothing.
pub struct Gate(AtomicUsize);

impl Gate {
    /// For one run of a model.
    #[allow(clippy::new_without_default, reason = "loom's objects belong to a run")]
    pub fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Lets the caller go on; others may come first.
    pub fn pass(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A hash in the only bucket, with a tag of its own.
pub fn hash(key: u64) -> u64 {
    key << 32
}

/// A table of one bucket with the entries of keys 1 to `keys`; entry `n` holds key `n`.
///
/// # Errors
/// `OutOfMemory` if there is no room for them.
pub fn filled(keys: u64, cells: &Cells) -> Result<HashTable, Status> {
    let table = HashTable::new(ONE_BUCKET_BYTES)?;
    for key in 1..=keys {
        table.insert(hash(key), cells.write(key as usize, key))?;
    }
    Ok(table)
}

/// The offset that the table has for a key.
pub fn find(table: &HashTable, key: u64, cells: &Cells) -> Option<usize> {
    let found = table.find(hash(key), |offset| cells.read(offset) == key);
    found.map(|(_, offset)| offset)
}

/// Runs a model over all schedules with at most `preemptions` of them forced.
pub fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Two are what nearly all known bugs need; a longer run may ask for more.
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 20_000;
    builder.check(run);
}

//! How full the table is, and how long its chains are. Changes nothing.

use super::{CHAIN, HashTable, LAST, REFERENCE_MASK, SLOTS, TAG_MASK, decode, is_entry, tag};
use crate::sync::atomic::Ordering;

/// Buckets for each of the main ones, those for overflow included.
const CHAIN_FACTOR: usize = 3;

/// How full the table is; cheap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableReport {
    /// Entries, tombstones included.
    pub entries: u64,
    /// Buckets, overflow buckets not counted.
    pub buckets: u64,
    /// Overflow buckets in use.
    pub overflow_buckets: u64,
    /// Entries for each slot of the buckets.
    pub load_factor: f64,
}

/// What a walk over some chains has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableShape {
    /// Chains seen.
    pub chains: u64,
    /// Entries in them.
    pub entries: u64,
    /// Chains by number of buckets: one, two, …; the last counts all longer ones.
    pub chains_by_buckets: [u64; SLOTS],
    /// Buckets of the longest.
    pub chain_buckets_max: u64,
}

impl HashTable {
    /// How full the table is.
    pub fn report(&self) -> TableReport {
        let entries = u64::try_from(self.entries.load(Ordering::Relaxed)).unwrap_or(0);
        TableReport {
            entries,
            buckets: self.buckets as u64,
            overflow_buckets: self.overflow_buckets() as u64,
            load_factor: entries as f64 / (self.buckets * SLOTS) as f64,
        }
    }

    /// Looks at the first `chains_max` chains.
    pub fn shape(&self, chains_max: usize) -> TableShape {
        let mut shape = TableShape {
            chains: chains_max.min(self.buckets) as u64,
            entries: 0,
            chains_by_buckets: [0; SLOTS],
            chain_buckets_max: 0,
        };
        for first in 0..chains_max.min(self.buckets) {
            let (mut index, mut buckets) = (first, 1);
            loop {
                let words = self.bucket(index).each_ref();
                let words = words.map(|word| word.load(Ordering::Acquire));
                shape.entries += words.iter().filter(|word| is_entry(**word)).count() as u64;
                if words[LAST] & CHAIN == 0 {
                    break;
                }
                index = (words[LAST] & REFERENCE_MASK) as usize;
                buckets += 1;
            }
            shape.chains_by_buckets[(buckets - 1).min(SLOTS - 1)] += 1;
            shape.chain_buckets_max = shape.chain_buckets_max.max(buckets as u64);
        }
        shape
    }

    /// Where a hash belongs: its bucket and its tag.
    pub fn place(&self, hash: u64) -> (usize, u64) {
        (self.index(hash), tag(hash))
    }

    /// Shows every entry: where it belongs and its offset. For the holder of the serving lock.
    ///
    /// # Errors
    /// The bucket of a chain that does not end.
    pub fn each(&self, mut visit: impl FnMut((usize, u64), usize)) -> Result<(), usize> {
        for first in 0..self.buckets {
            let (mut index, mut buckets) = (first, 1);
            loop {
                let words = self.bucket(index).each_ref();
                let words = words.map(|word| word.load(Ordering::Acquire));
                for word in words.into_iter().filter(|word| is_entry(*word)) {
                    visit((first, word & TAG_MASK), decode(word));
                }
                if words[LAST] & CHAIN == 0 {
                    break;
                }
                index = (words[LAST] & REFERENCE_MASK) as usize;
                buckets += 1;
                if buckets > self.buckets * CHAIN_FACTOR {
                    return Err(first);
                }
            }
        }
        Ok(())
    }
}

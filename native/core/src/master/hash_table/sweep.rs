//! Takes entries out by bucket, whatever their keys are.
//!
//! Rule: who sweeps holds the serving lock, for some buckets at a time; what has been fetched
//! before costs it little.

use std::ops::Range;

use super::{CHAIN, HashTable, LAST, REFERENCE_MASK, decode, is_entry, swap};
use crate::sync::atomic::Ordering;

impl HashTable {
    /// Takes the entries of some buckets out that `dead` names, and shows those that it has taken.
    /// For the serving thread.
    pub fn sweep(
        &self,
        buckets: Range<usize>,
        dead: impl Fn(usize) -> bool,
        mut gone: impl FnMut(usize),
    ) {
        assert!(
            buckets.end <= self.buckets,
            "overflow buckets are reached by their chain"
        );
        for index in buckets {
            self.sweep_chain(index, &dead, &mut gone);
        }
    }

    fn sweep_chain(
        &self,
        first: usize,
        dead: &impl Fn(usize) -> bool,
        gone: &mut impl FnMut(usize),
    ) {
        let (mut index, mut previous) = (first, None);
        loop {
            let bucket = self.bucket(index);
            for word in bucket {
                let mut seen = word.load(Ordering::Acquire);
                while is_entry(seen) && dead(decode(seen)) {
                    if swap(word, seen, self.vacated()) {
                        self.entries.fetch_sub(1, Ordering::Relaxed);
                        gone(decode(seen));
                        break;
                    }
                    // Relocated, or moved on by the chain: look again.
                    seen = word.load(Ordering::Acquire);
                }
            }
            let last = bucket[LAST].load(Ordering::Acquire);
            if last & CHAIN == 0 {
                if let Some(previous) = previous {
                    self.unlink_if_empty(previous, index);
                }
                return;
            }
            previous = Some(index);
            index = (last & REFERENCE_MASK) as usize;
        }
    }
}

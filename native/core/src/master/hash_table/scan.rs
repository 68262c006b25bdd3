//! Finds slots of a bucket, or goes through all of one.
//!
//! Rule: looks at all slots without branches: how many are used, and which one has a tag, is what
//! no processor can guess. A word that was seen may change at once.

use super::{Bucket, CHAIN, GRAVE, HashTable, REFERENCE_MASK, SLOTS, TAG_MASK, decode, is_entry};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The first slot of a bucket that the serving thread may use, and its word.
#[inline(always)]
pub(super) fn vacant(bucket: &Bucket) -> Option<(&AtomicU64, u64)> {
    let mut vacant = 0u32;
    for (number, word) in bucket.iter().enumerate() {
        let seen = word.load(Ordering::Relaxed);
        vacant |= u32::from(matches!(seen, 0 | GRAVE)) << number;
    }
    let word = bucket.get(vacant.trailing_zeros() as usize)?;
    let seen = word.load(Ordering::Relaxed);
    matches!(seen, 0 | GRAVE).then_some((word, seen))
}

/// The words of a bucket, and which of them are entries with the tag.
#[inline(always)]
pub(super) fn entries_with(
    bucket: &Bucket,
    tag: u64,
) -> ([u64; SLOTS], impl Iterator<Item = usize>) {
    let mut words = [0; SLOTS];
    let mut same = 0u32;
    for (number, word) in bucket.iter().enumerate() {
        let seen = word.load(Ordering::Acquire);
        words[number] = seen;
        same |= u32::from((seen & TAG_MASK == tag) & is_entry(seen)) << number;
    }
    let numbers = std::iter::from_fn(move || {
        let number = same.trailing_zeros() as usize;
        same &= same.wrapping_sub(1);
        (number < SLOTS).then_some(number)
    });
    (words, numbers)
}

/// The first word of a bucket with the tag and its slot, if that is an entry. Whoever wants all of
/// them asks `entries_with`, which costs more.
#[inline(always)]
pub(super) fn tagged(bucket: &Bucket, tag: u64) -> Option<(&AtomicU64, u64)> {
    let mut same = 0u32;
    for (number, word) in bucket.iter().enumerate() {
        let seen = word.load(Ordering::Relaxed);
        same |= u32::from(seen & TAG_MASK == tag) << number;
    }
    let word = bucket.get(same.trailing_zeros() as usize)?;
    let seen = word.load(Ordering::Acquire);
    (seen & TAG_MASK == tag && is_entry(seen)).then_some((word, seen))
}

impl HashTable {
    /// Shows the offsets of a bucket's entries; on any thread. An entry that stays in the table is
    /// shown; one that comes or goes meanwhile may be, and one of another bucket.
    pub fn walk(&self, index: usize, mut each: impl FnMut(usize)) {
        assert!(
            index < self.buckets,
            "overflow buckets are reached by their chain"
        );
        let mut index = index;
        loop {
            let mut seen = 0;
            // The last word at last: what the chain has taken from here is found there.
            for word in self.bucket(index) {
                seen = word.load(Ordering::Acquire);
                if is_entry(seen) {
                    each(decode(seen));
                }
            }
            if seen & CHAIN == 0 {
                return;
            }
            index = (seen & REFERENCE_MASK) as usize;
        }
    }
}

//! Where an insert begins: the empty slot of a bucket that has nothing with the entry's tag.
//!
//! Rule: it only looks. Whoever takes the slot swaps it from empty, and looks again if that fails.

use super::{Bucket, TAG_MASK};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The first empty slot of a bucket in which no word has the tag. Looks at all slots without
/// branches: how many are used is what no processor can guess.
#[inline(always)]
pub(super) fn first_empty(bucket: &Bucket, tag: u64) -> Option<&AtomicU64> {
    let (empty, same) = empty_and_same(bucket, tag);
    if same & !empty == 0 && empty != 0 {
        Some(&bucket[empty.trailing_zeros() as usize])
    } else {
        None
    }
}

/// Which slots are empty, and which have the tag; an empty one counts as one with tag 0.
#[inline(always)]
fn empty_and_same(bucket: &Bucket, tag: u64) -> (u32, u32) {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    if let Some(wide) = super::wide::Wide::detect() {
        return wide.empty_and_same(bucket, tag);
    }
    empty_and_same_of_words(bucket, tag)
}

/// The same, slot by slot.
#[inline(always)]
pub(super) fn empty_and_same_of_words(bucket: &Bucket, tag: u64) -> (u32, u32) {
    let (mut empty, mut same) = (0u32, 0u32);
    for (number, word) in bucket.iter().enumerate() {
        let seen = word.load(Ordering::Acquire);
        empty |= u32::from(seen == 0) << number;
        same |= u32::from(seen & TAG_MASK == tag) << number;
    }
    (empty, same)
}

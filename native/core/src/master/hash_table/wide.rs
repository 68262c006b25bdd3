//! All slots of a bucket at once, in one of AVX-512's registers.
//!
//! Rule: what it says is what eight loads of the slots would have said, each for itself; a slot
//! found empty may be taken by the time it is swapped.

use std::arch::asm;

use super::Bucket;

/// Bits below the tag.
const TAG_SHIFT: u32 = 48;

/// Proof that the processor has the instructions.
#[derive(Clone, Copy)]
pub(super) struct Wide(());

impl Wide {
    /// Whether they are there.
    #[inline(always)]
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx512f").then_some(Self(()))
    }

    /// See the scalar function of this name.
    #[inline(always)]
    pub(super) fn empty_and_same(self, bucket: &Bucket, tag: u64) -> (u32, u32) {
        const { assert!(super::TAG_MASK == !0 << TAG_SHIFT, "the tag is on top") };
        let (empty, same): (u32, u32);
        // SAFETY: reads one bucket, which is a cache line of its own. The processor reads aligned
        // words of eight bytes whole and in order, so this is eight acquiring loads of the slots,
        // which others may swap meanwhile. A `Wide` exists only where the feature was detected.
        unsafe {
            asm!(
                "vmovdqa64 zmm16, zmmword ptr [{bucket}]",
                "vpbroadcastq zmm17, {tag}",
                "vptestnmq k1, zmm16, zmm16",
                "vpxorq zmm17, zmm16, zmm17",
                "vpsrlq zmm17, zmm17, {tag_shift}",
                "vptestnmq k2, zmm17, zmm17",
                "kmovw {empty:e}, k1",
                "kmovw {same:e}, k2",
                bucket = in(reg) bucket.as_ptr(),
                tag = in(reg) tag,
                tag_shift = const TAG_SHIFT,
                empty = lateout(reg) empty,
                same = lateout(reg) same,
                out("zmm16") _,
                out("zmm17") _,
                out("k1") _,
                out("k2") _,
                options(readonly, nostack, preserves_flags),
            );
        }
        (empty, same)
    }
}

#[cfg(test)]
mod tests {
    use super::super::first_empty::empty_and_same_of_words;
    use super::super::{GRAVE, SLOTS, TAG_MASK};
    use super::*;
    use crate::sync::atomic::AtomicU64;

    /// Aligned as buckets of the table are.
    #[repr(align(64))]
    struct Aligned(Bucket);

    #[test]
    fn says_what_eight_loads_say() {
        let Some(wide) = Wide::detect() else { return };
        let tags = [0u64, 1 << 48, 0x1234 << 48, TAG_MASK];
        let words = [
            0,
            1,
            GRAVE,
            GRAVE | 1,
            1 << 47,
            (0x1234 << 48) | 9,
            u64::MAX,
        ];
        for shift in 0..words.len() {
            for step in 1..words.len() {
                let word = |slot: usize| AtomicU64::new(words[(shift + slot * step) % words.len()]);
                let bucket = Aligned(std::array::from_fn::<_, SLOTS, _>(word));
                for tag in tags {
                    let expected = empty_and_same_of_words(&bucket.0, tag);
                    assert_eq!(
                        wide.empty_and_same(&bucket.0, tag),
                        expected,
                        "{shift} {step}"
                    );
                }
            }
        }
    }
}

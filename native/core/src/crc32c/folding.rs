//! CRC-32C by folding with 512-bit carry-less multiplication (AVX-512 and VPCLMULQDQ), and with the
//! SSE4.2 instruction below 128 bytes.
//!
//! A block of 512 bits stands for a polynomial; multiplying its 128-bit lanes by x^n mod P moves
//! them n bits ahead, onto the bytes that follow, without changing the remainder. Four independent
//! accumulators hide the latency of the multiplier; in the end one lane is left, whose remainder
//! the CRC instruction itself takes.

use std::arch::x86_64::{
    __m128i, __m512i, _MM_HINT_T0, _mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64, _mm_cvtsi32_si128,
    _mm_cvtsi128_si64, _mm_extract_epi64, _mm_prefetch, _mm_xor_si128, _mm512_clmulepi64_epi128,
    _mm512_extracti32x4_epi32, _mm512_loadu_si512, _mm512_set_epi64, _mm512_set4_epi64,
    _mm512_ternarylogic_epi64, _mm512_xor_si512, _mm512_zextsi128_si512,
};
use std::sync::atomic::{AtomicU8, Ordering};

/// From here on four accumulators pay.
const FOUR_BYTES_MIN: usize = 512;
const BLOCK_BYTES: usize = 64;
/// The hardware's own prefetch stops at the end of a page.
const AHEAD_BYTES: usize = 1024;
/// Of short parts in a row, whose users come back to each of them: so far behind lie the next ones.
const PARTS_AHEAD_BYTES: usize = 8 << 10;
/// exclusive or of three operands.
const XOR3: i32 = 0x96;

const UNKNOWN: u8 = 0;
const ABSENT: u8 = 1;
const PRESENT: u8 = 2;
static FOUND: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Proof that the processor has the instructions.
#[derive(Clone, Copy)]
pub(super) struct Wide(());

impl Wide {
    /// Whether they are there.
    #[inline(always)]
    pub(super) fn detect() -> Option<Self> {
        // Relaxed: whoever races finds out the same.
        match FOUND.load(Ordering::Relaxed) {
            PRESENT => Some(Self(())),
            ABSENT => None,
            _ => Self::ask(),
        }
    }

    #[cold]
    fn ask() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("sse4.2");
        FOUND.store(if found { PRESENT } else { ABSENT }, Ordering::Relaxed);
        found.then_some(Self(()))
    }

    /// The inverted checksum after `bytes`, from the one before.
    #[inline(always)]
    pub(super) fn update(self, state: u32, bytes: &[u8]) -> u32 {
        // SAFETY: a `Wide` exists only where the features were detected.
        unsafe { update::<AHEAD_BYTES>(state, bytes) }
    }

    /// The checksum of each part, and how many they were.
    #[inline(always)]
    pub(super) fn each<'b>(
        self,
        parts: impl Iterator<Item = &'b [u8]>,
        checksums: &mut [u32],
    ) -> usize {
        // SAFETY: as above.
        unsafe { each(parts, checksums) }
    }
}

/// x^n mod P with its bits reflected, shifted by one as reflected multiplication needs it.
const fn power(n: u32) -> i64 {
    let mut remainder = 0x8000_0000u32;
    let mut step = 0;
    while step < n {
        let carry = remainder & 1;
        remainder >>= 1;
        if carry == 1 {
            remainder ^= 0x82f6_3b78;
        }
        step += 1;
    }
    (remainder as i64) << 1
}

/// Multipliers of the low and the high half of a lane that moves `bits` ahead.
const fn ahead(bits: u32) -> (i64, i64) {
    (power(bits + 32), power(bits - 32))
}

const BY_4_BLOCKS: (i64, i64) = ahead(4 * 512);
const BY_BLOCK: (i64, i64) = ahead(512);
const BY_3_LANES: (i64, i64) = ahead(3 * 128);
const BY_2_LANES: (i64, i64) = ahead(2 * 128);
const BY_LANE: (i64, i64) = ahead(128);

#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn all_lanes((low, high): (i64, i64)) -> __m512i {
    _mm512_set4_epi64(high, low, high, low)
}

#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn load(block: &[u8; BLOCK_BYTES]) -> __m512i {
    // SAFETY: 64 bytes are there; the load needs no alignment.
    unsafe { _mm512_loadu_si512(block.as_ptr().cast()) }
}

#[inline(always)]
fn prefetch(address: *const u8) {
    // SAFETY: a prefetch never faults, wherever it points.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// `onto` plus the accumulator moved ahead.
#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn fold(accumulator: __m512i, multipliers: __m512i, onto: __m512i) -> __m512i {
    let low = _mm512_clmulepi64_epi128::<0x00>(accumulator, multipliers);
    let high = _mm512_clmulepi64_epi128::<0x11>(accumulator, multipliers);
    _mm512_ternarylogic_epi64::<XOR3>(low, high, onto)
}

/// One function, so that the multipliers stay in registers from one part to the next, and that what
/// finds a part overlaps with the sums of those before it.
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn each<'b>(parts: impl Iterator<Item = &'b [u8]>, checksums: &mut [u32]) -> usize {
    let mut count = 0;
    for (checksum, part) in checksums.iter_mut().zip(parts) {
        if part.len() < FOUR_BYTES_MIN {
            for block in part.chunks(BLOCK_BYTES) {
                prefetch(block.as_ptr().wrapping_add(PARTS_AHEAD_BYTES));
            }
        }
        *checksum = !update::<PARTS_AHEAD_BYTES>(!0, part);
        count += 1;
    }
    count
}

#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn update<const AHEAD_BYTES: usize>(state: u32, bytes: &[u8]) -> u32 {
    if bytes.len() >= FOUR_BYTES_MIN {
        long::<AHEAD_BYTES>(state, bytes)
    } else {
        short::<AHEAD_BYTES>(state, bytes)
    }
}

/// Less than four accumulators pay for. One for each kind of caller, so that it becomes part of it.
#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn short<const AHEAD_BYTES: usize>(state: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    let [first, blocks @ ..] = blocks else {
        return serial(state, bytes);
    };
    // Below two blocks, independent CRC instructions of neighbouring calls overlap better.
    if blocks.is_empty() {
        return serial(state, bytes);
    }
    let before = _mm512_zextsi128_si512(_mm_cvtsi32_si128(state.cast_signed()));
    let by_block = all_lanes(BY_BLOCK);
    let mut accumulator = _mm512_xor_si512(before, load(first));
    for block in blocks {
        accumulator = fold(accumulator, by_block, load(block));
    }
    serial(reduce(accumulator), rest)
}

#[inline(never)]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn long<const AHEAD_BYTES: usize>(state: u32, bytes: &[u8]) -> u32 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
    let before = _mm512_zextsi128_si512(_mm_cvtsi32_si128(state.cast_signed()));
    let (mut accumulator, blocks) = four::<AHEAD_BYTES>(before, blocks);
    let by_block = all_lanes(BY_BLOCK);
    for block in blocks {
        accumulator = fold(accumulator, by_block, load(block));
    }
    serial(reduce(accumulator), rest)
}

/// Folds all whole groups of four blocks; returns their sum and the blocks behind them.
#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn four<const AHEAD_BYTES: usize>(
    before: __m512i,
    blocks: &[[u8; BLOCK_BYTES]],
) -> (__m512i, &[[u8; BLOCK_BYTES]]) {
    let (groups, rest) = blocks.as_chunks::<4>();
    let [a, b, c, d] = &groups[0];
    let mut sums = [_mm512_xor_si512(before, load(a)), load(b), load(c), load(d)];
    let by_4_blocks = all_lanes(BY_4_BLOCKS);
    for group in &groups[1..] {
        for block in group {
            prefetch(block.as_ptr().wrapping_add(AHEAD_BYTES));
        }
        sums[0] = fold(sums[0], by_4_blocks, load(&group[0]));
        sums[1] = fold(sums[1], by_4_blocks, load(&group[1]));
        sums[2] = fold(sums[2], by_4_blocks, load(&group[2]));
        sums[3] = fold(sums[3], by_4_blocks, load(&group[3]));
    }
    let by_block = all_lanes(BY_BLOCK);
    let first = fold(sums[0], by_block, sums[1]);
    let second = fold(first, by_block, sums[2]);
    (fold(second, by_block, sums[3]), rest)
}

/// The state that stands for all bytes of the block and what was folded into it.
#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn reduce(block: __m512i) -> u32 {
    let multipliers = _mm512_set_epi64(
        0,
        0,
        BY_LANE.1,
        BY_LANE.0,
        BY_2_LANES.1,
        BY_2_LANES.0,
        BY_3_LANES.1,
        BY_3_LANES.0,
    );
    let moved = _mm512_xor_si512(
        _mm512_clmulepi64_epi128::<0x00>(block, multipliers),
        _mm512_clmulepi64_epi128::<0x11>(block, multipliers),
    );
    let first = _mm_xor_si128(
        _mm512_extracti32x4_epi32::<0>(moved),
        _mm512_extracti32x4_epi32::<1>(moved),
    );
    let second = _mm_xor_si128(
        _mm512_extracti32x4_epi32::<2>(moved),
        _mm512_extracti32x4_epi32::<3>(block),
    );
    let lane: __m128i = _mm_xor_si128(first, second);
    let low = _mm_cvtsi128_si64(lane).cast_unsigned();
    let high = _mm_extract_epi64::<1>(lane).cast_unsigned();
    _mm_crc32_u64(_mm_crc32_u64(0, low), high) as u32
}

#[inline]
#[target_feature(enable = "sse4.2,avx512f,vpclmulqdq")]
fn serial(state: u32, bytes: &[u8]) -> u32 {
    let (words, rest) = bytes.as_chunks::<8>();
    let wide = words.iter().fold(u64::from(state), |state, word| {
        _mm_crc32_u64(state, u64::from_le_bytes(*word))
    });
    let (halves, rest) = rest.as_chunks::<4>();
    let half = halves.iter().fold(wide as u32, |state, half| {
        _mm_crc32_u32(state, u32::from_le_bytes(*half))
    });
    rest.iter()
        .fold(half, |state, byte| _mm_crc32_u8(state, *byte))
}

//! Eight key hashes at once: one in each lane of AVX2's registers.
//!
//! Rule: the same numbers as [`super::key_hash`], which the tests compare. The keys have equally
//! many whole blocks, so that all lanes take the same steps; behind them a key that has ended mixes
//! zero words, which change nothing.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_set_epi64x, _mm256_add_epi32, _mm256_extract_epi64, _mm256_mullo_epi32,
    _mm256_or_si256, _mm256_set_epi32, _mm256_set_m128i, _mm256_set1_epi32, _mm256_slli_epi32,
    _mm256_srli_epi32, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi32,
    _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{BLOCK_BYTES, C1, C2, C3, C4, FINAL_1, FINAL_2, STEPS, TOGETHER, tail_words};
use crate::little_endian::u64_at;

const LANES: usize = TOGETHER;

/// A table id and a key for each lane.
type Keys<'k> = [(u64, &'k [u8]); LANES];

/// The hashes, if the processor can and the keys fit together.
#[inline]
pub(super) fn key_hashes(keys: &Keys<'_>) -> Option<[u64; LANES]> {
    let blocks = keys[0].1.len() / BLOCK_BYTES;
    let alike = keys.iter().all(|key| key.1.len() / BLOCK_BYTES == blocks);
    if alike && is_x86_feature_detected!("avx2") {
        // SAFETY: the feature was detected.
        Some(unsafe { hash_lanes(keys, blocks) })
    } else {
        None
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn all(word: u32) -> __m256i {
    _mm256_set1_epi32(word.cast_signed())
}

#[inline]
#[target_feature(enable = "avx2")]
fn each(words: [u32; LANES]) -> __m256i {
    let [a, b, c, d, e, f, g, h] = words.map(u32::cast_signed);
    _mm256_set_epi32(h, g, f, e, d, c, b, a)
}

/// By `LEFT` bits; `RIGHT` is the rest of 32.
#[inline]
#[target_feature(enable = "avx2")]
fn rotate<const LEFT: i32, const RIGHT: i32>(word: __m256i) -> __m256i {
    const { assert!(LEFT + RIGHT == 32, "a rotation loses no bit") };
    _mm256_or_si256(
        _mm256_slli_epi32::<LEFT>(word),
        _mm256_srli_epi32::<RIGHT>(word),
    )
}

#[inline]
#[target_feature(enable = "avx2")]
fn mix<const LEFT: i32, const RIGHT: i32>(words: __m256i, first: u32, second: u32) -> __m256i {
    let product = _mm256_mullo_epi32(words, all(first));
    _mm256_mullo_epi32(rotate::<LEFT, RIGHT>(product), all(second))
}

#[inline]
#[target_feature(enable = "avx2")]
fn step<const LEFT: i32, const RIGHT: i32>(h: __m256i, next: __m256i, plus: u32) -> __m256i {
    let sum = _mm256_add_epi32(rotate::<LEFT, RIGHT>(h), next);
    // Times five.
    let product = _mm256_add_epi32(_mm256_slli_epi32::<2>(sum), sum);
    _mm256_add_epi32(product, all(plus))
}

#[inline]
#[target_feature(enable = "avx2")]
fn final_mix(mut h: __m256i) -> __m256i {
    h = _mm256_xor_si256(h, _mm256_srli_epi32::<16>(h));
    h = _mm256_mullo_epi32(h, all(FINAL_1));
    h = _mm256_xor_si256(h, _mm256_srli_epi32::<13>(h));
    h = _mm256_mullo_epi32(h, all(FINAL_2));
    _mm256_xor_si256(h, _mm256_srli_epi32::<16>(h))
}

/// From a block of each key: first words, second words, third words, fourth words.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(blocks: [__m128i; LANES]) -> [__m256i; 4] {
    let row = |lane: usize| _mm256_set_m128i(blocks[lane + 4], blocks[lane]);
    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
    let (ab_low, cd_low) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_low, cd_low),
        _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high),
        _mm256_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn mix_all([k1, k2, k3, k4]: [__m256i; 4]) -> [__m256i; 4] {
    [
        mix::<15, 17>(k1, C1, C2),
        mix::<16, 16>(k2, C2, C3),
        mix::<17, 15>(k3, C3, C4),
        mix::<18, 14>(k4, C4, C1),
    ]
}

#[target_feature(enable = "avx2")]
fn hash_lanes(keys: &Keys<'_>, blocks: usize) -> [u64; LANES] {
    let low = each(keys.map(|(table_id, _)| table_id as u32));
    let high = each(keys.map(|(table_id, _)| (table_id >> 32) as u32));
    let (mut h1, mut h2, mut h3, mut h4) = (low, high, low, high);
    for at in (0..blocks).map(|block| block * BLOCK_BYTES) {
        let block = |(_, key): (u64, &[u8])| {
            _mm_set_epi64x(
                u64_at(key, at + 8).cast_signed(),
                u64_at(key, at).cast_signed(),
            )
        };
        let [k1, k2, k3, k4] = mix_all(transpose(keys.map(block)));
        h1 = step::<19, 13>(_mm256_xor_si256(h1, k1), h2, STEPS[0]);
        h2 = step::<17, 15>(_mm256_xor_si256(h2, k2), h3, STEPS[1]);
        h3 = step::<15, 17>(_mm256_xor_si256(h3, k3), h4, STEPS[2]);
        h4 = step::<13, 19>(_mm256_xor_si256(h4, k4), h1, STEPS[3]);
    }
    let rest = |(_, key): (u64, &[u8])| {
        let (low, high) = tail_words(&key[blocks * BLOCK_BYTES..]);
        _mm_set_epi64x(high.cast_signed(), low.cast_signed())
    };
    let mixed = mix_all(transpose(keys.map(rest)));
    let length = each(keys.map(|(_, key)| key.len() as u32));
    let end = |h: __m256i, mixed: __m256i| _mm256_xor_si256(_mm256_xor_si256(h, mixed), length);
    let h = [
        end(h1, mixed[0]),
        end(h2, mixed[1]),
        end(h3, mixed[2]),
        end(h4, mixed[3]),
    ];
    let [h1, h2, h3, h4] = add_across(h).map(|h| final_mix(h));
    let [h1, h2, ..] = add_across([h1, h2, h3, h4]);
    interleave(h1, h2)
}

/// The first becomes the sum of all; that is added to the others.
#[inline]
#[target_feature(enable = "avx2")]
fn add_across([h1, h2, h3, h4]: [__m256i; 4]) -> [__m256i; 4] {
    let sum = _mm256_add_epi32(_mm256_add_epi32(h1, h2), _mm256_add_epi32(h3, h4));
    let plus = |h: __m256i| _mm256_add_epi32(h, sum);
    [sum, plus(h2), plus(h3), plus(h4)]
}

/// First words below second words, by lane.
#[inline]
#[target_feature(enable = "avx2")]
fn interleave(h1: __m256i, h2: __m256i) -> [u64; LANES] {
    let (a, b) = (_mm256_unpacklo_epi32(h1, h2), _mm256_unpackhi_epi32(h1, h2));
    [
        _mm256_extract_epi64::<0>(a),
        _mm256_extract_epi64::<1>(a),
        _mm256_extract_epi64::<0>(b),
        _mm256_extract_epi64::<1>(b),
        _mm256_extract_epi64::<2>(a),
        _mm256_extract_epi64::<3>(a),
        _mm256_extract_epi64::<2>(b),
        _mm256_extract_epi64::<3>(b),
    ]
    .map(i64::cast_unsigned)
}

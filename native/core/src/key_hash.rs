//! The key hash: the first 64 bits of MurmurHash3_x86_128 (Austin Appleby, public domain), seeded
//! with the whole table id. `docs/formats.md` §1 says why 32-bit lanes.
//!
//! `src/rpc/key-hash.ts` is the same function; golden vectors hold the two together.

#[cfg(target_arch = "x86_64")]
mod lanes;

use crate::little_endian::{u32_at, u64_at};

const C1: u32 = 0x239b_961b;
const C2: u32 = 0xab0e_9789;
const C3: u32 = 0x38b3_4ae5;
const C4: u32 = 0xa1e3_8b93;
/// What is added after a block, by lane.
const STEPS: [u32; 4] = [0x561c_cd1b, 0x0bca_a747, 0x96cd_1c35, 0x32ac_3b17];
const FINAL_1: u32 = 0x85eb_ca6b;
const FINAL_2: u32 = 0xc2b2_ae35;
const BLOCK_BYTES: usize = 16;
/// Keys that [`key_hashes`] hashes together.
pub(crate) const TOGETHER: usize = 8;

#[inline(always)]
fn mix(k: u32, first: u32, rotation: u32, second: u32) -> u32 {
    k.wrapping_mul(first)
        .rotate_left(rotation)
        .wrapping_mul(second)
}

#[inline(always)]
fn final_mix(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(FINAL_1);
    h = (h ^ (h >> 13)).wrapping_mul(FINAL_2);
    h ^ (h >> 16)
}

/// Up to 15 bytes as two words, padded with zeros. Reads that overlap are faster than a copy.
#[inline(always)]
fn tail_words(tail: &[u8]) -> (u64, u64) {
    match tail.len() {
        length @ 8.. => {
            let high = u64_at(tail, length - 8) >> ((16 - length) * 8 - 1) >> 1;
            (u64_at(tail, 0), high)
        }
        length @ 4..8 => {
            let high = u64::from(u32_at(tail, length - 4)) << ((length - 4) * 8);
            (u64::from(u32_at(tail, 0)) | high, 0)
        }
        0 => (0, 0),
        length => {
            // First, middle and last are all of up to three bytes.
            let at = |index: usize| u64::from(tail[index]) << (index * 8);
            (at(0) | at(length / 2) | at(length - 1), 0)
        }
    }
}

/// The 64-bit hash of a key in a table.
#[inline]
pub fn key_hash(table_id: u64, key: &[u8]) -> u64 {
    let (low, high) = (table_id as u32, (table_id >> 32) as u32);
    let (mut h1, mut h2, mut h3, mut h4) = (low, high, low, high);
    let mut blocks = key.chunks_exact(BLOCK_BYTES);
    for block in &mut blocks {
        h1 ^= mix(u32_at(block, 0), C1, 15, C2);
        h1 = h1
            .rotate_left(19)
            .wrapping_add(h2)
            .wrapping_mul(5)
            .wrapping_add(STEPS[0]);
        h2 ^= mix(u32_at(block, 4), C2, 16, C3);
        h2 = h2
            .rotate_left(17)
            .wrapping_add(h3)
            .wrapping_mul(5)
            .wrapping_add(STEPS[1]);
        h3 ^= mix(u32_at(block, 8), C3, 17, C4);
        h3 = h3
            .rotate_left(15)
            .wrapping_add(h4)
            .wrapping_mul(5)
            .wrapping_add(STEPS[2]);
        h4 ^= mix(u32_at(block, 12), C4, 18, C1);
        h4 = h4
            .rotate_left(13)
            .wrapping_add(h1)
            .wrapping_mul(5)
            .wrapping_add(STEPS[3]);
    }
    let rest = blocks.remainder();
    if !rest.is_empty() {
        let (low, high) = tail_words(rest);
        // A lane without tail bytes mixes a zero word, which leaves it unchanged.
        h4 ^= mix((high >> 32) as u32, C4, 18, C1);
        h3 ^= mix(high as u32, C3, 17, C4);
        h2 ^= mix((low >> 32) as u32, C2, 16, C3);
        h1 ^= mix(low as u32, C1, 15, C2);
    }
    let length = key.len() as u32;
    (h1, h2, h3, h4) = (h1 ^ length, h2 ^ length, h3 ^ length, h4 ^ length);
    h1 = h1.wrapping_add(h2).wrapping_add(h3).wrapping_add(h4);
    (h2, h3, h4) = (
        h2.wrapping_add(h1),
        h3.wrapping_add(h1),
        h4.wrapping_add(h1),
    );
    (h1, h2, h3, h4) = (final_mix(h1), final_mix(h2), final_mix(h3), final_mix(h4));
    h1 = h1.wrapping_add(h2).wrapping_add(h3).wrapping_add(h4);
    h2 = h2.wrapping_add(h1);
    u64::from(h1) | u64::from(h2) << 32
}

/// Puts the hash of each key, given with its table, to the same place of `hashes`.
///
/// # Panics
/// If they are not equally many.
#[inline]
pub fn key_hashes(keys: &[(u64, &[u8])], hashes: &mut [u64]) {
    assert_eq!(keys.len(), hashes.len(), "a place for each hash");
    let (groups, rest) = keys.as_chunks::<TOGETHER>();
    let (places, rest_places) = hashes.as_chunks_mut::<TOGETHER>();
    for (group, place) in groups.iter().zip(places) {
        *place = hash_group(group);
    }
    for ((table_id, key), place) in rest.iter().zip(rest_places) {
        *place = key_hash(*table_id, key);
    }
}

#[inline]
fn hash_group(keys: &[(u64, &[u8]); TOGETHER]) -> [u64; TOGETHER] {
    #[cfg(target_arch = "x86_64")]
    if let Some(hashes) = lanes::key_hashes(keys) {
        return hashes;
    }
    keys.map(|(table_id, key)| key_hash(table_id, key))
}

/// The slot of a key hash: what tablets are ranges of.
#[inline]
pub fn slot(key_hash: u64) -> u32 {
    (key_hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the reference function; a seed stands in both halves of the table id.
    #[test]
    fn equals_the_reference_where_the_halves_are_equal() {
        let bytes: Vec<u8> = (0..=255).collect();
        let fox = &b"The quick brown fox jumps over the lazy dog"[..];
        for (key, seed, expected) in [
            (&b""[..], 0u64, 0),
            (b"a", 1, 0x1c52_81c5_49db_9b04),
            (b"Hello, world!", 0, 0xf063_8dfc_26ac_dba7),
            (fox, 7, 0xebef_eaf9_461c_020f),
            (&bytes, 0x9747_b28c, 0x3875_1f78_432d_8107),
        ] {
            assert_eq!(key_hash(seed | seed << 32, key), expected, "{key:?}");
        }
    }

    #[test]
    fn together_they_are_what_each_is_alone() {
        let bytes: Vec<u8> = (0..3000u32).map(|index| (index * 7 / 3) as u8).collect();
        for length in 0..200 {
            for spread in [0, 1, 3, 16] {
                let keys: Vec<(u64, &[u8])> = (0..19)
                    .map(|index| {
                        let key = &bytes[index * 11..][..length + index * spread % 17];
                        (0x0123_4567_89ab_cdef * index as u64, key)
                    })
                    .collect();
                let mut hashes = [0; 19];
                key_hashes(&keys, &mut hashes);
                for ((table_id, key), hash) in keys.iter().zip(hashes) {
                    assert_eq!(hash, key_hash(*table_id, key), "{length} {spread}");
                }
            }
        }
    }

    #[test]
    fn both_halves_of_the_table_id_count() {
        assert_ne!(key_hash(1, b"a"), key_hash(1 << 32, b"a"));
        assert_ne!(key_hash(1, b"a"), key_hash(2, b"a"));
    }
}

//! CRC-32C (Castagnoli), the only checksum of the formats.
//!
//! The instructions (VPCLMULQDQ, SSE4.2, ARM CRC or tables) are chosen by `crc-fast` at run time.
//! Its preparations cost more than a short input does: such a one takes one SSE4.2 stream, and the
//! streams of entries that follow each other overlap.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// Up to here one stream is faster than folding.
#[cfg(target_arch = "x86_64")]
const SHORT_BYTES_MAX: usize = 320;

/// The checksum of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() <= SHORT_BYTES_MAX && is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the instructions.
        return unsafe { one_stream(bytes) };
    }
    crc_fast::crc32_iscsi(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn one_stream(bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
    let (blocks, rest) = bytes.as_chunks::<32>();
    let mut sum = u64::from(u32::MAX);
    for block in blocks {
        for word in block.as_chunks::<8>().0 {
            sum = _mm_crc32_u64(sum, u64::from_le_bytes(*word));
        }
    }
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        sum = _mm_crc32_u64(sum, u64::from_le_bytes(*word));
    }
    let mut sum = sum as u32;
    let (half, rest) = rest.as_chunks::<4>();
    for word in half {
        sum = _mm_crc32_u32(sum, u32::from_le_bytes(*word));
    }
    for byte in rest {
        sum = _mm_crc32_u8(sum, *byte);
    }
    !sum
}

/// The checksum of a byte string whose first part has the checksum `prefix` and whose rest is
/// `bytes`; `extend(0, b) == crc32c(b)`.
#[inline]
pub fn extend(prefix: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!prefix));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn short_and_long_inputs_agree() {
        let bytes: Vec<u8> = (0..700u32).map(|i| (i * 37 % 253) as u8).collect();
        for length in 0..bytes.len() {
            let expected = crc_fast::crc32_iscsi(&bytes[..length]);
            assert_eq!(crc32c(&bytes[..length]), expected, "{length}");
        }
    }

    #[test]
    fn extend_equals_the_whole() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 31 % 251) as u8).collect();
        for cut in [0, 1, 7, 64, 4096, 5000] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(extend(crc32c(head), tail), crc32c(&bytes));
        }
    }
}

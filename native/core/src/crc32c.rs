//! CRC-32C (Castagnoli), the only checksum of the formats.
//!
//! The instructions (VPCLMULQDQ, SSE4.2, ARM CRC or tables) are chosen by `crc-fast` at run time.

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// The checksum of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
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
    fn extend_equals_the_whole() {
        let bytes: Vec<u8> = (0..5000u32).map(|i| (i * 31 % 251) as u8).collect();
        for cut in [0, 1, 7, 64, 4096, 5000] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(extend(crc32c(head), tail), crc32c(&bytes));
        }
    }
}

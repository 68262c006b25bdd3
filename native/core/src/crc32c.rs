//! CRC-32C (Castagnoli), the only checksum of the formats.
//!
//! Rule: every path gives the same number; which one runs is decided once, by what the processor
//! can do. `folding` uses 512-bit carry-less multiplication where there is one; everything else
//! (older x86, ARM, tables) is left to `crc-fast`. docs/benchmarks.md compares the two.

#[cfg(target_arch = "x86_64")]
mod folding;

use crc_fast::{CrcAlgorithm::Crc32Iscsi, Digest};

/// The checksum of `bytes`.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    extend(0, bytes)
}

/// The checksum of a byte string whose first part has the checksum `prefix` and whose rest is
/// `bytes`; `extend(0, b) == crc32c(b)`.
#[inline]
pub fn extend(prefix: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = folding::Wide::detect() {
        return !wide.update(!prefix, bytes);
    }
    extend_portable(prefix, bytes)
}

/// Puts the checksum of each part to the same place of `checksums`: short ones overlap. Fetches
/// what lies some kilobytes behind them.
///
/// # Panics
/// If they are not equally many.
#[inline]
pub fn crc32c_each(parts: &[&[u8]], checksums: &mut [u32]) {
    assert_eq!(parts.len(), checksums.len(), "a place for each checksum");
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = folding::Wide::detect() {
        wide.each(parts, checksums);
        return;
    }
    for (part, checksum) in parts.iter().zip(checksums) {
        *checksum = extend_portable(0, part);
    }
}

/// What `extend` says by `crc-fast`, for processors without wide multiplication; public to be
/// measured beside the other path.
#[inline]
pub fn extend_portable(prefix: u32, bytes: &[u8]) -> u32 {
    if prefix == 0 {
        return crc_fast::crc32_iscsi(bytes);
    }
    let mut digest = Digest::new_with_init_state(Crc32Iscsi, u64::from(!prefix));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, from the definition.
    fn reference(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |state, byte| {
            (0..8).fold(state ^ u32::from(*byte), |state, _| {
                state >> 1 ^ if state & 1 == 1 { 0x82f6_3b78 } else { 0 }
            })
        })
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn check_value_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(extend_portable(0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn every_length_and_alignment_equals_the_definition() {
        let bytes = noise(1400);
        for length in 0..1300 {
            for start in [0, 1, 7, 63] {
                let part = &bytes[start..start + length];
                let expected = reference(part);
                assert_eq!(crc32c(part), expected, "{length} bytes at {start}");
                assert_eq!(extend_portable(0, part), expected, "{length} at {start}");
                let mut each = [0; 3];
                crc32c_each(&[part, &[], part], &mut each);
                assert_eq!(each, [expected, 0, expected], "{length} at {start}");
            }
        }
    }

    #[test]
    fn extend_equals_the_whole() {
        let bytes = noise(5000);
        let whole = reference(&bytes);
        for cut in [0, 1, 7, 64, 127, 128, 129, 512, 700, 4096, 5000] {
            let (head, tail) = bytes.split_at(cut);
            assert_eq!(extend(crc32c(head), tail), whole, "cut at {cut}");
            assert_eq!(extend_portable(extend_portable(0, head), tail), whole);
        }
    }

    #[test]
    fn both_paths_agree_on_a_segment() {
        let bytes = noise(8 << 20);
        for length in [8 << 20, (8 << 20) - 1, (1 << 20) + 77] {
            let part = &bytes[..length];
            assert_eq!(crc32c(part), extend_portable(0, part), "{length}");
        }
    }
}

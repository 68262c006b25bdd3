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

/// Puts the checksum of each part to the next place of `checksums`; says how many there were. A
/// part is asked for while the sums of those before it are still on their way: so what finds it
/// costs little, if it needs none of them. Of short parts it fetches what lies some kilobytes
/// behind. Ends when the places are used up.
#[inline]
pub fn crc32c_each<'b>(parts: impl Iterator<Item = &'b [u8]>, checksums: &mut [u32]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(wide) = folding::Wide::detect() {
        return wide.each(parts, checksums);
    }
    each_portable(parts, checksums)
}

#[inline]
fn each_portable<'b>(parts: impl Iterator<Item = &'b [u8]>, checksums: &mut [u32]) -> usize {
    let sums = checksums.iter_mut().zip(parts);
    sums.map(|(checksum, part)| *checksum = extend_portable(0, part))
        .count()
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
                let parts: [&[u8]; 4] = [part, &[], part, part];
                for each in [crc32c_each, each_portable] {
                    let mut checksums = [0; 3];
                    assert_eq!(each(parts.into_iter(), &mut checksums), 3);
                    assert_eq!(checksums, [expected, 0, expected], "{length} at {start}");
                }
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

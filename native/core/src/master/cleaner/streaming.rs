//! Copies of what nobody reads soon: past the cache, which saves fetching the lines that are
//! overwritten. A line costs two transfers instead of three.
//!
//! Rule: `settle` follows the last copy before anybody else may see the bytes: such stores are not
//! ordered by anything weaker.

#[cfg(target_arch = "x86_64")]
use crate::master::hash_table::prefetch;

/// Below, the ends that are no whole lines weigh more than what is saved.
pub const PAST_CACHE_BYTES_MIN: usize = 512;
#[cfg(target_arch = "x86_64")]
const LINE_BYTES: usize = 64;

/// Copies `from` to `to`, which is as long. Of long ones, what lies `ahead` bytes beyond is fetched
/// line by line meanwhile: reading and writing overlap.
#[inline]
#[cfg(target_arch = "x86_64")]
pub fn copy_past_cache(from: &[u8], to: &mut [u8], ahead: usize) {
    if from.len() < PAST_CACHE_BYTES_MIN {
        to.copy_from_slice(from);
        return;
    }
    let first = to.as_ptr().align_offset(LINE_BYTES);
    let (start, to) = to.split_at_mut(first);
    let (start_from, from) = from.split_at(first);
    start.copy_from_slice(start_from);
    let (lines, end) = to.as_chunks_mut::<LINE_BYTES>();
    let (lines_from, end_from) = from.as_chunks::<LINE_BYTES>();
    for (line, from) in lines.iter_mut().zip(lines_from) {
        use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        let (line, from) = (line.as_mut_ptr(), from.as_ptr());
        prefetch(from.wrapping_add(ahead));
        for at in (0..LINE_BYTES).step_by(size_of::<__m128i>()) {
            // SAFETY: both have 64 bytes; the line is aligned; SSE2 belongs to the architecture.
            unsafe {
                let word = _mm_loadu_si128(from.add(at).cast());
                _mm_stream_si128(line.add(at).cast(), word);
            }
        }
    }
    end.copy_from_slice(end_from);
}

/// See the file's head.
#[inline]
#[cfg(target_arch = "x86_64")]
pub fn settle() {
    // SAFETY: a fence changes nothing; SSE belongs to the architecture.
    unsafe { std::arch::x86_64::_mm_sfence() }
}

/// Copies `from` to `to`, which is as long.
#[inline]
#[cfg(not(target_arch = "x86_64"))]
pub fn copy_past_cache(from: &[u8], to: &mut [u8], _ahead: usize) {
    to.copy_from_slice(from);
}

/// See the file's head.
#[inline]
#[cfg(not(target_arch = "x86_64"))]
pub fn settle() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_whole_wherever_they_begin() {
        let from: Vec<u8> = (0..2000u32).map(|index| (index * 13 / 7) as u8).collect();
        for length in [0, 8, 511, 512, 513, 575, 576, 1024, 1500] {
            for start in 0..130 {
                let mut to = vec![0xee; 2000];
                copy_past_cache(
                    &from[start / 2..][..length],
                    &mut to[start..][..length],
                    640,
                );
                settle();
                let (before, rest) = to.split_at(start);
                let (copy, behind) = rest.split_at(length);
                assert_eq!(copy, &from[start / 2..][..length], "{length} at {start}");
                let untouched = before.iter().chain(behind).all(|byte| *byte == 0xee);
                assert!(untouched, "{length} at {start}");
            }
        }
    }
}

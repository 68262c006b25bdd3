//! LZ4 images of closed replicas (`docs/formats.md` §4): blocks of 256 KiB, each with its lengths
//! and checksum, so that damage is found before anything is decompressed.

use crate::crc32c::crc32c;
use crate::entry::SEGMENT_BYTES;
use crate::little_endian::u32_at;
use crate::status::Status;
use lz4_flex::block::{compress_into, get_maximum_output_size};

/// Raw bytes of a block.
pub const IMAGE_BLOCK_BYTES: usize = 256 << 10;

const PROBE_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 16;
const CODEC_RAW: u32 = 0;
const CODEC_LZ4: u32 = 1;

/// Compression pays from 1.2 : 1 on.
fn pays(raw: usize, stored: usize) -> bool {
    raw * 5 >= stored * 6
}

/// Whether 64 KiB from the middle compress well enough to try the whole.
pub fn probe(bytes: &[u8]) -> bool {
    let length = bytes.len().min(PROBE_BYTES);
    let start = (bytes.len() - length) / 2;
    let sample = &bytes[start..start + length];
    length > 0 && pays(length, lz4_flex::block::compress(sample).len())
}

/// Writes the image of `bytes` to `out`, which has room for a segment, and returns its length; None
/// if it does not pay.
pub fn encode(bytes: &[u8], out: &mut [u8]) -> Option<usize> {
    let count = bytes.len().div_ceil(IMAGE_BLOCK_BYTES);
    let mut at = HEADER_BYTES + count * DESCRIPTOR_BYTES;
    if count == 0 || at > out.len() {
        return None;
    }
    out[..4].copy_from_slice(&(count as u32).to_le_bytes());
    out[4..HEADER_BYTES].fill(0);
    for (index, block) in bytes.chunks(IMAGE_BLOCK_BYTES).enumerate() {
        // Where the longest outcome has no room, too little was saved before.
        let room = out.get_mut(at..at + get_maximum_output_size(block.len()))?;
        let compressed = compress_into(block, room).expect("the room is the longest outcome's");
        let (codec, length) = if compressed < block.len() {
            (CODEC_LZ4, compressed)
        } else {
            room[..block.len()].copy_from_slice(block);
            (CODEC_RAW, block.len())
        };
        let checksum = crc32c(&room[..length]);
        at += length;
        let fields = [block.len() as u32, length as u32, checksum, codec];
        let start = HEADER_BYTES + index * DESCRIPTOR_BYTES;
        let descriptor = &mut out[start..start + DESCRIPTOR_BYTES];
        for (target, field) in descriptor.chunks_exact_mut(4).zip(fields) {
            target.copy_from_slice(&field.to_le_bytes());
        }
    }
    pays(bytes.len(), at).then_some(at)
}

/// Restores the raw bytes of an image into the start of `out`, which has the raw length.
///
/// # Errors
/// `ChecksumMismatch` if the image is not whole.
pub fn decode(image: &[u8], out: &mut [u8]) -> Result<(), Status> {
    decode_blocks(image, out, |_, _| Ok(()))
}

/// The same; after each block `done` gets `out` and how much of it is filled, while the block is in
/// the cache.
///
/// # Errors
/// `ChecksumMismatch` if the image is not whole, or what `done` says.
pub fn decode_blocks(
    image: &[u8],
    out: &mut [u8],
    mut done: impl FnMut(&mut [u8], usize) -> Result<(), Status>,
) -> Result<(), Status> {
    let damaged = Status::ChecksumMismatch;
    if image.len() < HEADER_BYTES || out.len() > SEGMENT_BYTES {
        return Err(damaged);
    }
    let count = u32_at(image, 0) as usize;
    if count != out.len().div_ceil(IMAGE_BLOCK_BYTES) {
        return Err(damaged);
    }
    let mut at = HEADER_BYTES + count * DESCRIPTOR_BYTES;
    let descriptors = image.get(HEADER_BYTES..at).ok_or(damaged)?;
    let mut filled = 0;
    for descriptor in descriptors.chunks_exact(DESCRIPTOR_BYTES) {
        let end = out.len().min(filled + IMAGE_BLOCK_BYTES);
        let raw = &mut out[filled..end];
        let stored_length = u32_at(descriptor, 4) as usize;
        let stored = image.get(at..at + stored_length).ok_or(damaged)?;
        at += stored_length;
        if u32_at(descriptor, 0) as usize != raw.len() || crc32c(stored) != u32_at(descriptor, 8) {
            return Err(damaged);
        }
        match u32_at(descriptor, 12) {
            CODEC_RAW if stored.len() == raw.len() => raw.copy_from_slice(stored),
            CODEC_LZ4 => {
                let length = lz4_flex::block::decompress_into(stored, raw).map_err(|_| damaged)?;
                if length != raw.len() {
                    return Err(damaged);
                }
            }
            _ => return Err(damaged),
        }
        filled = end;
        done(out, filled)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let bytes: Vec<u8> = (0..700_000u32)
            .map(|index| (index / 97 % 50) as u8)
            .collect();
        assert!(probe(&bytes));
        let mut image = vec![0u8; SEGMENT_BYTES];
        let stored = encode(&bytes, &mut image).expect("pays");
        let mut raw = vec![0u8; bytes.len()];
        decode(&image[..stored], &mut raw).expect("whole");
        assert!(raw == bytes);
        for at in (0..stored).step_by(stored / 37) {
            if (4..8).contains(&at) {
                continue;
            }
            image[at] ^= 0x40;
            assert_eq!(
                decode(&image[..stored], &mut raw),
                Err(Status::ChecksumMismatch),
                "{at}"
            );
            image[at] ^= 0x40;
        }
        assert_eq!(
            decode(&image[..stored - 1], &mut raw),
            Err(Status::ChecksumMismatch)
        );
    }

    #[test]
    fn noise_does_not_pay() {
        let mut state = 1u64;
        let noise: Vec<u8> = (0..300_000)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        assert!(!probe(&noise));
        assert_eq!(encode(&noise, &mut vec![0u8; SEGMENT_BYTES]), None);
    }
}

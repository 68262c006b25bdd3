//! LZ4 images of closed replicas.
//!
//! Properties: an image is accepted only if every block's checksum is right, and then it determines
//! every byte of the result, whatever lay there before; an image of the result decodes to the same
//! bytes; decoding allocates nothing.

use rekindle_core::backup::lz4_image::{IMAGE_BLOCK_BYTES, decode, encode};
use rekindle_core::entry::SEGMENT_BYTES;

use crate::allocation;
use crate::reference::{Fields, crc32c, u32_at};

const REPAIR: u8 = 1;
const HEADER_BYTES: usize = 8;
const DESCRIPTOR_BYTES: usize = 16;
/// Three blocks: all kinds of neighbours, and the run stays short.
const RAW_BYTES_MAX: usize = 3 * IMAGE_BLOCK_BYTES;

/// Mode byte, the raw length that the certificate names, then the image.
pub fn check(input: &[u8]) {
    let mut fields = Fields::new(input);
    let (mode, raw_length) = (fields.u8(), fields.u32() as usize);
    let mut image = fields.rest().to_vec();
    if mode & REPAIR != 0 {
        repair(&mut image);
    }
    if raw_length > SEGMENT_BYTES {
        let mut large = vec![0; SEGMENT_BYTES + 1];
        assert!(decode(&image, &mut large).is_err(), "at most a segment");
        return;
    }
    let raw_length = raw_length % (RAW_BYTES_MAX + 1);
    let (mut out, mut other) = (vec![0; raw_length], vec![0xff; raw_length]);
    let decoded = allocation::at_most(0, || decode(&image, &mut out));
    assert!(
        decode(&image, &mut other) == decoded,
        "the same answer twice"
    );
    if decoded.is_err() {
        return;
    }
    assert!(out == other, "every byte comes from the image");
    assert!(
        blocks(&image).all(|(stored, checksum)| crc32c(stored) == checksum),
        "checksums"
    );
    let mut again = vec![0; raw_length + IMAGE_BLOCK_BYTES];
    if let Some(stored) = encode(&out, &mut again) {
        other.fill(0xff);
        decode(&again[..stored], &mut other).expect("an own image decodes");
        assert!(out == other, "an own image restores the bytes");
    }
}

/// The stored bytes of each block with the checksum that its descriptor names, as far as they lie
/// inside the image.
fn blocks(image: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    let count = image.get(..4).map_or(0, |bytes| u32_at(bytes, 0) as usize);
    let mut at = HEADER_BYTES.saturating_add(count.saturating_mul(DESCRIPTOR_BYTES));
    let descriptors = image.get(HEADER_BYTES..at).unwrap_or(&[]);
    descriptors
        .chunks_exact(DESCRIPTOR_BYTES)
        .map_while(move |descriptor| {
            let end = at + u32_at(descriptor, 4) as usize;
            let stored = image.get(at..end)?;
            at = end;
            Some((stored, u32_at(descriptor, 8)))
        })
}

fn repair(image: &mut [u8]) {
    let checksums: Vec<u32> = blocks(image).map(|(stored, _)| crc32c(stored)).collect();
    for (index, checksum) in checksums.into_iter().enumerate() {
        let at = HEADER_BYTES + index * DESCRIPTOR_BYTES + 8;
        image[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

fn seed(mode: u8, raw: &[u8]) -> Vec<u8> {
    let mut image = vec![0; raw.len() + IMAGE_BLOCK_BYTES];
    let stored = encode(raw, &mut image).expect("a seed pays");
    let mut out = vec![mode];
    out.extend((raw.len() as u32).to_le_bytes());
    out.extend_from_slice(&image[..stored]);
    out
}

/// One short block, and two of which the second stays raw.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let text = b"Rekindle keeps all data in DRAM. ".repeat(40);
    let mut two = vec![b'.'; IMAGE_BLOCK_BYTES];
    two.extend((0..97u32).map(|index| (index.wrapping_mul(0x9e37_79b9) >> 24) as u8));
    vec![
        ("text", seed(0, &text)),
        ("text-repaired", seed(REPAIR, &text)),
        ("two-blocks", seed(REPAIR, &two)),
    ]
}

//! LZ4 of segments as the store compresses them: blocks of an image, by the codec of the store and
//! by the C library, in turn.

use std::hint::black_box;

use rekindle_core::backup::lz4_image::IMAGE_BLOCK_BYTES;
use rekindle_core::entry::SEGMENT_BYTES;

use crate::Failure;
use crate::figures::{Rounds, figure, seconds};
use crate::records;

/// The image of `docs/formats.md` §4: number of blocks, then {raw, stored, checksum, codec} each.
const IMAGE_HEADER_BYTES: usize = 8;
const IMAGE_DESCRIPTOR_BYTES: usize = 16;
const IMAGE_LZ4: usize = 1;

/// A way to compress and decompress one block.
#[derive(Clone, Copy)]
enum Codec {
    Flex,
    Library,
}

impl Codec {
    fn compress(self, block: &[u8], out: &mut [u8]) -> usize {
        match self {
            Self::Flex => lz4_flex::block::compress_into(block, out).expect("out has room"),
            Self::Library => {
                // SAFETY: pointers and lengths are those of the two slices.
                let length = unsafe {
                    lz4_sys::LZ4_compress_default(
                        block.as_ptr().cast(),
                        out.as_mut_ptr().cast(),
                        block.len() as i32,
                        out.len() as i32,
                    )
                };
                assert!(length > 0, "out has room");
                length as usize
            }
        }
    }

    fn decompress(self, stored: &[u8], out: &mut [u8]) -> usize {
        match self {
            Self::Flex => lz4_flex::block::decompress_into(stored, out).expect("own blocks"),
            Self::Library => {
                // SAFETY: pointers and lengths are those of the two slices.
                let length = unsafe {
                    lz4_sys::LZ4_decompress_safe(
                        stored.as_ptr().cast(),
                        out.as_mut_ptr().cast(),
                        stored.len() as i32,
                        out.len() as i32,
                    )
                };
                usize::try_from(length).expect("own blocks")
            }
        }
    }
}

/// Raw bytes and their compressed blocks.
pub struct Blocks {
    raw: Vec<u8>,
    stored: Vec<Vec<u8>>,
}

impl Blocks {
    /// Compresses `raw` with the store's codec.
    pub fn new(raw: Vec<u8>) -> Self {
        let compress = |block: &[u8]| {
            let mut out = vec![0u8; lz4_flex::block::get_maximum_output_size(block.len())];
            let length = Codec::Flex.compress(block, &mut out);
            out.truncate(length);
            out
        };
        let stored = raw.chunks(IMAGE_BLOCK_BYTES).map(compress).collect();
        Self { raw, stored }
    }

    fn ratio(&self) -> f64 {
        let stored: usize = self.stored.iter().map(Vec::len).sum();
        self.raw.len() as f64 / stored as f64
    }

    fn compress_gbps(&self, codec: Codec, out: &mut [u8]) -> f64 {
        let took = seconds(|| {
            for block in self.raw.chunks(IMAGE_BLOCK_BYTES) {
                black_box(codec.compress(block, out));
            }
        });
        self.raw.len() as f64 / took / 1e9
    }

    fn decompress_gbps(&self, codec: Codec, out: &mut [u8]) -> f64 {
        let took = seconds(|| {
            for (stored, raw) in self.stored.iter().zip(out.chunks_mut(IMAGE_BLOCK_BYTES)) {
                black_box(codec.decompress(stored, raw));
            }
        });
        self.raw.len() as f64 / took / 1e9
    }
}

/// Decompresses the blocks of an image into `out`, with nothing around it.
///
/// # Panics
/// If the image is damaged or `out` too short.
pub fn decompress_image(image: &[u8], out: &mut [u8]) {
    let field = |at: usize| {
        let bytes = image[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let count = field(0);
    let mut stored_at = IMAGE_HEADER_BYTES + count * IMAGE_DESCRIPTOR_BYTES;
    let mut raw_at = 0;
    for index in 0..count {
        let descriptor = IMAGE_HEADER_BYTES + index * IMAGE_DESCRIPTOR_BYTES;
        let (raw_bytes, stored_bytes) = (field(descriptor), field(descriptor + 4));
        let stored = &image[stored_at..stored_at + stored_bytes];
        assert!(
            field(descriptor + 12) == IMAGE_LZ4,
            "text and JSON compress"
        );
        black_box(Codec::Flex.decompress(stored, &mut out[raw_at..raw_at + raw_bytes]));
        stored_at += stored_bytes;
        raw_at += raw_bytes;
    }
}

/// Segments full of one kind of content, without the headers of entries.
fn contents(segments: usize, bytes: usize, make: fn(u64, usize, &mut Vec<u8>)) -> Vec<u8> {
    let mut raw = Vec::with_capacity(segments * SEGMENT_BYTES);
    let mut record = Vec::new();
    for number in 0u64.. {
        make(number, bytes, &mut record);
        if raw.len() + record.len() > segments * SEGMENT_BYTES {
            break;
        }
        raw.extend_from_slice(&record);
    }
    raw
}

/// Prints the figures.
///
/// # Errors
/// The reader is gone.
pub fn measure(quick: bool) -> Result<(), Failure> {
    let segments = if quick { 3 } else { 8 };
    let json = Blocks::new(contents(segments, 1024, records::json));
    let text = Blocks::new(contents(segments, 100, records::text));
    for (blocks, kind) in [(&json, ""), (&text, "-text")] {
        let out = std::cell::RefCell::new(vec![0u8; blocks.raw.len() + IMAGE_BLOCK_BYTES]);
        let rounds = Rounds::run(
            if quick { 3 } else { 9 },
            &mut [
                &mut || blocks.compress_gbps(Codec::Flex, &mut out.borrow_mut()),
                &mut || blocks.compress_gbps(Codec::Library, &mut out.borrow_mut()),
                &mut || blocks.decompress_gbps(Codec::Flex, &mut out.borrow_mut()),
                &mut || blocks.decompress_gbps(Codec::Library, &mut out.borrow_mut()),
            ],
        );
        figure(&format!("lz4{kind}-compress-gbps"), "GB/s", rounds.rate(0))?;
        figure(
            &format!("lz4{kind}-c-compress-gbps"),
            "GB/s",
            rounds.rate(1),
        )?;
        figure(
            &format!("lz4{kind}-decompress-gbps"),
            "GB/s",
            rounds.rate(2),
        )?;
        figure(
            &format!("lz4{kind}-c-decompress-gbps"),
            "GB/s",
            rounds.rate(3),
        )?;
        figure(&format!("lz4{kind}-ratio"), "ratio", blocks.ratio())?;
    }
    Ok(())
}

//! The layout of a frame: two slots of {certificate block, tail block} before 8 MiB of data.
//!
//! Rule: a slot counts only if both of its checksums match; whether the *replica* it names counts
//! is decided by whoever reads the data (`restart`, `read`). A frame that several images share has
//! a directory in the place of the certificate block (`directory`).

use crate::backup::directory::{self, Directory, decode_directory};
use crate::crc32c::crc32c;
use crate::entry::SEGMENT_BYTES;
use crate::little_endian::{u32_at, u64_at};

/// Unit of all I/O.
pub const BLOCK_BYTES: usize = 4096;
/// A certificate block and a tail block.
pub const SLOT_BYTES: usize = 2 * BLOCK_BYTES;
/// Slots of a frame.
pub const SLOTS: usize = 2;
/// Where the data area starts within a frame.
pub const DATA_OFFSET: usize = SLOTS * SLOT_BYTES;
/// A frame: slots and data.
pub const FRAME_BYTES: usize = DATA_OFFSET + SEGMENT_BYTES;

const _: () = assert!(SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(FRAME_BYTES.is_multiple_of(BLOCK_BYTES));

const MAGIC: u32 = u32::from_le_bytes(*b"RKFR");
const FORMAT: u32 = 1;
const PRIMARY_BIT: u32 = 256;
const TAIL_CRC_AT: usize = BLOCK_BYTES - 8;
const CRC_AT: usize = BLOCK_BYTES - 4;

/// What a frame is used for, as its newest slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FrameState {
    /// Holds a replica that may still grow.
    Open = 1,
    /// Holds a replica that never changes again.
    Closed = 2,
    /// Holds nothing.
    Free = 3,
    /// Like `Open`, of a backup that acknowledges before it flushes: bytes behind these may have
    /// been acknowledged too.
    Ahead = 4,
}

/// How the data area holds the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Codec {
    /// Segment bytes at their own offsets; the last, partial block in the slot's tail block.
    Raw = 0,
    /// An LZ4 image.
    Lz4 = 1,
}

/// The first block of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateBlock {
    /// Grows with every slot written in this frame over its whole life.
    pub sequence: u64,
    /// The log.
    pub master_id: u64,
    /// The segment.
    pub segment_id: u64,
    /// The segment's replication epoch.
    pub epoch: u64,
    /// Certified bytes, before compression.
    pub length: u32,
    /// CRC-32C of the certified bytes, before compression.
    pub checksum: u32,
    /// What the frame is used for.
    pub state: FrameState,
    /// The replica that recovery reads first.
    pub primary: bool,
    /// How the data area holds the bytes.
    pub codec: Codec,
    /// Bytes in the data area.
    pub stored: u32,
}

/// What a slot's bytes turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotContent {
    /// Zeros: never written.
    Empty,
    /// A torn or rotten slot.
    Corrupt,
    /// Both checksums match.
    Valid(CertificateBlock),
    /// The directory of a shared frame; its checksum matches.
    Shared(Directory),
}

/// Offset of a frame in the frame file.
pub fn frame_offset(frame: u32) -> u64 {
    u64::from(frame) * FRAME_BYTES as u64
}

/// The frame that an offset lies in.
pub fn frame_of(offset: u64) -> u32 {
    u32::try_from(offset / FRAME_BYTES as u64).expect("offsets come from frame_offset")
}

/// Offset of a slot in the frame file.
pub fn slot_offset(frame: u32, slot: usize) -> u64 {
    assert!(slot < SLOTS, "a frame has two slots");
    frame_offset(frame) + (slot * SLOT_BYTES) as u64
}

/// Bytes of `length` that lie in complete blocks.
pub fn block_floor(length: usize) -> usize {
    length - length % BLOCK_BYTES
}

/// `length` rounded up to complete blocks.
pub fn block_ceiling(length: usize) -> usize {
    length.next_multiple_of(BLOCK_BYTES)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes a slot: the certificate and the last, partial block (`tail`, zero-padded).
///
/// # Panics
/// If `out` is not one slot or `tail` is a whole block or longer: complete blocks belong to the
/// data area.
pub fn encode_slot(certificate: &CertificateBlock, tail: &[u8], out: &mut [u8]) {
    assert!(out.len() == SLOT_BYTES, "a slot has {SLOT_BYTES} bytes");
    assert!(tail.len() < BLOCK_BYTES, "a tail is a partial block");
    out.fill(0);
    let (block, tail_block) = out.split_at_mut(BLOCK_BYTES);
    put(tail_block, 0, tail);
    put(block, 0, &MAGIC.to_le_bytes());
    put(block, 4, &FORMAT.to_le_bytes());
    put(block, 8, &certificate.sequence.to_le_bytes());
    put(block, 16, &certificate.master_id.to_le_bytes());
    put(block, 24, &certificate.segment_id.to_le_bytes());
    put(block, 32, &certificate.epoch.to_le_bytes());
    put(block, 40, &certificate.length.to_le_bytes());
    put(block, 44, &certificate.checksum.to_le_bytes());
    let primary = if certificate.primary { PRIMARY_BIT } else { 0 };
    put(
        block,
        48,
        &(certificate.state as u32 | primary).to_le_bytes(),
    );
    put(block, 52, &(certificate.codec as u32).to_le_bytes());
    put(block, 56, &certificate.stored.to_le_bytes());
    put(block, TAIL_CRC_AT, &crc32c(tail_block).to_le_bytes());
    let crc = crc32c(&block[..CRC_AT]);
    put(block, CRC_AT, &crc.to_le_bytes());
}

/// Reads a slot.
///
/// # Panics
/// If `bytes` is not one slot.
pub fn decode_slot(bytes: &[u8]) -> SlotContent {
    assert!(bytes.len() == SLOT_BYTES, "a slot has {SLOT_BYTES} bytes");
    if bytes.iter().all(|&byte| byte == 0) {
        return SlotContent::Empty;
    }
    let (block, tail_block) = bytes.split_at(BLOCK_BYTES);
    if u32_at(block, 0) == directory::MAGIC {
        return decode_directory(block).map_or(SlotContent::Corrupt, SlotContent::Shared);
    }
    let sound = u32_at(block, 0) == MAGIC
        && u32_at(block, 4) == FORMAT
        && u32_at(block, CRC_AT) == crc32c(&block[..CRC_AT])
        && u32_at(block, TAIL_CRC_AT) == crc32c(tail_block);
    if !sound {
        return SlotContent::Corrupt;
    }
    let state = match u32_at(block, 48) & !PRIMARY_BIT {
        1 => FrameState::Open,
        2 => FrameState::Closed,
        3 => FrameState::Free,
        4 => FrameState::Ahead,
        _ => return SlotContent::Corrupt,
    };
    let codec = match u32_at(block, 52) {
        0 => Codec::Raw,
        1 => Codec::Lz4,
        _ => return SlotContent::Corrupt,
    };
    let (length, stored) = (u32_at(block, 40), u32_at(block, 56));
    if length as usize > SEGMENT_BYTES || stored as usize > SEGMENT_BYTES {
        return SlotContent::Corrupt;
    }
    SlotContent::Valid(CertificateBlock {
        sequence: u64_at(block, 8),
        master_id: u64_at(block, 16),
        segment_id: u64_at(block, 24),
        epoch: u64_at(block, 32),
        length,
        checksum: u32_at(block, 44),
        state,
        primary: u32_at(block, 48) & PRIMARY_BIT != 0,
        codec,
        stored,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_flipped_bit_is_found() {
        let certificate = CertificateBlock {
            sequence: 7,
            master_id: 1 << 40,
            segment_id: 3,
            epoch: 2,
            length: 100,
            checksum: 0xdead_beef,
            state: FrameState::Closed,
            primary: true,
            codec: Codec::Lz4,
            stored: 55,
        };
        let mut out = vec![0xffu8; SLOT_BYTES];
        encode_slot(&certificate, b"tail", &mut out);
        assert_eq!(decode_slot(&out), SlotContent::Valid(certificate));
        for bit in (0..SLOT_BYTES * 8).step_by(101) {
            out[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_slot(&out), SlotContent::Corrupt, "bit {bit}");
            out[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(decode_slot(&vec![0; SLOT_BYTES]), SlotContent::Empty);
    }
}

//! The directory of a shared frame: which LZ4 images lie in its units (`docs/formats.md` §4).
//!
//! Rule: the directory is one block with a magic number of its own, in the place of a slot's
//! certificate block and with the frame's running sequence, so that the newest valid slot says
//! what kind the frame is. Blocks that hold bytes of clients are never asked. An image lies in one
//! frame or in two; only the first, its home, names it.

use crate::backup::frame::{BLOCK_BYTES, DATA_OFFSET, frame_offset};
use crate::crc32c::crc32c;
use crate::entry::SEGMENT_BYTES;
use crate::little_endian::{u32_at, u64_at};
use std::ops::Range;

/// What a shared frame's data area is divided into.
pub const UNIT_BYTES: usize = 1 << 20;
/// Units of a frame, one bit each in a mask.
pub const UNITS: usize = SEGMENT_BYTES / UNIT_BYTES;

const _: () = assert!(UNITS == u8::BITS as usize && UNIT_BYTES.is_multiple_of(BLOCK_BYTES));

pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"RKSF");
const FORMAT: u32 = 1;
const TENANTS_AT: usize = 64;
const TENANT_BYTES: usize = 64;
const PRIMARY_BIT: u32 = 1;
const CRC_AT: usize = BLOCK_BYTES - 4;

const _: () = assert!(TENANTS_AT + UNITS * TENANT_BYTES <= CRC_AT);

/// Units of one frame; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The frame.
    pub frame: u32,
    /// Bit i: unit i.
    pub units: u8,
}

/// Where an image lies: the units of its pieces, ascending, first piece first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// In the frame whose directory names the image.
    pub home: Piece,
    /// The rest, if it did not fit.
    pub next: Option<Piece>,
}

impl Extent {
    /// The pieces in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        std::iter::once(self.home).chain(self.next)
    }

    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        let units: u32 = self.pieces().map(|piece| piece.units.count_ones()).sum();
        units as usize * UNIT_BYTES
    }

    /// Where the first `length` bytes lie: (offset in the frame file, range of the image) of each
    /// run.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn runs(&self, length: usize) -> Vec<(u64, Range<usize>)> {
        assert!(length <= self.capacity(), "an image fits into its extent");
        let mut runs: Vec<(u64, Range<usize>)> = Vec::new();
        let mut at = 0;
        for piece in self.pieces() {
            let data = frame_offset(piece.frame) + DATA_OFFSET as u64;
            for unit in (0..UNITS).filter(|unit| piece.units >> unit & 1 == 1) {
                let offset = data + (unit * UNIT_BYTES) as u64;
                let end = length.min(at + UNIT_BYTES);
                match runs.last_mut() {
                    Some((start, range)) if *start + range.len() as u64 == offset => {
                        range.end = end;
                    }
                    _ if at < end => runs.push((offset, at..end)),
                    _ => {}
                }
                at = end;
            }
        }
        runs
    }
}

/// A closed replica whose image has its home in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenant {
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
    /// Bytes of the image.
    pub stored: u32,
    /// The replica that recovery reads first.
    pub primary: bool,
    /// Units in this frame.
    pub units: u8,
    /// The rest of the image, in another frame.
    pub next: Option<Piece>,
}

impl Tenant {
    /// Where its image lies, if its home is `frame`.
    pub fn extent(&self, frame: u32) -> Extent {
        let units = self.units;
        Extent {
            home: Piece { frame, units },
            next: self.next,
        }
    }
}

/// What the newest slot of a shared frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Grows with every slot written in this frame over its whole life.
    pub sequence: u64,
    /// At most one a unit; their units are disjoint.
    pub tenants: Vec<Tenant>,
}

/// Writes a directory block.
///
/// # Panics
/// If `out` is not one block or there are more tenants than units.
pub fn encode_directory(directory: &Directory, out: &mut [u8]) {
    assert!(
        out.len() == BLOCK_BYTES,
        "a directory has {BLOCK_BYTES} bytes"
    );
    assert!(directory.tenants.len() <= UNITS, "a tenant has a unit");
    out.fill(0);
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(4, &FORMAT.to_le_bytes());
    put(8, &directory.sequence.to_le_bytes());
    put(16, &(directory.tenants.len() as u32).to_le_bytes());
    for (index, tenant) in directory.tenants.iter().enumerate() {
        let at = TENANTS_AT + index * TENANT_BYTES;
        put(at, &tenant.master_id.to_le_bytes());
        put(at + 8, &tenant.segment_id.to_le_bytes());
        put(at + 16, &tenant.epoch.to_le_bytes());
        put(at + 24, &tenant.length.to_le_bytes());
        put(at + 28, &tenant.checksum.to_le_bytes());
        put(at + 32, &tenant.stored.to_le_bytes());
        let flags = if tenant.primary { PRIMARY_BIT } else { 0 };
        put(at + 36, &flags.to_le_bytes());
        let next = tenant.next.unwrap_or(Piece { frame: 0, units: 0 });
        put(at + 40, &next.frame.to_le_bytes());
        put(at + 44, &[tenant.units, next.units]);
    }
    let crc = crc32c(&out[..CRC_AT]);
    out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// Reads a directory block; None if it is torn, rotten or none.
///
/// # Panics
/// If `block` is not one block.
pub fn decode_directory(block: &[u8]) -> Option<Directory> {
    assert!(
        block.len() == BLOCK_BYTES,
        "a directory has {BLOCK_BYTES} bytes"
    );
    let count = u32_at(block, 16) as usize;
    let sound = u32_at(block, 0) == MAGIC
        && u32_at(block, 4) == FORMAT
        && u32_at(block, CRC_AT) == crc32c(&block[..CRC_AT])
        && (1..=UNITS).contains(&count);
    if !sound {
        return None;
    }
    let rows = block[TENANTS_AT..].chunks_exact(TENANT_BYTES).take(count);
    let tenants: Vec<Tenant> = rows.map(tenant).collect();
    let mut taken = 0u8;
    for tenant in &tenants {
        let fits = tenant.length as usize <= SEGMENT_BYTES
            && tenant.stored as usize <= tenant.extent(0).capacity().min(SEGMENT_BYTES);
        if tenant.units == 0 || taken & tenant.units != 0 || !fits {
            return None;
        }
        taken |= tenant.units;
    }
    let sequence = u64_at(block, 8);
    Some(Directory { sequence, tenants })
}

fn tenant(row: &[u8]) -> Tenant {
    let next = Piece {
        frame: u32_at(row, 40),
        units: row[45],
    };
    Tenant {
        master_id: u64_at(row, 0),
        segment_id: u64_at(row, 8),
        epoch: u64_at(row, 16),
        length: u32_at(row, 24),
        checksum: u32_at(row, 28),
        stored: u32_at(row, 32),
        primary: u32_at(row, 36) & PRIMARY_BIT != 0,
        units: row[44],
        next: (next.units != 0).then_some(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(units: u8, next: Option<Piece>) -> Tenant {
        Tenant {
            master_id: 1 << 40,
            segment_id: 3,
            epoch: 2,
            length: 8 << 20,
            checksum: 0xdead_beef,
            stored: 1_000_000,
            primary: true,
            units,
            next,
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_flipped_bit_is_found() {
        let next = Piece {
            frame: 77,
            units: 0b1100,
        };
        let tenants = vec![tenant(0b1001, Some(next)), tenant(0b0110, None)];
        let sequence = 9;
        let directory = Directory { sequence, tenants };
        let mut block = vec![0xffu8; BLOCK_BYTES];
        encode_directory(&directory, &mut block);
        assert_eq!(decode_directory(&block), Some(directory));
        for bit in (0..BLOCK_BYTES * 8).step_by(37) {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_directory(&block), None, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn tenants_that_cannot_be_are_refused() {
        let huge = Tenant {
            stored: 1 << 20 | 1,
            ..tenant(1, None)
        };
        for tenants in [
            vec![tenant(0, None)],
            vec![tenant(3, None), tenant(2, None)],
            vec![huge],
            vec![],
        ] {
            let mut block = vec![0u8; BLOCK_BYTES];
            let sequence = 1;
            encode_directory(&Directory { sequence, tenants }, &mut block);
            assert_eq!(decode_directory(&block), None);
        }
    }

    #[test]
    fn runs_join_neighbours_and_cross_frames() {
        let extent = Extent {
            home: Piece {
                frame: 1,
                units: 0b1000_0110,
            },
            next: Some(Piece {
                frame: 2,
                units: 0b1,
            }),
        };
        let at = |frame: u32, unit: usize| {
            frame_offset(frame) + (DATA_OFFSET + unit * UNIT_BYTES) as u64
        };
        let unit = UNIT_BYTES;
        assert_eq!(
            extent.runs(3 * unit + 4096),
            [
                (at(1, 1), 0..2 * unit),
                (at(1, 7), 2 * unit..3 * unit),
                (at(2, 0), 3 * unit..3 * unit + 4096)
            ]
        );
        assert_eq!(extent.runs(unit), [(at(1, 1), 0..unit)]);
    }
}

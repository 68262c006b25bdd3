//! A slot of a frame: certificate block and tail block, or the directory of a shared frame.
//!
//! Properties: a slot is valid only if both checksums are right, and then its fields survive
//! another encoding; a byte changed in a valid slot is found; lengths fit into a segment; images of
//! a shared frame have units of their own; of memory there is need for a directory's rows only.

use rekindle_core::backup::directory::{
    Directory, Piece, Tenant, decode_directory, encode_directory,
};
use rekindle_core::backup::frame::{
    BLOCK_BYTES, CertificateBlock, Codec, FrameState, SLOT_BYTES, SlotContent, decode_slot,
    encode_slot,
};
use rekindle_core::entry::SEGMENT_BYTES;

use crate::allocation;
use crate::reference::{Fields, crc32c, u32_at};

const REPAIR: u8 = 1;
const DAMAGE: u8 = 2;
const FIELD_BYTES: usize = 64;
/// The rows of a shared frame's directory, which begin behind its fields.
const DIRECTORY_BYTES: usize = 8 * 64;
const TAIL_CRC_AT: usize = BLOCK_BYTES - 8;
const CRC_AT: usize = BLOCK_BYTES - 4;

/// Mode byte, where and how to damage it, the fields, the checksums, then the tail.
pub fn check(input: &[u8]) {
    let mut fields = Fields::new(input);
    let (mode, at, change) = (fields.u8(), fields.u16(), fields.u8());
    let mut slot = vec![0; SLOT_BYTES];
    let put = |slot: &mut [u8], at: usize, bytes: &[u8]| {
        slot[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(&mut slot, 0, fields.bytes(FIELD_BYTES));
    put(&mut slot, TAIL_CRC_AT, fields.bytes(8));
    if slot.starts_with(b"RKSF") {
        put(&mut slot, FIELD_BYTES, fields.bytes(DIRECTORY_BYTES));
    }
    put(&mut slot, BLOCK_BYTES, fields.bytes(BLOCK_BYTES));
    if mode & REPAIR != 0 {
        let tail_checksum = crc32c(&slot[BLOCK_BYTES..]);
        put(&mut slot, TAIL_CRC_AT, &tail_checksum.to_le_bytes());
        let checksum = crc32c(&slot[..CRC_AT]);
        put(&mut slot, CRC_AT, &checksum.to_le_bytes());
    }
    let content = allocation::at_most(BLOCK_BYTES, || decode_slot(&slot));
    match content {
        SlotContent::Empty => assert!(slot.iter().all(|byte| *byte == 0), "zeros only"),
        SlotContent::Corrupt => {}
        SlotContent::Shared(directory) => check_shared(&slot, &directory),
        SlotContent::Valid(certificate) => {
            check_valid(&slot, &certificate);
            if mode & DAMAGE != 0 && change != 0 {
                slot[usize::from(at) % SLOT_BYTES] ^= change;
                assert!(
                    decode_slot(&slot) == SlotContent::Corrupt,
                    "damage is found"
                );
            }
        }
    }
}

fn check_shared(slot: &[u8], directory: &Directory) {
    assert!(
        crc32c(&slot[..CRC_AT]) == u32_at(slot, CRC_AT),
        "the block's checksum"
    );
    let mut taken = 0;
    for tenant in &directory.tenants {
        assert!(
            tenant.units != 0 && taken & tenant.units == 0,
            "units apart"
        );
        taken |= tenant.units;
        let room = tenant.extent(0).capacity();
        assert!(tenant.stored as usize <= room, "an image fits its units");
        assert!(tenant.length as usize <= SEGMENT_BYTES, "at most a segment");
    }
    let mut block = vec![0; BLOCK_BYTES];
    encode_directory(directory, &mut block);
    let again = decode_directory(&block);
    assert!(again.as_ref() == Some(directory), "the rows survive");
}

fn check_valid(slot: &[u8], certificate: &CertificateBlock) {
    assert!(
        crc32c(&slot[..CRC_AT]) == u32_at(slot, CRC_AT),
        "the block's checksum"
    );
    assert!(
        crc32c(&slot[BLOCK_BYTES..]) == u32_at(slot, TAIL_CRC_AT),
        "the tail's checksum"
    );
    assert!(
        certificate.length as usize <= SEGMENT_BYTES,
        "at most a segment"
    );
    assert!(
        certificate.stored as usize <= SEGMENT_BYTES,
        "at most a data area"
    );
    let mut again = vec![0xff; SLOT_BYTES];
    encode_slot(
        certificate,
        &slot[BLOCK_BYTES..2 * BLOCK_BYTES - 1],
        &mut again,
    );
    assert!(
        decode_slot(&again) == SlotContent::Valid(*certificate),
        "the fields survive"
    );
}

fn seed(mode: u8, certificate: &CertificateBlock, tail: &[u8]) -> Vec<u8> {
    let mut slot = vec![0; SLOT_BYTES];
    encode_slot(certificate, tail, &mut slot);
    let mut out = vec![mode, 17, 0, 0x20];
    out.extend_from_slice(&slot[..FIELD_BYTES]);
    out.extend_from_slice(&slot[TAIL_CRC_AT..BLOCK_BYTES]);
    out.extend_from_slice(tail);
    out
}

fn directory_seed(directory: &Directory) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    encode_directory(directory, &mut block);
    let mut out = vec![REPAIR, 17, 0, 0x20];
    out.extend_from_slice(&block[..FIELD_BYTES]);
    out.extend([0; 8]);
    out.extend_from_slice(&block[FIELD_BYTES..FIELD_BYTES + DIRECTORY_BYTES]);
    out
}

/// Slots of every state, and a shared one.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let open = CertificateBlock {
        sequence: 3,
        master_id: (2 << 32) + 3,
        segment_id: 5,
        epoch: 2,
        length: 4100,
        checksum: 0x1234_5678,
        state: FrameState::Open,
        primary: true,
        codec: Codec::Raw,
        stored: 0,
    };
    let ahead = CertificateBlock {
        state: FrameState::Ahead,
        ..open
    };
    let closed = CertificateBlock {
        state: FrameState::Closed,
        codec: Codec::Lz4,
        stored: 1000,
        primary: false,
        ..open
    };
    let tenant = Tenant {
        master_id: 1 << 40,
        segment_id: 5,
        epoch: 2,
        length: 4100,
        checksum: 0x1234_5678,
        stored: 1000,
        primary: true,
        units: 0b101,
        next: None,
    };
    let other = Tenant {
        units: 0b10,
        next: Some(Piece { frame: 7, units: 1 }),
        ..tenant
    };
    let directory = Directory {
        sequence: 9,
        tenants: vec![tenant, other],
    };
    let free = CertificateBlock {
        state: FrameState::Free,
        length: 0,
        stored: 0,
        ..closed
    };
    vec![
        ("open", seed(0, &open, b"tail")),
        ("open-damaged", seed(REPAIR | DAMAGE, &open, b"tail")),
        ("ahead", seed(REPAIR, &ahead, b"tail")),
        ("closed", seed(REPAIR, &closed, b"")),
        ("shared", directory_seed(&directory)),
        ("free", seed(REPAIR, &free, b"")),
    ]
}

//! Log bytes for the targets: built with the core's encoder, repaired after a mutation, so that
//! what lies behind the checksums is reached as well.

use rekindle_core::entry::{
    EntryHeader, EntryIterator, EntryType, EntryView, FLAG_MORE, HEADER_BYTES, entry_bytes,
    write_entry,
};

use crate::reference::{crc32c, u32_at};

/// Appends an entry to `out`.
pub fn push_entry(
    out: &mut Vec<u8>,
    header: &EntryHeader,
    prior: &[u64],
    key: &[u8],
    value: &[u8],
) {
    let start = out.len();
    let bytes = entry_bytes(key.len(), value.len(), prior.len());
    out.resize(start + bytes, 0xff);
    write_entry(&mut out[start..], header, prior, key, value);
}

/// The header of an entry without flags.
pub fn header(entry_type: EntryType, table_id: u64, version: u64) -> EntryHeader {
    EntryHeader {
        entry_type,
        flags: 0,
        timestamp: 1_700_000_000,
        table_id,
        version,
    }
}

/// The entry as the core would write it, without padding.
pub fn rewritten(entry: &EntryView<'_>) -> Vec<u8> {
    let header = EntryHeader {
        entry_type: entry.entry_type(),
        flags: u8::from(entry.more()) * FLAG_MORE,
        timestamp: entry.timestamp(),
        table_id: entry.table_id(),
        version: entry.version(),
    };
    let mut out = Vec::new();
    let prior: Vec<u64> = entry.prior().collect();
    push_entry(&mut out, &header, &prior, entry.key(), entry.value());
    assert!(out.len() == entry.total_bytes(), "the same padded length");
    out.truncate(entry.bytes().len());
    out
}

/// The checksum that an entry must have: of padding, only the header is covered.
pub fn right_checksum(entry: &EntryView<'_>) -> u32 {
    let end = match entry.entry_type() {
        EntryType::Padding => HEADER_BYTES,
        _ => entry.bytes().len(),
    };
    crc32c(&entry.bytes()[4..end])
}

/// Whether it has it.
pub fn is_right(entry: &EntryView<'_>) -> bool {
    right_checksum(entry) == u32_at(entry.bytes(), 0)
}

/// The checksum of a recovery segment: that of its entries' checksums, in order.
pub fn piece_checksum(piece: &[u8]) -> u32 {
    let entries = EntryIterator::new(piece).map_while(Result::ok);
    let words: Vec<u8> = entries
        .flat_map(|(_, entry)| entry.bytes()[..4].to_vec())
        .collect();
    crc32c(&words)
}

/// Makes the checksum of every entry right, as far as the entries can be told apart.
pub fn repair(bytes: &mut [u8]) {
    let found: Vec<(usize, u32)> = EntryIterator::new(bytes)
        .map_while(Result::ok)
        .map(|(offset, entry)| (offset, right_checksum(&entry)))
        .collect();
    for (offset, checksum) in found {
        bytes[offset..offset + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// A head: its opening, then objects, an atomic append of two entries and a tombstone.
pub fn head() -> Vec<u8> {
    let mut out = Vec::new();
    let id = |number: u64| number.to_le_bytes();
    let mut segment_header = [0; 16];
    segment_header[..4].copy_from_slice(&(8u32 << 20).to_le_bytes());
    let digest = [id(3), id(5), id(7)].concat();
    let stats = [id(1), id(u64::MAX << 32), id(1234), id(5)].concat();
    for (entry_type, table_id, version, value) in [
        (EntryType::SegmentHeader, 5, 7, &segment_header[..]),
        (EntryType::LogDigest, 0, 0, &digest),
        (EntryType::TableStats, 0, 0, &stats),
        (EntryType::SafeVersion, 0, 40, b""),
    ] {
        push_entry(
            &mut out,
            &header(entry_type, table_id, version),
            &[],
            b"",
            value,
        );
    }
    let note = header(EntryType::Note, 0, 0);
    push_entry(&mut out, &note, &[], b"cluster", b"{}");
    out.extend(objects());
    out
}

/// What a recovery segment holds: objects and tombstones of tables 1 and 2.
pub fn objects() -> Vec<u8> {
    let mut out = Vec::new();
    let mut more = header(EntryType::Tombstone, 1, 14);
    more.flags = FLAG_MORE;
    let many: Vec<u64> = (1..=15).collect();
    let (object, tombstone) = (EntryType::Object, EntryType::Tombstone);
    push_entry(
        &mut out,
        &header(object, 1, 11),
        &[],
        b"user:1",
        b"Ada Lovelace",
    );
    push_entry(&mut out, &header(object, 1, 12), &[], b"12345678", b"");
    push_entry(&mut out, &header(object, 2, 13), &[], b"k", &[0x5a; 300]);
    push_entry(
        &mut out,
        &header(object, 1, 14),
        &[7],
        b"user:1",
        b"Augusta Ada King",
    );
    push_entry(&mut out, &more, &many, b"user:1", b"");
    push_entry(
        &mut out,
        &header(object, 1, 15),
        &[16],
        b"user:1",
        b"Countess",
    );
    push_entry(
        &mut out,
        &header(tombstone, 1, 12),
        &[3, 7],
        b"12345678",
        b"",
    );
    push_entry(
        &mut out,
        &header(EntryType::Padding, 9, 9),
        &[],
        b"old",
        b"nothing",
    );
    push_entry(
        &mut out,
        &header(EntryType::SafeVersion, 0, 40),
        &[],
        b"",
        b"",
    );
    out
}

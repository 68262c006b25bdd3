//! Log bytes for the targets: built with the core's encoder, repaired after a mutation, so that
//! what lies behind the checksums is reached as well.

use rekindle_core::entry::{
    EntryHeader, EntryIterator, EntryType, EntryView, entry_bytes, write_entry,
};

use crate::reference::crc32c;

/// Appends an entry to `out`.
pub fn push_entry(out: &mut Vec<u8>, header: &EntryHeader, key: &[u8], value: &[u8]) {
    let start = out.len();
    out.resize(start + entry_bytes(key.len(), value.len()), 0xff);
    write_entry(&mut out[start..], header, key, value);
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
        flags: entry.bytes()[5],
        timestamp: entry.timestamp(),
        table_id: entry.table_id(),
        version: entry.version(),
    };
    let mut out = Vec::new();
    push_entry(&mut out, &header, entry.key(), entry.value());
    assert!(out.len() == entry.total_bytes(), "the same padded length");
    out.truncate(entry.bytes().len());
    out
}

/// Makes the checksum of every entry right, as far as the entries can be told apart.
pub fn repair(bytes: &mut [u8]) {
    let found: Vec<(usize, u32)> = EntryIterator::new(bytes)
        .map_while(Result::ok)
        .map(|(offset, entry)| (offset, crc32c(&entry.bytes()[4..])))
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
    push_entry(
        &mut out,
        &header(EntryType::SegmentHeader, 5, 7),
        b"",
        &segment_header,
    );
    let digest = [id(3), id(5), id(7)].concat();
    push_entry(&mut out, &header(EntryType::LogDigest, 0, 0), b"", &digest);
    let stats = [id(1), id(u64::MAX << 32), id(1234), id(5)].concat();
    push_entry(&mut out, &header(EntryType::TableStats, 0, 0), b"", &stats);
    push_entry(&mut out, &header(EntryType::SafeVersion, 0, 40), b"", b"");
    out.extend(objects());
    out
}

/// What a recovery segment holds: objects and tombstones of tables 1 and 2.
pub fn objects() -> Vec<u8> {
    let mut out = Vec::new();
    push_entry(
        &mut out,
        &header(EntryType::Object, 1, 11),
        b"user:1",
        b"Ada Lovelace",
    );
    push_entry(
        &mut out,
        &header(EntryType::Object, 1, 12),
        b"12345678",
        b"",
    );
    push_entry(
        &mut out,
        &header(EntryType::Object, 2, 13),
        b"k",
        &[0x5a; 300],
    );
    let mut first = header(EntryType::Object, 1, 14);
    first.flags = rekindle_core::entry::FLAG_MORE;
    push_entry(&mut out, &first, b"user:1", b"Augusta Ada King");
    push_entry(
        &mut out,
        &header(EntryType::Tombstone, 1, 11),
        b"user:1",
        &7u64.to_le_bytes(),
    );
    push_entry(
        &mut out,
        &header(EntryType::Tombstone, 1, 12),
        b"12345678",
        &7u64.to_le_bytes(),
    );
    push_entry(&mut out, &header(EntryType::SafeVersion, 0, 40), b"", b"");
    out
}

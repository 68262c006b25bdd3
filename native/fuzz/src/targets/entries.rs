//! Entries and segments: the walk that every reader of log bytes makes.
//!
//! Properties: entries lie one behind the other inside the bytes, at multiples of 8; the walk ends
//! after its first error; an entry is believed if and only if its CRC-32C is right, and then
//! writing its fields again gives the same bytes; nothing is allocated.

use rekindle_core::entry::{EntryIterator, EntryType, EntryView, HEADER_BYTES};

use crate::{allocation, log_bytes};

const REPAIR: u8 = 1;

/// Mode byte, then the bytes of a segment.
pub fn check(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if mode & REPAIR != 0 {
        log_bytes::repair(&mut bytes);
    }
    let walk = || {
        let count = EntryIterator::new(&bytes).count();
        let sound = |item: Result<(usize, EntryView<'_>), _>| {
            item.is_ok_and(|(_, entry)| entry.verify().is_ok())
        };
        (
            count,
            EntryIterator::new(&bytes)
                .filter_map(|item| sound(item).then_some(()))
                .count(),
        )
    };
    let (count, sound) = allocation::at_most(0, walk);
    assert!(
        count <= bytes.len() / HEADER_BYTES + 1,
        "every entry has a header"
    );
    let mut end = 0;
    let mut parsed = 0;
    for (index, item) in EntryIterator::new(&bytes).enumerate() {
        let Ok((offset, entry)) = item else {
            assert!(index + 1 == count, "the walk ends at its first error");
            break;
        };
        assert!(
            offset == end && offset.is_multiple_of(8),
            "one behind the other"
        );
        end = offset + entry.total_bytes();
        assert!(
            offset + entry.bytes().len() <= bytes.len(),
            "inside the bytes"
        );
        check_entry(&entry, &bytes[offset..]);
        parsed += 1;
    }
    if mode & REPAIR != 0 {
        assert!(sound == parsed, "a right checksum is believed");
    }
}

fn check_entry(entry: &EntryView<'_>, at: &[u8]) {
    assert!(
        entry.bytes() == &at[..entry.bytes().len()],
        "a view, no copy"
    );
    let right = log_bytes::is_right(entry);
    assert!(
        entry.verify().is_ok() == right,
        "believed if the checksum is right"
    );
    if right && entry.entry_type() != EntryType::Padding {
        assert!(
            log_bytes::rewritten(entry) == entry.bytes(),
            "one encoding an entry"
        );
    }
}

/// Valid segments.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with_mode = |mode: u8, bytes: Vec<u8>| [&[mode][..], &bytes].concat();
    vec![
        ("head", with_mode(0, log_bytes::head())),
        ("head-repaired", with_mode(REPAIR, log_bytes::head())),
        ("objects", with_mode(REPAIR, log_bytes::objects())),
    ]
}

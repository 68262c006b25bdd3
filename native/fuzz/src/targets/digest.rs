//! The digest in the opening of a dead master's head.
//!
//! Properties: it comes only from entries whose checksums are right, among the first four; its ids
//! and rows are the bytes of those entries; memory is bounded by the input.

use rekindle_core::backup::parse_opening;
use rekindle_core::entry::{EntryIterator, EntryType};

use crate::reference::u64_at;
use crate::{allocation, log_bytes};

const REPAIR: u8 = 1;
const OPENING_ENTRIES: usize = 4;

/// Mode byte, then the certified bytes of a replica.
pub fn check(input: &[u8]) {
    let Some((mode, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if mode & REPAIR != 0 {
        log_bytes::repair(&mut bytes);
    }
    let parsed = allocation::at_most(2 * bytes.len(), || parse_opening(&bytes, 7, 3));
    let Ok(Some(digest)) = parsed else {
        return;
    };
    assert!((digest.segment_id, digest.epoch) == (7, 3), "as asked");
    let opening = EntryIterator::new(&bytes).take(OPENING_ENTRIES);
    let mut ids = None;
    let mut rows: Vec<u8> = Vec::new();
    for (_, entry) in opening.map_while(Result::ok) {
        if matches!(entry.entry_type(), EntryType::Object | EntryType::Tombstone) {
            break;
        }
        let right = log_bytes::is_right(&entry);
        assert!(right, "an opening counts only as a whole");
        match entry.entry_type() {
            EntryType::LogDigest => {
                let each = entry.value().chunks(8).map(|id| u64_at(id, 0));
                ids = Some(each.collect::<Vec<_>>());
            }
            EntryType::TableStats => rows = entry.value().to_vec(),
            _ => {}
        }
    }
    assert!(
        ids.as_ref() == Some(&digest.segment_ids),
        "the ids of the newest digest entry"
    );
    let mut written = Vec::new();
    for row in &digest.tablet_stats {
        written.extend(row.table_id.to_le_bytes());
        written.extend(row.start_slot.to_le_bytes());
        written.extend(row.end_slot.to_le_bytes());
        written.extend(row.bytes.to_le_bytes());
        written.extend(row.records.to_le_bytes());
    }
    assert!(written == rows, "the rows of the newest stats entry");
}

/// A head, and a side segment without a digest.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let with_mode = |bytes: Vec<u8>| [&[REPAIR][..], &bytes].concat();
    vec![
        ("head", with_mode(log_bytes::head())),
        ("objects", with_mode(log_bytes::objects())),
    ]
}

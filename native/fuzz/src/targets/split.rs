//! Splitting a replica by partition.
//!
//! Properties: a damaged entry refuses the whole replica; otherwise each piece holds the greatest
//! safe version and exactly the entries of its tablets, in order and unchanged, under a right
//! header; overlapping tablets are refused; memory is bounded by the input and the number of
//! partitions.

use rekindle_core::backup::split::{PIECE_HEADER_BYTES, Partition, PartitionMap, Tablet, split};
use rekindle_core::entry::{EntryIterator, EntryType, EntryView};
use rekindle_core::key_hash::{key_hash, slot};

use crate::reference::{Fields, u32_at};
use crate::{allocation, log_bytes};

const REPAIR: u8 = 1;
const PARTITIONS: usize = 3;
const SEGMENT_ID: u64 = 9;

/// Mode byte, number of tablets, the tablets of 11 bytes each, then a segment.
pub fn check(input: &[u8]) {
    let mut fields = Fields::new(input);
    let mode = fields.u8();
    let mut partitions: Vec<Partition> = (0..PARTITIONS as u64)
        .map(|number| Partition {
            partition_id: 100 + number,
            tablets: Vec::new(),
        })
        .collect();
    for _ in 0..fields.u8() % 8 {
        let partition = usize::from(fields.u8()) % PARTITIONS;
        partitions[partition].tablets.push(Tablet {
            table_id: u64::from(fields.u8()),
            start_slot: fields.u32(),
            end_slot: fields.u32(),
            ctime_segment_id: u64::from(fields.u8()),
        });
    }
    let mut bytes = fields.rest().to_vec();
    if mode & REPAIR != 0 {
        log_bytes::repair(&mut bytes);
    }
    let map = PartitionMap::new(&partitions);
    assert!(
        map.is_ok() == disjoint(&partitions),
        "tablets are disjoint ranges"
    );
    let Ok(map) = map else {
        return;
    };
    let room = 3 * bytes.len() + PARTITIONS * (bytes.len() + 640);
    let pieces = allocation::at_most(room, || split(&bytes, SEGMENT_ID, &map));
    let sound = EntryIterator::new(&bytes)
        .all(|item| item.is_ok_and(|(_, entry)| log_bytes::is_right(&entry)));
    assert!(sound || pieces.is_err(), "one damaged entry refuses it");
    let whole = |item: Result<(usize, EntryView<'_>), _>| {
        item.is_ok_and(|(at, entry)| at + entry.total_bytes() <= bytes.len())
    };
    let uncut = EntryIterator::new(&bytes).all(whole);
    assert!(pieces.is_ok() || !sound || !uncut, "nothing else does");
    let Ok(pieces) = pieces else {
        return;
    };
    assert!(pieces.len() == PARTITIONS, "a piece each");
    for (partition, piece) in partitions.iter().zip(&pieces) {
        let (head, entries) = piece.split_at(PIECE_HEADER_BYTES);
        assert!(
            u32_at(head, 4) == log_bytes::piece_checksum(entries),
            "the header's checksum"
        );
        assert!(
            u32_at(head, 0) as usize == entries.len(),
            "the header's length"
        );
        assert!(
            entries == expected(&bytes, partition),
            "the entries of the partition, in order"
        );
    }
}

fn disjoint(partitions: &[Partition]) -> bool {
    let tablets: Vec<&Tablet> = partitions.iter().flat_map(|one| &one.tablets).collect();
    let whole = tablets.iter().all(|one| one.start_slot <= one.end_slot);
    let apart = |one: &Tablet, other: &Tablet| {
        one.table_id != other.table_id
            || one.end_slot < other.start_slot
            || other.end_slot < one.start_slot
    };
    let pairs = || (0..tablets.len()).flat_map(|at| (0..at).map(move |before| (at, before)));
    whole && pairs().all(|(at, before)| apart(tablets[at], tablets[before]))
}

fn expected(bytes: &[u8], partition: &Partition) -> Vec<u8> {
    let mut owned = Vec::new();
    let mut safe_version: Option<(u64, &[u8])> = None;
    for (offset, entry) in EntryIterator::new(bytes).map_while(Result::ok) {
        let end = bytes.len().min(offset + entry.total_bytes());
        let entry_bytes = &bytes[offset..end];
        let place = slot(key_hash(entry.table_id(), entry.key()));
        let owns = |tablet: &Tablet| {
            tablet.table_id == entry.table_id()
                && (tablet.start_slot..=tablet.end_slot).contains(&place)
                && tablet.ctime_segment_id <= SEGMENT_ID
        };
        match entry.entry_type() {
            EntryType::SafeVersion => {
                safe_version = safe_version.max(Some((entry.version(), entry_bytes)));
            }
            EntryType::Object | EntryType::Tombstone if partition.tablets.iter().any(owns) => {
                owned.extend_from_slice(entry_bytes);
            }
            _ => {}
        }
    }
    let greatest = safe_version.map_or(&[][..], |(_, entry)| entry);
    [greatest, &owned].concat()
}

fn seed(tablets: &[(u8, u8, u32, u32, u8)], segment: &[u8]) -> Vec<u8> {
    let mut out = vec![REPAIR, tablets.len() as u8];
    for (partition, table, start, end, ctime) in tablets {
        out.extend([*partition, *table]);
        out.extend(start.to_le_bytes());
        out.extend(end.to_le_bytes());
        out.push(*ctime);
    }
    out.extend_from_slice(segment);
    out
}

/// Tables that are whole, halved and too young.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let middle = 1 << 31;
    let halves = [
        (0, 1, 0, middle - 1, 0),
        (1, 1, middle, u32::MAX, 0),
        (1, 2, 0, u32::MAX, 0),
    ];
    vec![
        ("halves", seed(&halves, &log_bytes::head())),
        (
            "too-young",
            seed(&[(2, 1, 0, u32::MAX, 10)], &log_bytes::head()),
        ),
        (
            "objects",
            seed(&[(0, 1, 0, u32::MAX, 9)], &log_bytes::objects()),
        ),
    ]
}

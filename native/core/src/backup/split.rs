//! Splits one segment by partition: the recovery segments of `docs/formats.md` §2.
//!
//! Two passes, so that every piece is allocated at its exact size: the first checks each entry and
//! decides where it goes, the second copies. `MORE` flags are kept: all entries of an atomic append
//! have one key hash and lie in one segment, so they pass the filter together or not at all.
//!
//! Rule: of the safe versions only the greatest goes into the pieces, once into each. It becomes an
//! entry of every log that adopts a piece; all of them would multiply with each crash to come.

use crate::entry::{EntryIterator, EntryType, PieceChecksum, SEGMENT_BYTES};
use crate::key_hash::{key_hash, slot};
use crate::little_endian::u32_at;
use crate::status::Status;

/// Bytes before a piece's entries: {u32 length, u32 checksum}.
pub const PIECE_HEADER_BYTES: usize = 8;

/// A range of slots that is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tablet {
    /// The table.
    pub table_id: u64,
    /// First slot.
    pub start_slot: u32,
    /// Last slot.
    pub end_slot: u32,
    /// Entries in older segments do not count.
    pub ctime_segment_id: u64,
}

/// The tablets that one recovery master takes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number in the plan.
    pub partition_id: u64,
    /// Its tablets.
    pub tablets: Vec<Tablet>,
}

/// Finds the partition of an entry: tablets sorted by (table, first slot), disjoint.
#[derive(Debug)]
pub struct PartitionMap {
    tablets: Vec<(Tablet, u32)>,
    partition_ids: Vec<u64>,
}

const NOWHERE: u32 = u32::MAX;

impl PartitionMap {
    /// Sorts the tablets.
    ///
    /// # Errors
    /// `InvalidArgument` if tablets overlap or are empty, or a partition id occurs twice.
    pub fn new(partitions: &[Partition]) -> Result<Self, Status> {
        let partition_ids: Vec<u64> = partitions.iter().map(|one| one.partition_id).collect();
        let mut unique = partition_ids.clone();
        unique.sort_unstable();
        unique.dedup();
        if unique.len() != partition_ids.len() {
            return Err(Status::InvalidArgument);
        }
        let mut tablets: Vec<(Tablet, u32)> = Vec::new();
        for (index, partition) in partitions.iter().enumerate() {
            tablets.extend(
                partition
                    .tablets
                    .iter()
                    .map(|&tablet| (tablet, index as u32)),
            );
        }
        tablets.sort_unstable_by_key(|(tablet, _)| (tablet.table_id, tablet.start_slot));
        let overlap = |pair: &[(Tablet, u32)]| {
            pair[0].0.table_id == pair[1].0.table_id && pair[0].0.end_slot >= pair[1].0.start_slot
        };
        let empty = |(tablet, _): &(Tablet, u32)| tablet.start_slot > tablet.end_slot;
        if tablets.windows(2).any(overlap) || tablets.iter().any(empty) {
            return Err(Status::InvalidArgument);
        }
        Ok(Self {
            tablets,
            partition_ids,
        })
    }

    /// Number of partitions.
    pub fn count(&self) -> usize {
        self.partition_ids.len()
    }

    /// Index of a partition id.
    pub fn index_of(&self, partition_id: u64) -> Option<usize> {
        self.partition_ids.iter().position(|&id| id == partition_id)
    }

    fn find(&self, segment_id: u64, table_id: u64, slot: u32) -> u32 {
        let after = self.tablets.partition_point(|(tablet, _)| {
            (tablet.table_id, tablet.start_slot) <= (table_id, slot)
        });
        let Some(&(tablet, partition)) = after.checked_sub(1).and_then(|at| self.tablets.get(at))
        else {
            return NOWHERE;
        };
        let inside = tablet.table_id == table_id && slot <= tablet.end_slot;
        if inside && segment_id >= tablet.ctime_segment_id {
            partition
        } else {
            NOWHERE
        }
    }
}

struct Route {
    start: u32,
    end: u32,
    partition: u32,
}

/// The pieces of a segment, one a partition, each with its header.
///
/// # Errors
/// `ChecksumMismatch` if any entry is damaged: then no piece of this replica may be used.
pub fn split(
    bytes: &[u8],
    segment_id: u64,
    partitions: &PartitionMap,
) -> Result<Vec<Vec<u8>>, Status> {
    assert!(
        bytes.len() <= SEGMENT_BYTES,
        "a replica is at most one segment"
    );
    let mut lengths = vec![0usize; partitions.count()];
    let mut routes: Vec<Route> = Vec::new();
    let mut safe_version: Option<(u64, &[u8])> = None;
    for item in EntryIterator::new(bytes) {
        let (offset, entry) = item?;
        entry.verify()?;
        let end = offset + entry.total_bytes();
        let whole = || bytes.get(offset..end).ok_or(Status::ChecksumMismatch);
        let partition = match entry.entry_type() {
            EntryType::Object | EntryType::Tombstone => {
                let hash = key_hash(entry.table_id(), entry.key());
                partitions.find(segment_id, entry.table_id(), slot(hash))
            }
            EntryType::SafeVersion => {
                safe_version = safe_version.max(Some((entry.version(), whole()?)));
                NOWHERE
            }
            EntryType::SegmentHeader
            | EntryType::LogDigest
            | EntryType::TableStats
            | EntryType::Note
            | EntryType::Padding => NOWHERE,
        };
        if partition == NOWHERE {
            continue;
        }
        lengths[partition as usize] += whole()?.len();
        routes.push(Route {
            start: offset as u32,
            end: end as u32,
            partition,
        });
    }
    let everywhere = safe_version.map_or(&[][..], |(_, entry)| entry);
    let mut pieces: Vec<Piece> = lengths
        .iter()
        .map(|length| Piece::new(everywhere.len() + length))
        .collect();
    if !everywhere.is_empty() {
        pieces.iter_mut().for_each(|piece| piece.push(everywhere));
    }
    for route in &routes {
        let entry = &bytes[route.start as usize..route.end as usize];
        pieces[route.partition as usize].push(entry);
    }
    Ok(pieces.into_iter().map(Piece::finish).collect())
}

struct Piece {
    bytes: Vec<u8>,
    length: usize,
    checksum: PieceChecksum,
}

impl Piece {
    fn new(length: usize) -> Self {
        let mut bytes = Vec::with_capacity(PIECE_HEADER_BYTES + length);
        bytes.resize(PIECE_HEADER_BYTES, 0);
        Self {
            bytes,
            length,
            checksum: PieceChecksum::default(),
        }
    }

    /// An entry, which begins with its checksum.
    fn push(&mut self, entry: &[u8]) {
        self.checksum.add(u32_at(entry, 0));
        self.bytes.extend_from_slice(entry);
    }

    fn finish(mut self) -> Vec<u8> {
        let Self { length, .. } = self;
        assert!(
            self.bytes.len() == PIECE_HEADER_BYTES + length,
            "the passes agree"
        );
        self.bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
        let checksum = self.checksum.finish().to_le_bytes();
        self.bytes[4..PIECE_HEADER_BYTES].copy_from_slice(&checksum);
        self.bytes
    }
}

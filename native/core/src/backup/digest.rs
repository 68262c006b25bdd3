//! The digests of a dead master's heads: LOG_DIGEST and TABLE_STATS in the opening of each replica
//! that is still open.

use crate::backup::storage::Shared;
use crate::entry::{EntryIterator, EntryType};
use crate::status::Status;

use crate::little_endian::{u32_at, u64_at};

/// Entries of an opening that say what is wanted: SEGMENT_HEADER, LOG_DIGEST, TABLE_STATS,
/// SAFE_VERSION. NOTEs follow.
const OPENING_ENTRIES: usize = 4;
const TABLET_STATS_BYTES: usize = 32;

/// Size of a tablet, as its master last wrote it down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TabletStats {
    /// The table.
    pub table_id: u64,
    /// First slot.
    pub start_slot: u32,
    /// Last slot.
    pub end_slot: u32,
    /// Live bytes.
    pub bytes: u64,
    /// Live records.
    pub records: u64,
}

/// What one open replica says about its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The head.
    pub segment_id: u64,
    /// The replica's epoch.
    pub epoch: u64,
    /// All segments of the log, ascending.
    pub segment_ids: Vec<u64>,
    /// Its tablets.
    pub tablet_stats: Vec<TabletStats>,
}

/// The digest in the certified bytes of a replica; None if its opening has none.
///
/// # Errors
/// `ChecksumMismatch` if an entry of the opening is damaged or no list of its rows.
pub fn parse_opening(bytes: &[u8], segment_id: u64, epoch: u64) -> Result<Option<Digest>, Status> {
    let mut segment_ids = None;
    let mut tablet_stats = Vec::new();
    for item in EntryIterator::new(bytes).take(OPENING_ENTRIES) {
        let (_, entry) = item?;
        entry.verify()?;
        let value = entry.value();
        match entry.entry_type() {
            EntryType::LogDigest if value.len() % 8 == 0 => {
                segment_ids = Some(value.chunks_exact(8).map(|id| u64_at(id, 0)).collect());
            }
            EntryType::TableStats if value.len() % TABLET_STATS_BYTES == 0 => {
                tablet_stats = value.chunks_exact(TABLET_STATS_BYTES).map(tablet).collect();
            }
            EntryType::LogDigest | EntryType::TableStats => return Err(Status::ChecksumMismatch),
            EntryType::SegmentHeader
            | EntryType::SafeVersion
            | EntryType::Padding
            | EntryType::Note => {}
            EntryType::Object | EntryType::Tombstone => break,
        }
    }
    Ok(segment_ids.map(|segment_ids| Digest {
        segment_id,
        epoch,
        segment_ids,
        tablet_stats,
    }))
}

fn tablet(row: &[u8]) -> TabletStats {
    TabletStats {
        table_id: u64_at(row, 0),
        start_slot: u32_at(row, 8),
        end_slot: u32_at(row, 12),
        bytes: u64_at(row, 16),
        records: u64_at(row, 24),
    }
}

impl Shared {
    /// Reads the openings; a replica that cannot be read or parsed has no digest and is counted
    /// in `readErrors`.
    pub(super) fn digests(&self, master_id: u64) -> Vec<Digest> {
        let open: Vec<(u64, u64)> = {
            let state = self.state.lock();
            let replicas = state.replicas.range((master_id, 0)..=(master_id, u64::MAX));
            let visible = replicas.filter_map(|(key, one)| Some((key.1, one.visible()?)));
            visible
                .filter(|(_, replica)| !replica.closed)
                .filter_map(|(segment_id, replica)| Some((segment_id, replica.certified?.epoch)))
                .collect()
        };
        let mut digests = Vec::new();
        for (segment_id, epoch) in open {
            let read = self.read_replica((master_id, segment_id));
            let parsed = read.map(|replica| parse_opening(replica.bytes(), segment_id, epoch));
            match parsed {
                Ok(Ok(digest)) => digests.extend(digest),
                // read_replica has counted it; a replica freed meanwhile is no error.
                Err(_) => {}
                Ok(Err(_)) => self.state.lock().counters.read_errors += 1,
            }
        }
        digests
    }
}

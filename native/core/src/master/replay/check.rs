//! Pass one of replay: looks at every entry of a piece and notes what pass two has to do.
//!
//! Rule: nothing that others see changes, so that a piece with any fault leaves no trace. Entries
//! are looked at as soon as they are whole in the room, while their bytes are in the cache.

use std::sync::Arc;

use super::ReplayWorker;
use crate::entry::{
    EntryType, EntryView, HEADER_BYTES, PieceChecksum, VALUE_BYTES_MAX, VERSION_MAX, detach,
};
use crate::key_hash::{key_hashes, slot};
use crate::little_endian::u64_at;
use crate::master::tablets::Tablet;
use crate::status::Status;

/// Entries that are verified before they are hashed; they stay in the first-level cache.
const BATCH: usize = 16;
const TOMBSTONE: u32 = 1 << 31;

/// An entry that pass two puts into the table.
#[derive(Clone, Copy)]
pub struct Parsed {
    /// Of its key.
    pub hash: u64,
    offset: u32,
    tablet_and_type: u32,
}

impl Parsed {
    /// Its place in the room.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset as usize
    }
    /// Index of its tablet.
    #[inline]
    pub fn tablet(&self) -> usize {
        (self.tablet_and_type & !TOMBSTONE) as usize
    }
    /// Else it is an object.
    #[inline]
    pub fn is_tombstone(&self) -> bool {
        self.tablet_and_type & TOMBSTONE != 0
    }
}

/// An entry that was verified and is to be hashed.
#[derive(Clone, Copy, Default)]
struct Candidate {
    table_id: u64,
    at: u32,
    key_start: u32,
    key_bytes: u32,
    total_bytes: u32,
    /// `TOMBSTONE` or 0.
    tombstone: u32,
}

/// See the file's head.
pub struct Check<'a> {
    tablets: &'a [Arc<Tablet>],
    parsed: &'a mut Vec<Parsed>,
    sums: &'a mut [(i64, i64)],
    /// Where the next entry begins.
    at: usize,
    /// The last entry belongs together with the next.
    more: bool,
    tablet: usize,
    safe_version: u64,
    checksum: PieceChecksum,
}

impl<'a> Check<'a> {
    /// Of a piece of these tablets, which are sorted.
    pub fn new(tablets: &'a [Arc<Tablet>], worker: &'a mut ReplayWorker) -> Self {
        worker.parsed.clear();
        worker.sums.clear();
        worker.sums.resize(tablets.len(), (0, 0));
        Self {
            tablets,
            parsed: &mut worker.parsed,
            sums: &mut worker.sums,
            at: 0,
            more: false,
            tablet: 0,
            safe_version: 0,
            checksum: PieceChecksum::default(),
        }
    }

    /// Looks at the entries that are whole in the first `end` bytes of the room.
    ///
    /// # Errors
    /// `ChecksumMismatch`, `InvalidArgument` (entries of other tablets or types).
    pub fn advance(&mut self, room: &mut [u8], end: usize) -> Result<(), Status> {
        let mut batch = [Candidate::default(); BATCH];
        loop {
            let count = self.verify(room, end, &mut batch)?;
            self.note(room, &batch[..count])?;
            if count < BATCH {
                return Ok(());
            }
        }
    }

    /// Verifies entries up to a batch of those that are to be indexed. Apart from `note`, since
    /// sums of neighbours overlap, but not across a hash.
    fn verify(
        &mut self,
        room: &mut [u8],
        end: usize,
        batch: &mut [Candidate; BATCH],
    ) -> Result<usize, Status> {
        let mut count = 0;
        while count < BATCH {
            let at = self.at;
            if at + HEADER_BYTES > end {
                break;
            }
            let behind = at + EntryView::length(&room[at..at + HEADER_BYTES]).next_multiple_of(8);
            if behind > end {
                break;
            }
            let entry = EntryView::parse(&room[at..behind])?;
            entry.verify()?;
            let used = entry.bytes().len();
            let padding_bytes = behind - at - used;
            if padding_bytes > 0 && u64_at(room, behind - 8) >> (64 - 8 * padding_bytes) != 0 {
                return Err(Status::ChecksumMismatch);
            }
            self.checksum.add(&entry);
            self.more = entry.more();
            self.at = behind;
            if let Some(candidate) = self.candidate(at, &entry)? {
                batch[count] = candidate;
                count += 1;
            }
            if entry.is_attached() {
                // Its segments are another log's, and the piece is applied whole or not.
                detach(&mut room[at..at + used]);
            }
        }
        Ok(count)
    }

    /// What is to be known of an entry if it is to be indexed.
    #[inline(always)]
    fn candidate(&mut self, at: usize, entry: &EntryView<'_>) -> Result<Option<Candidate>, Status> {
        // Else a version that follows would begin again at 0.
        if entry.version() > VERSION_MAX {
            return Err(Status::InvalidArgument);
        }
        let tombstone = match entry.entry_type() {
            EntryType::Object if entry.value().len() <= VALUE_BYTES_MAX => 0,
            EntryType::Tombstone if entry.value().is_empty() => TOMBSTONE,
            EntryType::SafeVersion => {
                self.safe_version = self.safe_version.max(entry.version());
                return Ok(None);
            }
            EntryType::Padding => return Ok(None),
            _ => return Err(Status::InvalidArgument),
        };
        self.safe_version = self.safe_version.max(entry.version() + 1);
        Ok(Some(Candidate {
            table_id: entry.table_id(),
            at: at as u32,
            key_start: (at + HEADER_BYTES + entry.prior_count() * 8) as u32,
            key_bytes: entry.key().len() as u32,
            total_bytes: entry.total_bytes() as u32,
            tombstone,
        }))
    }

    /// Notes a batch for pass two.
    #[inline]
    fn note(&mut self, room: &[u8], batch: &[Candidate]) -> Result<(), Status> {
        let mut keys = [(0, &room[..0]); BATCH];
        for (key, candidate) in keys.iter_mut().zip(batch) {
            let start = candidate.key_start as usize;
            let bytes = &room[start..start + candidate.key_bytes as usize];
            *key = (candidate.table_id, bytes);
        }
        let mut hashes = [0; BATCH];
        key_hashes(&keys[..batch.len()], &mut hashes[..batch.len()]);
        self.parsed.reserve(BATCH);
        for (candidate, hash) in batch.iter().zip(hashes) {
            let tablet = self.find_tablet(candidate.table_id, slot(hash))?;
            if candidate.tombstone == 0 {
                let sum = &mut self.sums[tablet];
                sum.0 += 1;
                sum.1 += i64::from(candidate.total_bytes);
            }
            self.parsed.push(Parsed {
                hash,
                offset: candidate.at,
                tablet_and_type: tablet as u32 | candidate.tombstone,
            });
        }
        Ok(())
    }

    /// Neighbours are often of one tablet.
    #[inline]
    fn find_tablet(&mut self, table_id: u64, slot: u32) -> Result<usize, Status> {
        let holds = |index: usize| {
            let tablet = self.tablets.get(index);
            tablet.is_some_and(|tablet| tablet.range.contains(table_id, slot))
        };
        if holds(self.tablet) {
            return Ok(self.tablet);
        }
        let behind = self.tablets.partition_point(|tablet| {
            (tablet.range.table_id, tablet.range.start_slot) <= (table_id, slot)
        });
        let index = behind.checked_sub(1).filter(|index| holds(*index));
        self.tablet = index.ok_or(Status::InvalidArgument)?;
        Ok(self.tablet)
    }

    /// The safe version that the piece asks for.
    ///
    /// # Errors
    /// `ChecksumMismatch` if it is not made of exactly the entries that were certified.
    pub fn finish(self, length: usize, checksum: u32) -> Result<u64, Status> {
        if self.at != length || self.more || self.checksum.finish() != checksum {
            return Err(Status::ChecksumMismatch);
        }
        Ok(self.safe_version)
    }
}

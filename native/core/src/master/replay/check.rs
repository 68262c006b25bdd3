//! Pass one of replay: looks at every entry of a piece and notes what pass two has to do.
//!
//! Rule: nothing that others see changes, so that a piece with any fault leaves no trace. Entries
//! are looked at as soon as they are whole in the room, while their bytes are in the cache.

use std::sync::Arc;

use super::ReplayWorker;
use crate::crc32c::crc32c_each;
use crate::entry::{EntryType, EntryView, PieceChecksum, VALUE_BYTES_MAX, VERSION_MAX, detach};
use crate::key_hash::{key_hashes, slot};
use crate::little_endian::u64_at;
use crate::master::tablets::Tablet;
use crate::status::Status;

/// Entries that are verified before they are hashed.
const BATCH: usize = 32;
/// Where a batch ends, so that it stays in the first-level cache.
const BATCH_BYTES: usize = 8 << 10;
const TOMBSTONE: u32 = 1 << 31;

/// An entry that pass two puts into the table.
#[derive(Clone, Copy, Default)]
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

/// What `walk` has come by.
struct Walked {
    count: usize,
    /// Bits that are set behind the entries, where none may be.
    padding: u64,
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
        loop {
            let start = self.at;
            let mut batch = [EntryView::default(); BATCH];
            let Walked { count, padding } = self.walk(&room[..end], &mut batch);
            let batch = &batch[..count];
            self.verify(batch, padding)?;
            let attached = self.note(start, batch)?;
            if attached {
                detach_all(&mut room[start..self.at]);
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// Finds the next entries that are whole, by lengths that may yet prove wrong. Where one is
    /// not, `finish` finds that the piece has not come to its end.
    #[inline]
    fn walk<'r>(&mut self, room: &'r [u8], batch: &mut [EntryView<'r>; BATCH]) -> Walked {
        let (mut at, mut count, mut padding) = (self.at, 0, 0);
        let stop = at + BATCH_BYTES;
        while at < stop
            && let Some(place) = batch.get_mut(count)
            && let Ok(entry) = EntryView::parse(&room[at..])
        {
            let total_bytes = entry.total_bytes();
            let behind = at + total_bytes;
            if behind > room.len() {
                break;
            }
            // Of what the last word holds, that behind the entry; nothing if it ends there.
            let used_bits = 63 - 8 * (total_bytes - entry.bytes().len());
            padding |= u64_at(room, behind - 8) >> used_bits >> 1;
            *place = entry;
            count += 1;
            at = behind;
        }
        self.at = at;
        Walked { count, padding }
    }

    /// Compares checksums. Apart from `note`, since sums of neighbours overlap, but not across a
    /// hash.
    #[inline]
    fn verify(&mut self, batch: &[EntryView<'_>], padding: u64) -> Result<(), Status> {
        let mut covered = [&[][..]; BATCH];
        for (covered, entry) in covered.iter_mut().zip(batch) {
            *covered = entry.covered();
        }
        let mut checksums = [0; BATCH];
        let checksums = &mut checksums[..batch.len()];
        crc32c_each(&covered[..batch.len()], checksums);
        let stored = batch.iter().map(EntryView::checksum);
        let differing = stored
            .zip(&*checksums)
            .fold(0, |differing, (stored, found)| differing | (stored ^ found));
        if differing != 0 || padding != 0 {
            return Err(Status::ChecksumMismatch);
        }
        self.checksum.add_all(checksums);
        Ok(())
    }

    /// Notes a batch for pass two; says whether some of its entries name segments or belong to
    /// longer appends.
    #[inline]
    fn note(&mut self, start: usize, batch: &[EntryView<'_>]) -> Result<bool, Status> {
        let mut keys = [(0, &[][..]); BATCH];
        for (key, entry) in keys.iter_mut().zip(batch) {
            *key = (entry.table_id(), entry.key());
        }
        let mut hashes = [0; BATCH];
        key_hashes(&keys[..batch.len()], &mut hashes[..batch.len()]);
        let mut noted = [Parsed::default(); BATCH];
        let mut count = 0;
        let (mut at, mut attached, mut safe_version) = (start, false, self.safe_version);
        for ((entry, (table_id, _)), hash) in batch.iter().zip(keys).zip(hashes) {
            let total_bytes = entry.total_bytes();
            let version = entry.version();
            attached |= entry.is_attached();
            // Else a version that follows would begin again at 0.
            if version > VERSION_MAX {
                return Err(Status::InvalidArgument);
            }
            let tombstone = match entry.entry_type() {
                EntryType::Object if entry.value().len() <= VALUE_BYTES_MAX => Some(0),
                EntryType::Tombstone if entry.value().is_empty() => Some(TOMBSTONE),
                EntryType::SafeVersion | EntryType::Padding => None,
                _ => return Err(Status::InvalidArgument),
            };
            if let Some(tombstone) = tombstone {
                safe_version = safe_version.max(version + 1);
                let tablet = self.find_tablet(table_id, slot(hash))?;
                if tombstone == 0 {
                    let sum = &mut self.sums[tablet];
                    sum.0 += 1;
                    sum.1 += total_bytes as i64;
                }
                noted[count] = Parsed {
                    hash,
                    offset: at as u32,
                    tablet_and_type: tablet as u32 | tombstone,
                };
                count += 1;
            } else if entry.entry_type() == EntryType::SafeVersion {
                safe_version = safe_version.max(version);
            }
            at += total_bytes;
        }
        self.parsed.extend_from_slice(&noted[..count]);
        self.safe_version = safe_version;
        self.more = batch.last().map_or(self.more, EntryView::more);
        Ok(attached)
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

/// See [`detach`].
#[cold]
fn detach_all(entries: &mut [u8]) {
    let mut at = 0;
    while at < entries.len() {
        let entry = EntryView::parse(&entries[at..]).expect("entries that were verified parse");
        let (used, total_bytes) = (entry.bytes().len(), entry.total_bytes());
        if entry.is_attached() {
            detach(&mut entries[at..at + used]);
        }
        at += total_bytes;
    }
}

//! Replay of one recovery segment: checked as a whole, then applied entry by entry.
//!
//! Rules: the newest version of a key wins, whatever the order of segments and threads; a
//! tombstone stays in the table as a marker against older objects that are still to come; whenever
//! a logically deleted object is in the side log, so is a tombstone that names its segment; every
//! object and tombstone seen raises the safe version. Each thread appends to its own open side
//! segment: an entry is written behind its end and published only if the table has taken it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::execute::tombstone_of;
use super::hash_table::{Decision, Upserted, prefetch};
use super::log::RESERVE_BLOCKS;
use super::objects::Objects;
use super::segment::{Append, Segment};
use super::tablets::Tablet;
use crate::crc32c::crc32c;
use crate::entry::{
    EntryHeader, EntryIterator, EntryType, EntryView, HEADER_BYTES, KEY_BYTES_MAX, SEGMENT_BYTES,
    VALUE_BYTES_MAX, entry_bytes,
};
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

/// Entries whose cache misses overlap.
const BATCH: usize = 32;

/// What a segment brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Objects and tombstones in it.
    pub objects: u64,
    /// Its bytes.
    pub bytes: u64,
}

/// A marker that the table refers to until the end of the replay.
#[derive(Clone, Copy)]
pub struct Marker {
    /// Of its key.
    pub hash: u64,
    /// Where it lies.
    pub offset: usize,
}

/// What one thread keeps for one recovery.
#[derive(Default)]
pub struct ReplayWorker {
    open: Option<Arc<Segment>>,
    /// Markers that this thread has put into the table.
    pub markers: Vec<Marker>,
    parsed: Vec<Parsed>,
    deltas: Vec<(i64, i64)>,
}

#[derive(Clone, Copy)]
struct Parsed {
    offset: u32,
    tablet: u32,
    hash: u64,
}

/// One run of `replay`: the thread's state and what all threads share.
pub struct Replay<'a> {
    /// Table, arena, segments.
    pub objects: &'a Objects,
    /// The partition, sorted.
    pub tablets: &'a [Arc<Tablet>],
    /// All side segments of the recovery, in the order in which they were opened.
    pub sides: &'a Mutex<Vec<Arc<Segment>>>,
    /// Set when the recovery is taken back.
    pub cancelled: &'a AtomicBool,
    /// Of this thread.
    pub worker: &'a mut ReplayWorker,
}

impl Replay<'_> {
    /// Replays a recovery segment.
    ///
    /// # Errors
    /// `ChecksumMismatch` or `InvalidArgument` (entries of other tablets): nothing was applied.
    /// `OutOfMemory`, `RecoveryUnknown` (cancelled): a part was; the recovery must be taken back.
    pub fn segment(&mut self, bytes: &[u8], checksum: u32) -> Result<Replayed, Status> {
        let safe_version = self.check(bytes, checksum)?;
        self.objects.raise_safe_version(safe_version);
        let parsed = std::mem::take(&mut self.worker.parsed);
        self.worker.deltas.clear();
        self.worker.deltas.resize(self.tablets.len(), (0, 0));
        let applied = self.apply_all(bytes, &parsed);
        for (tablet, (records, delta)) in self.tablets.iter().zip(&self.worker.deltas) {
            tablet.count(*records, *delta);
        }
        let objects = parsed.len() as u64;
        self.worker.parsed = parsed;
        applied?;
        self.objects
            .replayed_entries
            .fetch_add(objects, Ordering::Relaxed);
        Ok(Replayed {
            objects,
            bytes: bytes.len() as u64,
        })
    }

    /// Checks everything and notes the entries to apply; returns the safe version they ask for.
    fn check(&mut self, bytes: &[u8], checksum: u32) -> Result<u64, Status> {
        self.worker.parsed.clear();
        if bytes.len() > SEGMENT_BYTES || crc32c(bytes) != checksum {
            return Err(Status::ChecksumMismatch);
        }
        let mut safe_version = 0;
        let mut more = false;
        for item in EntryIterator::new(bytes) {
            let (offset, entry) = item?;
            entry.verify()?;
            more = entry.more();
            match entry.entry_type() {
                EntryType::SafeVersion => {
                    safe_version = safe_version.max(entry.version());
                    continue;
                }
                EntryType::Object if entry.value().len() <= VALUE_BYTES_MAX => {}
                EntryType::Tombstone if entry.value().is_empty() => {}
                EntryType::Padding => continue,
                _ => return Err(Status::InvalidArgument),
            }
            let behind = entry
                .version()
                .checked_add(1)
                .ok_or(Status::InvalidArgument)?;
            safe_version = safe_version.max(behind);
            let hash = key_hash(entry.table_id(), entry.key());
            let tablet = self
                .tablet(entry.table_id(), slot(hash))
                .ok_or(Status::InvalidArgument)?;
            self.worker.parsed.push(Parsed {
                offset: offset as u32,
                tablet,
                hash,
            });
        }
        if more {
            Err(Status::ChecksumMismatch)
        } else {
            Ok(safe_version)
        }
    }

    #[inline]
    fn tablet(&self, table_id: u64, slot: u32) -> Option<u32> {
        let behind = self.tablets.partition_point(|tablet| {
            (tablet.range.table_id, tablet.range.start_slot) <= (table_id, slot)
        });
        let index = behind.checked_sub(1)?;
        self.tablets[index]
            .range
            .contains(table_id, slot)
            .then_some(index as u32)
    }

    fn apply_all(&mut self, bytes: &[u8], parsed: &[Parsed]) -> Result<(), Status> {
        let (table, arena) = (&self.objects.table, &self.objects.arena);
        let mut batches = parsed.chunks(BATCH).peekable();
        let mut next = batches.peek().copied();
        for entry in next.unwrap_or(&[]) {
            table.prefetch_bucket(entry.hash);
        }
        while let Some(batch) = batches.next() {
            // Buckets of the next batch come while this one is applied.
            next = batches.peek().copied();
            for entry in next.unwrap_or(&[]) {
                table.prefetch_bucket(entry.hash);
            }
            for entry in batch {
                table.candidates(entry.hash, |offset| prefetch(arena.pointer(offset)));
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(Status::RecoveryUnknown);
            }
            for entry in batch {
                let view = EntryView::parse(&bytes[entry.offset as usize..])?;
                self.apply(entry, &view)?;
            }
        }
        Ok(())
    }

    #[inline]
    fn apply(&mut self, parsed: &Parsed, entry: &EntryView<'_>) -> Result<(), Status> {
        let objects = self.objects;
        let is_object = entry.entry_type() == EntryType::Object;
        // Prior segments are those of the dead master's log: they mean nothing here.
        let copy = [append_of(entry)];
        let bytes = copy[0].bytes();
        let offset = self.side(bytes, entry.timestamp())?.prepare(&copy);
        let upserted = objects.table.upsert(parsed.hash, offset, |found| {
            // SAFETY: the offset comes from a slot, and segments are not freed while it runs.
            let present = unsafe { objects.arena.entry(found) };
            if present.table_id() != entry.table_id() || present.key() != entry.key() {
                return Decision::Other;
            }
            // A tombstone kills the object of its own version.
            let equal_wins = !is_object && present.entry_type() == EntryType::Object;
            if entry.version() > present.version()
                || (equal_wins && entry.version() == present.version())
            {
                Decision::Replace
            } else {
                Decision::Keep
            }
        })?;
        let replaced = match upserted {
            Upserted::Kept(_) => return Ok(()),
            Upserted::Inserted => {
                objects.table.count_inserted(1);
                None
            }
            Upserted::Replaced(found) => Some(found),
        };
        self.side(bytes, entry.timestamp())?.publish(bytes);
        if is_object {
            self.count(parsed, 1, bytes as i64);
        } else {
            self.worker.markers.push(Marker {
                hash: parsed.hash,
                offset,
            });
        }
        match replaced {
            Some(found) => self.bury(parsed, found, entry.timestamp()),
            None => Ok(()),
        }
    }

    /// Writes the tombstone of an object that was in the table and has been superseded.
    fn bury(&mut self, parsed: &Parsed, offset: usize, timestamp: u32) -> Result<(), Status> {
        let arena = &self.objects.arena;
        // SAFETY: no segment is freed while this runs.
        let dead = unsafe { arena.entry(offset) };
        if dead.entry_type() != EntryType::Object {
            return Ok(());
        }
        arena.count_dead(offset, dead.total_bytes());
        self.count(parsed, -1, -(dead.total_bytes() as i64));
        let prior = [arena.segment_id(offset)];
        let tombstone = [tombstone_of(&dead, &prior, timestamp)];
        self.side(tombstone[0].bytes(), timestamp)?
            .append(&tombstone);
        Ok(())
    }

    #[inline]
    fn count(&mut self, parsed: &Parsed, records: i64, bytes: i64) {
        let delta = &mut self.worker.deltas[parsed.tablet as usize];
        delta.0 += records;
        delta.1 += bytes;
    }

    /// This thread's side segment with room for `bytes`.
    #[inline]
    fn side(&mut self, bytes: usize, timestamp: u32) -> Result<&Segment, Status> {
        if self
            .worker
            .open
            .as_ref()
            .is_none_or(|open| !open.fits(bytes))
        {
            let fresh = self.objects.open_segment(None, RESERVE_BLOCKS, timestamp)?;
            self.sides.lock().push(Arc::clone(&fresh));
            if let Some(full) = self.worker.open.replace(fresh) {
                full.close();
            }
        }
        Ok(self.worker.open.as_ref().expect("opened above"))
    }
}

impl ReplayWorker {
    /// Nothing more is appended.
    pub fn close(&mut self) {
        if let Some(open) = self.open.take() {
            open.close();
        }
    }
}

/// Takes the entries of a side segment out of the table.
pub fn erase_entries(objects: &Objects, side: &Segment) {
    for piece in side.pieces() {
        let start = piece.extent.offset;
        // SAFETY: the piece keeps its extent.
        let bytes = unsafe { objects.arena.published(start, piece.bytes) };
        for item in EntryIterator::new(bytes) {
            let (offset, entry) = item.expect("published entries parse");
            if entry.entry_type() != EntryType::SegmentHeader {
                let hash = key_hash(entry.table_id(), entry.key());
                objects.table.erase(hash, start + offset);
            }
        }
    }
}

#[inline]
fn append_of<'a>(entry: &EntryView<'a>) -> Append<'a> {
    let header = EntryHeader {
        entry_type: entry.entry_type(),
        flags: 0,
        timestamp: entry.timestamp(),
        table_id: entry.table_id(),
        version: entry.version(),
    };
    Append {
        header,
        prior: &[],
        key: entry.key(),
        value: entry.value(),
    }
}

const _: () = assert!(
    // The longest entry fits behind the longest side segment header.
    2 * HEADER_BYTES + entry_bytes(KEY_BYTES_MAX, VALUE_BYTES_MAX, 0) < SEGMENT_BYTES
);

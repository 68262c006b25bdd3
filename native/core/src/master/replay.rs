//! Replay of one recovery segment, which is adopted: it stays where it was received.
//!
//! Rules: the newest version of a key wins, whatever the order of segments and threads. Pass one
//! ([`check`]) looks at everything and changes nothing that others see; only then pass two puts the
//! entries into the table. An entry that is dead on arrival becomes padding before its bytes are
//! published; for an object that is superseded after it was indexed, a tombstone that names its
//! new segment is written before the recovery commits. A tombstone stays in the table as a marker
//! against older objects that are still to come. Every object and tombstone seen raises the safe
//! version. `docs/recovery.md` says why this is enough.
//!
//! Each thread has its own open side segment; several pieces share one. Any number of threads run
//! at once and meet in the table only.

mod check;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use self::check::{Check, Parsed};
use super::execute::tombstone_of;
use super::hash_table::{Decision, Upserted, prefetch};
use super::log::RESERVE_BLOCKS;
use super::objects::Objects;
use super::segment::{Append, SEGMENT_HEADER_BYTES, Segment};
use super::tablets::Tablet;
use crate::backup::lz4_image;
use crate::entry::{
    EntryIterator, EntryType, HEADER_BYTES, KEY_BYTES_MAX, PRIOR_MAX, SEGMENT_BYTES,
    VALUE_BYTES_MAX, entry_bytes, neutralise, write_entry,
};
use crate::status::Status;

/// Buckets that are fetched ahead.
const AHEAD: usize = 48;
/// Entries that wait for the entry which may be their key's present one.
const DEFERRED_MAX: usize = 32;
/// Where in an entry a short key ends; it begins behind the header.
const SHORT_KEY_END: usize = 64;
/// Bytes that are copied and then checked while they are in the cache.
const COPY_BYTES: usize = 128 << 10;
/// Most bytes of a recovery segment: it comes from a segment with a header of the same size.
pub const PIECE_BYTES_MAX: usize = SEGMENT_BYTES - SEGMENT_HEADER_BYTES;

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
    /// For tombstones that `open` has no room for: a piece may fill a segment.
    graves: Option<Arc<Segment>>,
    /// Markers that this thread has put into the table.
    pub markers: Vec<Marker>,
    parsed: Vec<Parsed>,
    /// Objects and their bytes, by tablet.
    sums: Vec<(i64, i64)>,
    /// Of the objects that lost their place to entries of the present piece, as they will stand in
    /// the log: written while the object is in the cache.
    tombstones: Vec<u8>,
}

/// Where a piece's bytes come from.
#[derive(Clone, Copy)]
pub enum Source<'b> {
    /// They are in the room already.
    InPlace,
    /// A message.
    Bytes(&'b [u8]),
    /// An LZ4 image of them.
    Image(&'b [u8]),
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
    /// Seconds since 1970.
    pub timestamp: u32,
    /// Of the epochs.
    pub participant: usize,
    /// Of this thread.
    pub worker: &'a mut ReplayWorker,
}

impl Replay<'_> {
    /// This thread's side segment with room for `bytes`.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn side(&mut self, bytes: usize) -> Result<Arc<Segment>, Status> {
        self.side_in(|worker| &mut worker.open, bytes)
    }

    fn side_in(
        &mut self,
        place: impl Fn(&mut ReplayWorker) -> &mut Option<Arc<Segment>>,
        bytes: usize,
    ) -> Result<Arc<Segment>, Status> {
        if let Some(open) = place(self.worker).as_ref().filter(|open| open.fits(bytes)) {
            return Ok(Arc::clone(open));
        }
        let objects = self.objects;
        let fresh = objects.open_segment(None, RESERVE_BLOCKS, self.timestamp)?;
        self.sides.lock().push(Arc::clone(&fresh));
        if let Some(full) = place(self.worker).replace(Arc::clone(&fresh)) {
            full.close();
        }
        Ok(fresh)
    }

    /// Replays the recovery segment of `length` bytes at the end of `side`.
    ///
    /// # Errors
    /// `ChecksumMismatch` or `InvalidArgument` (entries of other tablets): nothing was applied.
    /// `OutOfMemory`, `RecoveryUnknown` (cancelled): a part was; the recovery must be taken back.
    pub fn piece(
        &mut self,
        side: &Segment,
        length: usize,
        checksum: u32,
        source: Source<'_>,
    ) -> Result<Replayed, Status> {
        let base = side.offset + side.appended();
        // SAFETY: behind `appended`, this thread's own until it is indexed.
        let room = unsafe { self.objects.arena.unpublished(base, length) };
        self.worker.tombstones.clear();
        let mut check = Check::new(self.tablets, &mut *self.worker);
        match source {
            Source::InPlace => check.advance(room, length)?,
            Source::Bytes(bytes) => {
                for (block, from) in bytes.chunks(COPY_BYTES).zip((0..).step_by(COPY_BYTES)) {
                    let end = from + block.len();
                    room[from..end].copy_from_slice(block);
                    check.advance(room, end)?;
                }
            }
            Source::Image(image) => {
                lz4_image::decode_blocks(image, room, |room, end| check.advance(room, end))?;
            }
        }
        let checked = check.finish(length, checksum)?;
        self.objects.raise_safe_version(checked.safe_version);
        let parsed = std::mem::take(&mut self.worker.parsed);
        let publication = Publication { side, length };
        let applied = self.apply_all(base, &parsed);
        drop(publication);
        // Else the cleaner would never take a side segment that is full of what has no task.
        self.objects.arena.count_dead(base, checked.dead_bytes);
        for (tablet, (records, bytes)) in self.tablets.iter().zip(&self.worker.sums) {
            tablet.count(*records, *bytes);
        }
        let objects = parsed.len() as u64;
        self.worker.parsed = parsed;
        applied?;
        self.bury()?;
        self.objects
            .replayed_entries
            .fetch_add(objects, Ordering::Relaxed);
        Ok(Replayed {
            objects,
            bytes: length as u64,
        })
    }

    /// Newest first: so most of a piece's dead objects are dead on arrival.
    fn apply_all(&mut self, base: usize, parsed: &[Parsed]) -> Result<(), Status> {
        let table = &self.objects.table;
        for entry in parsed.iter().rev().take(AHEAD) {
            table.prefetch_bucket(entry.hash);
        }
        let mut inserted = 0;
        let mut deferred = Vec::with_capacity(DEFERRED_MAX);
        let applied = (0..parsed.len()).rev().try_for_each(|index| {
            if let Some(ahead) = index.checked_sub(AHEAD) {
                table.prefetch_bucket(parsed[ahead].hash);
            }
            let entry = parsed[index];
            let offset = base + entry.offset();
            match table.upsert(entry.hash, offset, |_| Decision::Keep)? {
                Upserted::Kept(candidate) => {
                    self.prefetch_key(candidate);
                    self.prefetch_key(offset);
                    deferred.push(entry);
                    if deferred.len() == DEFERRED_MAX {
                        self.settle_all(base, &mut deferred, &mut inserted)?;
                    }
                }
                Upserted::Inserted | Upserted::Replaced(_) => {
                    inserted += 1;
                    self.mark(&entry, offset);
                }
            }
            Ok(())
        });
        let applied = applied.and_then(|()| self.settle_all(base, &mut deferred, &mut inserted));
        table.count_inserted(inserted);
        applied
    }

    /// Fetches an entry up to the end of a short key.
    #[inline(always)]
    fn prefetch_key(&self, offset: usize) {
        let start = self.objects.arena.pointer(offset);
        prefetch(start);
        prefetch(start.wrapping_add(SHORT_KEY_END - 1));
    }

    #[inline]
    fn mark(&mut self, entry: &Parsed, offset: usize) {
        if entry.is_tombstone() {
            self.worker.markers.push(Marker {
                hash: entry.hash,
                offset,
            });
        }
    }

    /// Decides between the entries that wait and those in the table, among them entries of served
    /// tablets, which the cleaner moves.
    fn settle_all(
        &mut self,
        base: usize,
        deferred: &mut Vec<Parsed>,
        inserted: &mut usize,
    ) -> Result<(), Status> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Status::RecoveryUnknown);
        }
        let objects = self.objects;
        let _pin = objects.pin_epoch(self.participant);
        for parsed in deferred.drain(..) {
            let offset = base + parsed.offset();
            match self.settle(&parsed, offset)? {
                Upserted::Inserted => {
                    *inserted += 1;
                    self.mark(&parsed, offset);
                }
                Upserted::Replaced(_) => self.mark(&parsed, offset),
                Upserted::Kept(_) => self.bury_at_once(&parsed, offset),
            }
        }
        Ok(())
    }

    fn settle(&mut self, parsed: &Parsed, offset: usize) -> Result<Upserted, Status> {
        let arena = &self.objects.arena;
        // SAFETY: this thread's own entry, complete and not freed while it runs.
        let entry = unsafe { arena.entry(offset) };
        let is_object = !parsed.is_tombstone();
        let mut dead_bytes = None;
        let upserted = self.objects.table.upsert(parsed.hash, offset, |found| {
            // SAFETY: the offset comes from a slot; its segment is not freed while this runs.
            let present = unsafe { arena.entry(found) };
            if present.table_id() != entry.table_id() || present.key() != entry.key() {
                return Decision::Other;
            }
            let present_is_object = present.entry_type() == EntryType::Object;
            dead_bytes = present_is_object.then(|| present.total_bytes());
            // A tombstone kills the object of its own version.
            let equal_wins = !is_object && present_is_object;
            if entry.version() > present.version()
                || (equal_wins && entry.version() == present.version())
            {
                Decision::Replace
            } else {
                Decision::Keep
            }
        })?;
        if let (Upserted::Replaced(found), Some(bytes)) = (upserted, dead_bytes) {
            arena.count_dead(found, bytes);
            self.count_gone(parsed, bytes);
            self.entomb(found);
        }
        Ok(upserted)
    }

    /// Writes the tombstone of an object that was indexed and is superseded; `bury` appends it.
    fn entomb(&mut self, offset: usize) {
        let arena = &self.objects.arena;
        // SAFETY: complete, since a slot referred to it, and not freed while this runs.
        let dead = unsafe { arena.entry(offset) };
        let prior = [arena.segment_id(offset)];
        let Append { header, key, .. } = tombstone_of(&dead, &prior, self.timestamp);
        let tombstones = &mut self.worker.tombstones;
        let start = tombstones.len();
        tombstones.resize(start + entry_bytes(key.len(), 0, prior.len()), 0);
        write_entry(&mut tombstones[start..], &header, &prior, key, &[]);
    }

    fn count_gone(&mut self, parsed: &Parsed, bytes: usize) {
        let sum = &mut self.worker.sums[parsed.tablet()];
        sum.0 -= 1;
        sum.1 -= bytes as i64;
    }

    /// An entry that is dead on arrival becomes padding, so that nothing has to guard it.
    fn bury_at_once(&mut self, parsed: &Parsed, offset: usize) {
        let arena = &self.objects.arena;
        if !parsed.is_tombstone() {
            // SAFETY: this thread's own entry, complete and not freed while it runs.
            let bytes = unsafe { arena.entry(offset) }.total_bytes();
            arena.count_dead(offset, bytes);
            self.count_gone(parsed, bytes);
        }
        // SAFETY: not published, and never was in the table: nobody else knows of it.
        neutralise(unsafe { arena.unpublished(offset, HEADER_BYTES) });
    }

    /// Appends the tombstones of the objects that were indexed and then superseded.
    fn bury(&mut self) -> Result<(), Status> {
        let tombstones = std::mem::take(&mut self.worker.tombstones);
        let mut rest = &tombstones[..];
        while !rest.is_empty() {
            let first = leading_bytes(rest, 0);
            let open = self.worker.open.clone();
            let side = match open.filter(|open| open.fits(first)) {
                Some(open) => open,
                None => self.side_in(|worker| &mut worker.graves, first)?,
            };
            let (fitting, behind) = rest.split_at(leading_bytes(rest, side.free_bytes()));
            side.append_if(fitting.len(), |_, out| {
                out.copy_from_slice(fitting);
                fitting.len()
            });
            rest = behind;
        }
        self.worker.tombstones = tombstones;
        Ok(())
    }
}

/// Bytes of the entries at the start of `entries` that fit into `room`; of the first if none does.
fn leading_bytes(entries: &[u8], room: usize) -> usize {
    if entries.len() <= room {
        return entries.len();
    }
    let ends = EntryIterator::new(entries).map(|item| {
        let (at, entry) = item.expect("tombstones that were written parse");
        at + entry.total_bytes()
    });
    let mut first = None;
    let fitting = ends
        .inspect(|end| _ = first.get_or_insert(*end))
        .take_while(|end| *end <= room)
        .last();
    fitting.or(first).expect("there is an entry")
}

/// Publishes a piece whatever its second pass comes to: the table may refer to any entry, and an
/// abort looks for them in the published bytes.
struct Publication<'a> {
    side: &'a Segment,
    length: usize,
}

impl Drop for Publication<'_> {
    fn drop(&mut self) {
        self.side.publish(self.length);
    }
}

impl ReplayWorker {
    /// Nothing more is appended.
    pub fn close(&mut self) {
        for segment in [self.open.take(), self.graves.take()].into_iter().flatten() {
            segment.close();
        }
    }
}

const _: () = assert!(
    entry_bytes(KEY_BYTES_MAX, VALUE_BYTES_MAX, PRIOR_MAX) < PIECE_BYTES_MAX,
    "the longest entry fits behind a side segment's header"
);

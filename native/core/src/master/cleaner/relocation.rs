//! Finding what is alive in a segment and moving it.
//!
//! Rules: an object is alive when the table refers to it; a tombstone, as long as a segment that it
//! names is in memory and its tablet is still the one it was written for. Entries are copied behind
//! the published end of their new place, some at a time, then the table's slots are swapped one by
//! one; where a write was faster, the copies behind close up, and what is left is published. So a
//! copy that was overtaken by a write never exists, and every dead version in a segment is one that
//! its successor has named. Nobody is locked out meanwhile.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::streaming::{PAST_CACHE_BYTES_MIN, copy_past_cache, settle};
use crate::entry::{EntryHeader, EntryIterator, EntryType, EntryView, PRIOR_MAX, write_entry};
use crate::key_hash::{key_hashes, slot};
use crate::master::hash_table::prefetch;
use crate::master::objects::Objects;
use crate::master::present_segments::PresentSegments;
use crate::master::segment::Piece;
use crate::master::tablets::Tablet;

/// Most entries that are looked up, copied or swapped at a stretch: their cache misses overlap.
pub const BATCH: usize = 32;
/// Bytes that are copied at a stretch, unless one entry is longer.
const STRETCH_BYTES: usize = 256 << 10;
/// Bytes that are searched at a stretch, unless one entry is longer.
const SEARCH_BYTES: usize = 8 << 10;
/// How far ahead of what is moved a segment is fetched: entries are found one after the other, so
/// the processor alone would wait for each. Two stretches are under way.
const AHEAD_BYTES: usize = 20 << 10;
const LINE_BYTES: usize = 64;
/// Lines of an entry that are fetched ahead; the processor fetches what follows by itself.
const LINES_AHEAD: usize = 4;

/// An entry that must be moved.
#[derive(Clone, Copy)]
pub struct Live {
    /// Where it lies now.
    pub offset: usize,
    /// Of its key.
    pub hash: u64,
    /// Its timestamp.
    pub timestamp: u32,
    /// Bytes, and whether it is a tombstone.
    bytes_and_kind: u32,
}

const TOMBSTONE: u32 = 1 << 31;

impl Live {
    /// Bytes that it needs at most.
    pub fn bytes(&self) -> usize {
        (self.bytes_and_kind & !TOMBSTONE) as usize
    }

    /// Whether it is a tombstone.
    pub fn tombstone(&self) -> bool {
        self.bytes_and_kind & TOMBSTONE != 0
    }
}

/// What decides over life and death during one pass.
pub struct Survey<'a> {
    objects: &'a Objects,
    /// The segments in memory. Those that come later hold nothing that is named by an entry of a
    /// segment that is closed by now.
    present: PresentSegments,
    /// All tablets, served or not.
    tablets: Vec<Arc<Tablet>>,
}

/// What was published of a stretch of entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// All bytes.
    pub bytes: usize,
    /// Those of tombstones.
    pub tombstone_bytes: usize,
}

/// How entries that are moved follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As `scan` finds them, at that moment.
    Found,
    /// In another, or later.
    Any,
}

/// How many of `entries` are moved at a stretch to a place with so much room, and their bytes.
pub fn stretch(entries: &[Live], room_bytes: usize) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for live in &entries[..entries.len().min(BATCH)] {
        let end = bytes + live.bytes();
        if end > room_bytes || (count > 0 && end > STRETCH_BYTES) {
            break;
        }
        (count, bytes) = (count + 1, end);
    }
    (count, bytes)
}

/// Objects and tombstones that are looked up together.
#[derive(Default)]
struct Seen<'b> {
    /// With their offsets in the arena.
    entries: Vec<(usize, EntryView<'b>)>,
    keys: Vec<(u64, &'b [u8])>,
    hashes: [u64; BATCH],
}

impl<'b> Seen<'b> {
    /// Takes in the next `entries` of bytes that begin at `start` in the arena, none only at the
    /// end, and fetches their buckets.
    fn fill(&mut self, objects: &Objects, start: usize, entries: &mut EntryIterator<'b>) {
        self.entries.clear();
        self.keys.clear();
        let first = entries.offset();
        for item in entries {
            let (at, entry) = item.expect("published entries parse");
            if let EntryType::Object | EntryType::Tombstone = entry.entry_type() {
                self.entries.push((start + at, entry));
                self.keys.push((entry.table_id(), entry.key()));
            }
            let searched = at + entry.total_bytes() - first;
            let some = !self.entries.is_empty();
            if self.entries.len() == BATCH || (some && searched >= SEARCH_BYTES) {
                break;
            }
        }
        let hashes = &mut self.hashes[..self.keys.len()];
        key_hashes(&self.keys, hashes);
        for hash in hashes {
            objects.table.prefetch_bucket(*hash);
        }
    }
}

impl<'a> Survey<'a> {
    /// A survey as things stand now.
    pub fn new(objects: &'a Objects, tablets: Vec<Arc<Tablet>>) -> Self {
        let mut present = PresentSegments::default();
        objects.refresh(&mut present);
        Self {
            objects,
            present,
            tablets,
        }
    }

    /// Whether a tombstone in a segment must be kept.
    fn guards(&self, entry: &EntryView<'_>, hash: u64, segment_id: u64) -> bool {
        let owned = |tablet: &&Arc<Tablet>| {
            tablet.range.contains(entry.table_id(), slot(hash))
                && tablet.ctime_segment_id() <= segment_id
        };
        entry.prior().any(|id| self.present.contains(id))
            && self.tablets.iter().any(|one| owned(&one))
    }

    /// Gives what is alive in a piece of a segment to `each`, some entries at a time and in order,
    /// until that breaks off. Returns the bytes of tombstones that are not needed any more.
    pub fn scan<B>(
        &self,
        segment_id: u64,
        piece: &Piece,
        mut each: impl FnMut(&[Live]) -> ControlFlow<B>,
    ) -> ControlFlow<B, u64> {
        let start = piece.extent.offset;
        // SAFETY: the piece keeps its extent, and the bytes are published.
        let bytes = unsafe { self.objects.arena.published(start, piece.bytes) };
        let mut entries = EntryIterator::new(bytes);
        let (mut next, mut present) = (Seen::default(), Seen::default());
        let mut live = Vec::with_capacity(BATCH);
        let mut dropped = 0;
        next.fill(self.objects, start, &mut entries);
        while !next.entries.is_empty() {
            std::mem::swap(&mut next, &mut present);
            // While the present entries are moved, the buckets of the next are on their way.
            next.fill(self.objects, start, &mut entries);
            live.clear();
            for ((offset, entry), hash) in present.entries.iter().zip(&present.hashes) {
                let found = self.judge(segment_id, *offset, *hash, entry);
                if found.is_none() || entry.bytes().len() < PAST_CACHE_BYTES_MIN {
                    fetch_ahead(entry);
                }
                match found {
                    Some(found) => live.push(found),
                    None if entry.entry_type() == EntryType::Tombstone => {
                        dropped += entry.total_bytes() as u64;
                    }
                    None => {}
                }
            }
            each(&live)?;
        }
        ControlFlow::Continue(dropped)
    }

    /// What is alive in a piece, in order, and what `scan` returns.
    pub fn collect(&self, segment_id: u64, piece: &Piece) -> (Vec<Live>, u64) {
        let mut all = Vec::new();
        let scanned = self.scan::<Infallible>(segment_id, piece, |live| {
            all.extend_from_slice(live);
            ControlFlow::Continue(())
        });
        let ControlFlow::Continue(dropped) = scanned;
        (all, dropped)
    }

    fn judge(
        &self,
        segment_id: u64,
        offset: usize,
        hash: u64,
        entry: &EntryView<'_>,
    ) -> Option<Live> {
        let tombstone = entry.entry_type() == EntryType::Tombstone;
        let alive = self.objects.table.refers_to(hash, offset)
            || (tombstone && self.guards(entry, hash, segment_id));
        let kind = if tombstone { TOMBSTONE } else { 0 };
        alive.then(|| Live {
            offset,
            hash,
            timestamp: entry.timestamp(),
            bytes_and_kind: entry.total_bytes() as u32 | kind,
        })
    }

    /// Moves entries to `out`, which lies at `target` in the arena and belongs to the caller. What
    /// has died meanwhile leaves no gap.
    pub fn relocate(&self, batch: &[Live], order: Order, target: usize, out: &mut [u8]) -> Moved {
        let ahead_bytes = match order {
            Order::Found => AHEAD_BYTES,
            Order::Any => 0,
        };
        let mut lengths = [0; BATCH];
        let mut end = 0;
        for (live, length) in batch.iter().zip(&mut lengths) {
            *length = self.copy(&self.entry(live), ahead_bytes, &mut out[end..]);
            end += *length;
        }
        settle();
        // A swap waits for the stores before it: after all copies they wait together.
        let relocation = self.objects.table.begin_relocation();
        let mut moved = Moved::default();
        for (live, length) in batch.iter().zip(lengths) {
            let place = moved.bytes;
            let swapped = relocation.relocate(live.hash, live.offset, target + place);
            if swapped || live.tombstone() {
                if swapped && length != live.bytes() {
                    self.weigh_again(live, length);
                }
                moved.bytes += length;
                if live.tombstone() {
                    moved.tombstone_bytes += length;
                }
            } else {
                // Nothing refers to the copies behind this one so far.
                out.copy_within(place + length..end, place);
                end -= length;
            }
        }
        moved
    }

    fn entry(&self, live: &Live) -> EntryView<'_> {
        // SAFETY: whoever moves an entry holds the segment that it lies in.
        unsafe { self.objects.arena.entry(live.offset) }
    }

    /// Names that are gone were left out: its tablet has less to bear.
    fn weigh_again(&self, live: &Live, used: usize) {
        let (entry, place) = (self.entry(live), slot(live.hash));
        let owned = |tablet: &&Arc<Tablet>| tablet.range.contains(entry.table_id(), place);
        let tablet = self.tablets.iter().find(owned);
        if let (false, Some(tablet)) = (live.tombstone(), tablet) {
            let bytes = used as i64 - live.bytes() as i64;
            let (bucket, _) = self.objects.table.place(live.hash);
            tablet.count(0, bytes);
            tablet.count_half(place, bucket, 0, bytes);
        }
    }

    fn copy(&self, entry: &EntryView<'_>, ahead_bytes: usize, out: &mut [u8]) -> usize {
        let stale = entry.prior_count() > 0 && entry.prior().any(|id| !self.present.contains(id));
        if !stale && !entry.more() {
            let total = entry.total_bytes();
            let bytes = entry.bytes();
            copy_past_cache(bytes, &mut out[..bytes.len()], ahead_bytes);
            out[bytes.len()..total].fill(0);
            return total;
        }
        // It is an atomic append of its own now, and names no segment that is gone.
        let mut prior = [0; PRIOR_MAX];
        let mut count = 0;
        for id in entry.prior().filter(|id| self.present.contains(*id)) {
            prior[count] = id;
            count += 1;
        }
        let header = EntryHeader {
            entry_type: entry.entry_type(),
            flags: 0,
            timestamp: entry.timestamp(),
            table_id: entry.table_id(),
            version: entry.version(),
        };
        write_entry(out, &header, &prior[..count], entry.key(), entry.value())
    }
}

/// Fetches what lies ahead of an entry and is as long.
#[inline]
fn fetch_ahead(entry: &EntryView<'_>) {
    let ahead = entry.bytes().as_ptr().wrapping_add(AHEAD_BYTES);
    for line in (0..entry.total_bytes().min(SEARCH_BYTES)).step_by(LINE_BYTES) {
        prefetch(ahead.wrapping_add(line));
    }
}

/// Fetches the entries that are moved next, which lie anywhere.
pub fn prefetch_entries(objects: &Objects, entries: &[Live]) {
    for live in &entries[..entries.len().min(BATCH)] {
        objects.table.prefetch_bucket(live.hash);
        let start = objects.arena.pointer(live.offset);
        for line in 0..live.bytes().div_ceil(LINE_BYTES).min(LINES_AHEAD) {
            prefetch(start.wrapping_add(line * LINE_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_hash::key_hash;
    use crate::master::segment::{Append, Segment};

    const VALUE_BYTES: usize = 600;

    fn objects() -> Objects {
        Objects::new(1, 64 << 20, 1, false).expect("memory")
    }

    fn append(segment: &Segment, entry_type: EntryType, key: &[u8], value: &[u8]) -> usize {
        let header = EntryHeader {
            entry_type,
            flags: 0,
            timestamp: 1,
            table_id: 1,
            version: 1,
        };
        segment.append(&[Append {
            header,
            prior: &[],
            key,
            value,
        }])
    }

    /// A segment with an object for each byte of `keys`, all of them in the table.
    fn filled(objects: &Objects, segment: &Segment, keys: &[u8]) {
        for key in keys.chunks(1) {
            let offset = append(segment, EntryType::Object, key, &[key[0]; VALUE_BYTES]);
            objects
                .table
                .insert(key_hash(1, key), offset)
                .expect("room");
        }
    }

    #[test]
    fn what_is_alive_is_found_behind_a_long_stretch_of_other_entries() {
        let objects = objects();
        let segment = objects.open_segment(None, 0, 1).expect("memory");
        for _ in 0..3 {
            let other = vec![0; SEARCH_BYTES];
            append(&segment, EntryType::TableStats, b"", &other);
            filled(&objects, &segment, b"x");
            append(&segment, EntryType::TableStats, b"", &other);
            append(&segment, EntryType::TableStats, b"", &other);
        }
        filled(&objects, &segment, b"y");
        let survey = Survey::new(&objects, Vec::new());
        let piece = segment.pieces().next().expect("one");
        let (live, _) = survey.collect(segment.id, &piece);
        assert_eq!(live.len(), 4);
    }

    #[test]
    fn what_dies_during_a_move_leaves_no_gap() {
        let objects = objects();
        let source = objects.open_segment(None, 0, 1).expect("memory");
        filled(&objects, &source, b"abcde");
        let survey = Survey::new(&objects, Vec::new());
        let piece = source.pieces().next().expect("one");
        let (live, _) = survey.collect(source.id, &piece);
        let elsewhere = objects.open_segment(None, 0, 1).expect("memory");
        for key in [b"b", b"e"] {
            let offset = append(&elsewhere, EntryType::Object, key, b"newer");
            let current = objects.find(key_hash(1, key), 1, key).expect("there");
            assert!(current.slot.replace(offset));
        }
        let target = objects.open_segment(None, 0, 1).expect("memory");
        let begin = target.appended();
        let (count, bytes) = stretch(&live, target.free_bytes());
        assert_eq!(count, 5);
        let used = target.append_if(bytes, |at, out| {
            survey.relocate(&live[..count], Order::Found, at, out).bytes
        });
        assert_eq!(used, 3 * live[0].bytes());
        for key in [b"a", b"b", b"c", b"d", b"e"] {
            let current = objects.find(key_hash(1, key), 1, key).expect("there");
            current.entry.verify().expect("whole");
            let newer = current.entry.value() == b"newer";
            assert_eq!(newer, key == b"b" || key == b"e");
            assert!(newer || current.offset >= target.offset + begin);
            assert!(newer || current.entry.value() == [key[0]; VALUE_BYTES]);
        }
        let bytes = target.copy();
        let entries = EntryIterator::new(&bytes[begin..]);
        let keys: Vec<_> = entries
            .map(|item| item.expect("parses").1.key().to_vec())
            .collect();
        assert_eq!(keys, [b"a", b"c", b"d"]);
    }

    #[test]
    fn a_stretch_ends_where_the_room_does() {
        let objects = objects();
        let segment = objects.open_segment(None, 0, 1).expect("memory");
        filled(&objects, &segment, b"abc");
        let survey = Survey::new(&objects, Vec::new());
        let piece = segment.pieces().next().expect("one");
        let (live, _) = survey.collect(segment.id, &piece);
        let bytes = live[0].bytes();
        assert_eq!(stretch(&live, 2 * bytes), (2, 2 * bytes));
        assert_eq!(stretch(&live, 3 * bytes - 1), (2, 2 * bytes));
        assert_eq!(stretch(&live, bytes - 1), (0, 0));
    }
}

//! Finding what is alive in a segment and moving it.
//!
//! Rules: an object is alive when the table refers to it; a tombstone, as long as a segment that it
//! names is in memory and its tablet is still the one it was written for. An entry is copied behind
//! the published end of its new place, then the table's slot is swapped, and only if that succeeds
//! is the copy published: a copy that was overtaken by a write never exists, so every dead version
//! in a segment is one that its successor has named. Nobody is locked out meanwhile.

use std::sync::Arc;

use crate::entry::{EntryHeader, EntryIterator, EntryType, EntryView, PRIOR_MAX, write_entry};
use crate::key_hash::{key_hash, slot};
use crate::master::hash_table::{Relocation, prefetch};
use crate::master::objects::{Objects, PresentSegments};
use crate::master::segment::Piece;
use crate::master::tablets::Tablet;

/// Entries whose cache misses overlap, or that are moved at a stretch.
pub const BATCH: usize = 32;

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

/// What a scan has found.
#[derive(Default)]
pub struct Found {
    /// To be moved, in the order of the log.
    pub live: Vec<Live>,
    /// Bytes of tombstones that are not needed any more.
    pub tombstone_bytes_dropped: u64,
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

    /// Adds what is alive in a piece of a segment to `found`.
    pub fn scan(&self, segment_id: u64, piece: &Piece, found: &mut Found) {
        let start = piece.extent.offset;
        // SAFETY: the piece keeps its extent, and the bytes are published.
        let bytes = unsafe { self.objects.arena.published(start, piece.bytes) };
        let mut batch: Vec<(usize, u64, EntryView<'_>)> = Vec::with_capacity(BATCH);
        let mut entries = EntryIterator::new(bytes);
        loop {
            batch.clear();
            for item in entries.by_ref() {
                let (at, entry) = item.expect("published entries parse");
                let kind = entry.entry_type();
                if kind == EntryType::Object || kind == EntryType::Tombstone {
                    let hash = key_hash(entry.table_id(), entry.key());
                    self.objects.table.prefetch_bucket(hash);
                    batch.push((start + at, hash, entry));
                    if batch.len() == BATCH {
                        break;
                    }
                }
            }
            if batch.is_empty() {
                return;
            }
            for (offset, hash, entry) in &batch {
                self.judge(segment_id, *offset, *hash, entry, found);
            }
        }
    }

    fn judge(&self, segment_id: u64, at: usize, hash: u64, entry: &EntryView<'_>, out: &mut Found) {
        let tombstone = entry.entry_type() == EntryType::Tombstone;
        let alive = self.objects.table.refers_to(hash, at)
            || (tombstone && self.guards(entry, hash, segment_id));
        let bytes = entry.total_bytes() as u32;
        if alive {
            out.live.push(Live {
                offset: at,
                hash,
                timestamp: entry.timestamp(),
                bytes_and_kind: bytes | if tombstone { TOMBSTONE } else { 0 },
            });
        } else if tombstone {
            out.tombstone_bytes_dropped += u64::from(bytes);
        }
    }

    /// Moves an entry to `out`, which lies at `target` in the arena and belongs to the caller.
    /// Returns the bytes used: 0 if it has died meanwhile.
    pub fn relocate(
        &self,
        relocation: &Relocation<'_>,
        live: &Live,
        target: usize,
        out: &mut [u8],
    ) -> usize {
        // SAFETY: the caller holds the segment that the entry lies in.
        let entry = unsafe { self.objects.arena.entry(live.offset) };
        let used = self.copy(&entry, out);
        let moved = relocation.relocate(live.hash, live.offset, target);
        if moved && used != entry.total_bytes() {
            self.weigh_again(live.hash, &entry, used);
        }
        if moved || entry.entry_type() == EntryType::Tombstone {
            used
        } else {
            0
        }
    }

    /// Names that are gone were left out: its tablet has less to bear.
    fn weigh_again(&self, hash: u64, entry: &EntryView<'_>, used: usize) {
        let place = slot(hash);
        let owned = |tablet: &&Arc<Tablet>| tablet.range.contains(entry.table_id(), place);
        let tablet = self.tablets.iter().find(owned);
        if let (EntryType::Object, Some(tablet)) = (entry.entry_type(), tablet) {
            tablet.count(0, used as i64 - entry.total_bytes() as i64);
        }
    }

    fn copy(&self, entry: &EntryView<'_>, out: &mut [u8]) -> usize {
        let stale = entry.prior_count() > 0 && entry.prior().any(|id| !self.present.contains(id));
        if !stale && !entry.more() {
            let total = entry.total_bytes();
            let bytes = entry.bytes();
            out[..bytes.len()].copy_from_slice(bytes);
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

/// Fetches the entries that are moved next.
pub fn prefetch_ahead(objects: &Objects, live: &[Live], index: usize) {
    const AHEAD: usize = 16;
    if let Some(next) = live.get(index + AHEAD) {
        prefetch(objects.arena.pointer(next.offset));
        objects.table.prefetch_bucket(next.hash);
    }
}

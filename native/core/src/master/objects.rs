//! What requests and replay share: arena, hash table, segments, safe version.
//!
//! Rule: an entry in the table is the newest of its key; its bytes and its segment outlive its
//! slot. Locking order: serving state, then segments and arena.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::arena::Arena;
use super::hash_table::{HashTable, Slot};
use super::segment::Segment;
use crate::entry::{EntryType, EntryView};
use crate::status::Status;

/// The newest entry of a key, object or tombstone.
pub struct Current<'a> {
    /// Where the table refers to it.
    pub slot: Slot<'a>,
    /// Its place in the arena.
    pub offset: usize,
    /// Its bytes.
    pub entry: EntryView<'a>,
}

impl Current<'_> {
    /// Whether it is an object.
    #[inline]
    pub fn is_object(&self) -> bool {
        self.entry.entry_type() == EntryType::Object
    }
}

/// The segments in memory as they once were, for one thread; [`Objects::refresh`] brings it up to
/// date. Side segments, and segments that are cleaned but not yet released, count.
#[derive(Default)]
pub struct PresentSegments {
    generation: u64,
    /// Ascending.
    ids: Vec<u64>,
}

impl PresentSegments {
    /// Whether the segment was in memory.
    #[inline]
    pub fn contains(&self, id: u64) -> bool {
        self.ids.binary_search(&id).is_ok()
    }
}

/// See the file's head.
pub struct Objects {
    /// Server id of the master.
    pub log_id: u64,
    /// Log memory.
    pub arena: Arc<Arena>,
    /// From key hash to newest entry.
    pub table: HashTable,
    segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    /// Changed with `segments`, under its lock.
    segments_generation: AtomicU64,
    next_segment_id: AtomicU64,
    safe_version: AtomicU64,
    /// Objects and tombstones that replay has applied.
    pub replayed_entries: AtomicU64,
}

impl Objects {
    /// An empty store.
    ///
    /// # Errors
    /// `InvalidArgument` for an odd size, `OutOfMemory`.
    pub fn new(log_id: u64, memory_bytes: usize) -> Result<Self, Status> {
        Ok(Self {
            log_id,
            arena: Arc::new(Arena::new(memory_bytes)?),
            table: HashTable::new(memory_bytes)?,
            segments: Mutex::new(BTreeMap::new()),
            segments_generation: AtomicU64::new(1),
            next_segment_id: AtomicU64::new(1),
            safe_version: AtomicU64::new(1),
            replayed_entries: AtomicU64::new(0),
        })
    }

    /// Opens a segment of the log (with its position) or of a side log, leaving `keep_free`
    /// seglets.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn open_segment(
        &self,
        position: Option<u64>,
        keep_free: usize,
        timestamp: u32,
    ) -> Result<Arc<Segment>, Status> {
        let id = self.next_segment_id.fetch_add(1, Ordering::Relaxed);
        let segment = Segment::open(&self.arena, id, self.log_id, position, keep_free, timestamp)?;
        let segment = Arc::new(segment);
        let mut segments = self.segments.lock();
        segments.insert(id, Arc::clone(&segment));
        self.segments_generation.fetch_add(1, Ordering::Release);
        drop(segments);
        Ok(segment)
    }

    /// A segment in memory.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none with this id.
    pub fn segment(&self, id: u64) -> Result<Arc<Segment>, Status> {
        self.segments
            .lock()
            .get(&id)
            .cloned()
            .ok_or(Status::InvalidArgument)
    }

    /// Segments in memory.
    pub fn segment_count(&self) -> usize {
        self.segments.lock().len()
    }

    /// Brings `present` up to date: whoever has seen an entry knows its segment afterwards.
    #[inline]
    pub fn refresh(&self, present: &mut PresentSegments) {
        if self.segments_generation.load(Ordering::Acquire) != present.generation {
            let segments = self.segments.lock();
            present.generation = self.segments_generation.load(Ordering::Relaxed);
            present.ids.clear();
            present.ids.extend(segments.keys());
        }
    }

    /// Frees a segment.
    ///
    /// # Safety
    /// No slot of the table refers into it, and no reader is on its way there.
    pub unsafe fn free_segment(&self, id: u64) {
        let mut segments = self.segments.lock();
        let segment = segments.remove(&id).expect("a segment is freed once");
        self.segments_generation.fetch_add(1, Ordering::Release);
        drop(segments);
        // SAFETY: the caller's promise.
        unsafe { segment.free() };
    }

    /// The newest entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, table_id: u64, key: &[u8]) -> Option<Current<'_>> {
        let mut entry = None;
        let (slot, offset) = self.table.find(hash, |offset| {
            // SAFETY: the offset comes from a slot; segments are freed under the rules above.
            let candidate = unsafe { self.arena.entry(offset) };
            let same = candidate.table_id() == table_id && candidate.key() == key;
            entry = Some(candidate);
            same
        })?;
        Some(Current {
            slot,
            offset,
            entry: entry?,
        })
    }

    /// The next version of a key that the table does not know.
    #[inline]
    pub fn allocate_version(&self) -> u64 {
        self.safe_version.fetch_add(1, Ordering::Relaxed)
    }

    /// No version below `version` is allocated any more.
    #[inline]
    pub fn raise_safe_version(&self, version: u64) {
        self.safe_version.fetch_max(version, Ordering::Relaxed);
    }

    /// The next version that would be allocated.
    pub fn safe_version(&self) -> u64 {
        self.safe_version.load(Ordering::Relaxed)
    }
}

//! What requests, replay and the cleaner share: arena, hash table, segments, safe version.
//!
//! Rule: an entry in the table is the newest of its key; its bytes and its segment outlive its
//! slot, and a segment that leaves is kept until no reader can be on its way there (epochs).
//! Locking order: serving state, then segments, pins, retired, then the arena.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::arena::Arena;
use super::epoch::{Epochs, Pin};
use super::hash_table::{HashTable, Slot};
use super::log::Reserve;
use super::migration::NOTHING_HELD;
use super::present_segments::PresentSegments;
use super::segment::Segment;
use crate::entry::{EntryType, EntryView, SEGMENT_BYTES};
use crate::little_endian::u64_at;
use crate::status::Status;

/// A store whose live bytes take more of the usable memory is full.
const FULL_SHARE: f64 = 0.97;
/// Blocks that are never full: of the head, and of what the cleaner is moving to.
const OPEN_BLOCKS: usize = 2;

/// The newest entry of a key, object or tombstone.
#[derive(Clone, Copy)]
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

/// Whether two keys are equal. Most are short: a call of the library costs more than their words.
#[inline(always)]
fn same_key(left: &[u8], right: &[u8]) -> bool {
    let length = left.len();
    if length != right.len() || !(8..=64).contains(&length) {
        return left == right;
    }
    // The last word overlaps its predecessor.
    let mut differs = u64_at(left, length - 8) ^ u64_at(right, length - 8);
    let mut at = 0;
    while at + 8 < length {
        differs |= u64_at(left, at) ^ u64_at(right, at);
        at += 8;
    }
    differs == 0
}

/// See the file's head.
pub struct Objects {
    /// Server id of the master.
    pub log_id: u64,
    /// Log memory.
    pub arena: Arc<Arena>,
    /// Blocks of it that are kept.
    pub reserve: Reserve,
    /// From key hash to newest entry.
    pub table: HashTable,
    /// All segments in memory: of the log, of side logs, survivors, and those that were cleaned
    /// until no digest from which a recovery could start names them.
    segments: Mutex<BTreeMap<u64, Arc<Segment>>>,
    /// Changed with `segments`, under its lock.
    segments_generation: AtomicU64,
    /// Contents that replicas are being written from, by segment; None without backups.
    pinned: Option<Mutex<HashMap<u64, Arc<Segment>>>>,
    /// Out of reach for those who come after the epoch.
    retired: Mutex<Vec<(u64, Arc<Segment>)>>,
    /// Segments that have left, ever.
    released: AtomicU64,
    /// The cleaner leaves segments from this one on alone: a migration has yet to read them.
    pub held_from: AtomicU64,
    /// Memory is used up, and the cleaner cannot make room.
    full: AtomicBool,
    epochs: Epochs,
    next_segment_id: AtomicU64,
    survivor_id: AtomicU64,
    safe_version: AtomicU64,
    /// Objects and tombstones that replay has applied.
    pub replayed_entries: AtomicU64,
}

impl Objects {
    /// An empty store. `participants` take part in the epochs: the serving thread is 0,
    /// the others replay. With `replicated`, each segment is pinned from its opening.
    ///
    /// # Errors
    /// `InvalidArgument` for an odd size, `OutOfMemory`.
    pub fn new(
        log_id: u64,
        memory_bytes: usize,
        participants: usize,
        replicated: bool,
    ) -> Result<Self, Status> {
        Ok(Self {
            log_id,
            arena: Arc::new(Arena::new(memory_bytes)?),
            reserve: if replicated {
                Reserve::REPLICATED
            } else {
                Reserve::ALONE
            },
            table: HashTable::new(memory_bytes)?,
            segments: Mutex::new(BTreeMap::new()),
            segments_generation: AtomicU64::new(1),
            pinned: replicated.then(Mutex::default),
            retired: Mutex::new(Vec::new()),
            released: AtomicU64::new(0),
            held_from: AtomicU64::new(NOTHING_HELD),
            full: AtomicBool::new(false),
            epochs: Epochs::new(participants),
            next_segment_id: AtomicU64::new(1),
            survivor_id: AtomicU64::new(0),
            safe_version: AtomicU64::new(1),
            replayed_entries: AtomicU64::new(0),
        })
    }

    /// Keeps all that a participant can reach until the pin is dropped.
    #[inline]
    pub fn pin_epoch(&self, participant: usize) -> Pin<'_> {
        self.epochs.pin(participant)
    }

    /// Whether `open_segment` would find a block.
    pub fn can_open(&self, keep_free: usize) -> bool {
        if self.arena.free_blocks() <= keep_free {
            self.reclaim();
        }
        self.arena.free_blocks() > keep_free
    }

    /// Opens a segment of the log (with its position) or of a side log, leaving `keep_free`
    /// blocks.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn open_segment(
        &self,
        position: Option<u64>,
        keep_free: usize,
        timestamp: u32,
    ) -> Result<Arc<Segment>, Status> {
        if !self.can_open(keep_free) {
            // Refusals cost no ids.
            return Err(Status::OutOfMemory);
        }
        let id = self.reserve_segment_ids(1).start;
        self.open_segment_as(id, position, keep_free, timestamp)
    }

    /// Ids for the survivors of a pass that begins.
    pub fn reserve_survivor_ids(&self, count: u64) -> Range<u64> {
        let ids = self.reserve_segment_ids(count);
        self.survivor_id.fetch_max(ids.end, Ordering::AcqRel);
        ids
    }

    /// Survivors of passes that have begun have lower ids.
    pub fn survivor_id(&self) -> u64 {
        self.survivor_id.load(Ordering::Acquire)
    }

    fn reserve_segment_ids(&self, count: u64) -> Range<u64> {
        let first = self.next_segment_id.fetch_add(count, Ordering::Relaxed);
        first..first + count
    }

    /// `open_segment` with an id that was reserved.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn open_segment_as(
        &self,
        id: u64,
        position: Option<u64>,
        keep_free: usize,
        timestamp: u32,
    ) -> Result<Arc<Segment>, Status> {
        if self.arena.free_blocks() <= keep_free {
            self.reclaim();
        }
        let segment = Segment::open(&self.arena, id, self.log_id, position, keep_free, timestamp)?;
        let segment = Arc::new(segment);
        if let Some(pinned) = &self.pinned {
            pinned.lock().insert(id, Arc::clone(&segment));
        }
        let mut segments = self.segments.lock();
        segments.insert(id, Arc::clone(&segment));
        self.segments_generation.fetch_add(1, Ordering::Release);
        drop(segments);
        Ok(segment)
    }

    /// A segment in memory, as it is now.
    ///
    /// # Errors
    /// `InvalidArgument` if there is none with this id.
    pub fn segment(&self, id: u64) -> Result<Arc<Segment>, Status> {
        let segments = self.segments.lock();
        segments.get(&id).cloned().ok_or(Status::InvalidArgument)
    }

    /// The content that replicas of a segment are written from: the pinned one, if there is one.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no segment with this id.
    pub fn content(&self, id: u64) -> Result<Arc<Segment>, Status> {
        let pinned = self.pinned.as_ref().map(Mutex::lock);
        match pinned.as_ref().and_then(|pinned| pinned.get(&id)) {
            Some(segment) => Ok(Arc::clone(segment)),
            None => self.segment(id),
        }
    }

    /// Keeps a segment's content as it is until `unpin`.
    ///
    /// # Errors
    /// `InvalidArgument` if there is no segment with this id.
    pub fn pin(&self, id: u64) -> Result<Arc<Segment>, Status> {
        let Some(pinned) = &self.pinned else {
            return self.segment(id);
        };
        let mut pinned = pinned.lock();
        if let Some(segment) = pinned.get(&id) {
            return Ok(Arc::clone(segment));
        }
        let segment = self.segment(id)?;
        pinned.insert(id, Arc::clone(&segment));
        Ok(segment)
    }

    /// No replica of the segment is being written any more.
    pub fn unpin(&self, id: u64) {
        let unpinned = self.pinned.as_ref().map(|pinned| pinned.lock().remove(&id));
        // Memory goes back outside the lock.
        drop(unpinned);
    }

    /// Whether replicas are being written from this segment's content.
    pub fn is_pinned(&self, id: u64) -> bool {
        let pinned = self.pinned.as_ref().map(Mutex::lock);
        pinned.is_some_and(|pinned| pinned.contains_key(&id))
    }

    /// The lowest id in memory: no digest from which a recovery could start names an older segment.
    pub fn first_segment_id(&self) -> u64 {
        let first = self.segments.lock().keys().next().copied();
        first.unwrap_or_else(|| self.next_segment_id())
    }

    /// Segments that are opened from now on have no lower id, but for survivors.
    pub fn next_segment_id(&self) -> u64 {
        self.next_segment_id.load(Ordering::Relaxed)
    }

    /// Segments in memory.
    pub fn segment_count(&self) -> usize {
        self.segments.lock().len()
    }

    /// Brings `present` up to date: whoever has seen an entry knows its segment afterwards. Side
    /// segments, and segments that are cleaned but not yet released, count.
    #[inline]
    pub fn refresh(&self, present: &mut PresentSegments) {
        if self.segments_generation.load(Ordering::Acquire) != present.generation {
            let segments = self.segments.lock();
            present.generation = self.segments_generation.load(Ordering::Relaxed);
            present.fill(segments.keys().copied(), segments.len());
        }
    }

    /// All segments in memory, ascending by id.
    pub fn all_segments(&self) -> Vec<Arc<Segment>> {
        self.segments.lock().values().cloned().collect()
    }

    /// Puts what compaction has left in the place of a segment.
    pub fn replace_segment(&self, compacted: Arc<Segment>) {
        let mut segments = self.segments.lock();
        let known = segments.get_mut(&compacted.id);
        let known = known.expect("a segment that is compacted is in memory");
        let old = std::mem::replace(known, compacted);
        drop(segments);
        self.retire(old);
    }

    /// Takes segments out for good: nothing in the table refers to them any more, and no digest
    /// from which a recovery could start names them.
    pub fn release_segments(&self, ids: &[u64]) {
        let mut segments = self.segments.lock();
        let gone: Vec<_> = ids.iter().filter_map(|id| segments.remove(id)).collect();
        self.segments_generation.fetch_add(1, Ordering::Release);
        drop(segments);
        self.released
            .fetch_add(gone.len() as u64, Ordering::Relaxed);
        for segment in gone {
            self.unpin(segment.id);
            self.retire(segment);
        }
    }

    /// Whether so much is alive that cleaning would cost more than it is worth.
    pub fn overfull(&self, live_bytes: u64) -> bool {
        let blocks = self.arena.blocks() - self.reserve.writes - OPEN_BLOCKS;
        live_bytes as f64 > FULL_SHARE * (blocks * SEGMENT_BYTES) as f64
    }

    /// Whether nothing but removes makes room.
    #[inline]
    pub fn full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Sets what `full` says.
    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::Relaxed);
    }

    /// Segments that have left, ever.
    pub fn released(&self) -> u64 {
        self.released.load(Ordering::Relaxed)
    }

    fn retire(&self, segment: Arc<Segment>) {
        // Under the lock, so that epochs ascend in the list.
        let mut retired = self.retired.lock();
        retired.push((self.epochs.advance(), segment));
    }

    /// Whole blocks that will be free when readers have gone on.
    pub fn retired_blocks(&self) -> usize {
        let retired = self.retired.lock();
        let whole = |(_, segment): &&(u64, Arc<Segment>)| segment.capacity() == SEGMENT_BYTES;
        retired.iter().filter(whole).count()
    }

    /// Gives back the memory of segments that no reader can see any more; says whether some must
    /// wait still.
    pub fn reclaim(&self) -> bool {
        let mut retired = self.retired.lock();
        // Epochs ascend, so the first that has not passed ends it.
        let passed = retired.partition_point(|(epoch, _)| self.epochs.passed(*epoch));
        let gone: Vec<_> = retired.drain(..passed).collect();
        let waiting = !retired.is_empty();
        drop(retired);
        drop(gone);
        waiting
    }

    /// The newest entry of a key.
    #[inline]
    pub fn find(&self, hash: u64, table_id: u64, key: &[u8]) -> Option<Current<'_>> {
        let mut found = None;
        let (slot, offset) = self.table.find(hash, |offset| {
            found = self.entry_of(offset, table_id, key);
            found.is_some()
        })?;
        Some(Current {
            slot,
            offset,
            entry: found?,
        })
    }

    /// The entry that a slot refers to, if it has this key.
    #[inline(always)]
    pub fn entry_of(&self, offset: usize, table_id: u64, key: &[u8]) -> Option<EntryView<'_>> {
        // SAFETY: the offset comes from a slot; segments are freed under the rules above.
        let entry = unsafe { self.arena.entry(offset) };
        (entry.table_id() == table_id && same_key(entry.key(), key)).then_some(entry)
    }

    /// The next version of a key that the table does not know; for the serving thread.
    #[inline]
    pub fn allocate_version(&self) -> u64 {
        if self.table.replaying() {
            return self.safe_version.fetch_add(1, Ordering::Relaxed);
        }
        // Nobody else raises it: no need to wait for the stores before this one.
        let version = self.safe_version.load(Ordering::Relaxed);
        self.safe_version.store(version + 1, Ordering::Relaxed);
        version
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

//! The arena: all log memory of a master in one mapping, handed out in blocks of a segment's size.
//!
//! A block is a whole segment's memory, or is filled by the cleaner with *extents*: runs of seglets
//! that hold what is left of several compacted segments. A block is free again when its last
//! extent is gone; holes are not used before.
//!
//! Rules: the mapping lives as long as anybody holds the `Arc`, so a view of it never dangles; a
//! byte is written only by the owner of an unpublished range and read only after its publication
//! (a release store of a segment's end or of a hash table slot). Who may take the last blocks is
//! decided by the caller, who names how many must stay free.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::hash_table::prefetch;
use crate::entry::{EntryView, HEADER_BYTES, SEGLET_BYTES, SEGMENT_BYTES};
use crate::mapping::Mapping;
use crate::status::Status;

/// Seglets of a block.
pub const SEGMENT_SEGLETS: usize = SEGMENT_BYTES / SEGLET_BYTES;

/// What stands for "no position" in a seglet of a side segment.
const SIDE_POSITION: u64 = u64::MAX;

/// What the arena knows of the segment that a seglet belongs to.
#[derive(Default)]
struct Seglet {
    /// 0: free.
    segment_id: AtomicU64,
    /// Log position of the seglet's first byte, or `SIDE_POSITION`.
    position: AtomicU64,
    /// The first seglet of its run.
    first: AtomicUsize,
    /// In the first seglet of a run: bytes of the whole run that are known to be dead.
    dead_bytes: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Block {
    used_seglets: usize,
    /// More extents will be put here.
    filling: bool,
}

struct Blocks {
    all: Box<[Block]>,
    /// Used as a stack: the memory that was used last is the warmest.
    free: Vec<usize>,
}

/// Log memory with its allocator.
pub struct Arena {
    memory: Mapping,
    seglets: Box<[Seglet]>,
    blocks: Mutex<Blocks>,
    /// Changed under the lock of `blocks` only.
    free_count: AtomicUsize,
    /// Changed likewise.
    taken_count: AtomicU64,
}

/// A run of seglets of one segment, given back when it is dropped: whoever holds it may read it.
pub struct Extent {
    arena: Arc<Arena>,
    /// First byte in the arena.
    pub offset: usize,
    /// Whole seglets.
    pub capacity: usize,
}

impl Extent {
    /// Bytes in it that are known to be dead.
    pub fn dead_bytes(&self) -> u64 {
        let first = &self.arena.seglets[self.offset / SEGLET_BYTES];
        first.dead_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        self.arena.release(self.offset, self.capacity);
    }
}

impl Arena {
    /// An arena of `bytes`, a multiple of the segment size.
    ///
    /// # Errors
    /// `InvalidArgument` for another size, `OutOfMemory`.
    pub fn new(bytes: usize) -> Result<Self, Status> {
        if bytes == 0 || !bytes.is_multiple_of(SEGMENT_BYTES) || bytes / 8 >= 1 << 46 {
            return Err(Status::InvalidArgument);
        }
        let count = bytes / SEGMENT_BYTES;
        Ok(Self {
            memory: Mapping::reserve(bytes)?,
            seglets: (0..bytes / SEGLET_BYTES)
                .map(|_| Seglet::default())
                .collect(),
            blocks: Mutex::new(Blocks {
                all: vec![Block::default(); count].into_boxed_slice(),
                free: (0..count).rev().collect(),
            }),
            free_count: AtomicUsize::new(count),
            taken_count: AtomicU64::new(0),
        })
    }

    fn take_block(&self, keep_free: usize, filling: bool) -> Result<usize, Status> {
        let mut blocks = self.blocks.lock();
        if blocks.free.len() <= keep_free {
            return Err(Status::OutOfMemory);
        }
        let index = blocks.free.pop().ok_or(Status::OutOfMemory)?;
        self.free_count.store(blocks.free.len(), Ordering::Relaxed);
        self.taken_count.fetch_add(1, Ordering::Relaxed);
        blocks.all[index].filling = filling;
        Ok(index * SEGMENT_BYTES)
    }

    /// Takes a block for a segment, provided that `keep_free` others remain. `position` is the log
    /// position of the first byte; a side segment has none.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn allocate(
        self: &Arc<Self>,
        keep_free: usize,
        segment_id: u64,
        position: Option<u64>,
    ) -> Result<Extent, Status> {
        let offset = self.take_block(keep_free, false)?;
        Ok(self.claim(offset, SEGMENT_BYTES, segment_id, position))
    }

    /// Takes a block to be filled with extents by `claim`; `end_filling` ends that.
    ///
    /// # Errors
    /// `OutOfMemory` if fewer than `keep_free` others would remain.
    pub fn begin_filling(&self, keep_free: usize) -> Result<usize, Status> {
        self.take_block(keep_free, true)
    }

    /// No more extents are put into the block at `offset`.
    pub fn end_filling(&self, offset: usize) {
        let mut blocks = self.blocks.lock();
        let block = &mut blocks.all[offset / SEGMENT_BYTES];
        assert!(block.filling, "a block is filled once");
        block.filling = false;
        self.free_if_unused(&mut blocks, offset / SEGMENT_BYTES);
    }

    /// Gives whole seglets of a block that the caller has taken to a segment.
    pub fn claim(
        self: &Arc<Self>,
        offset: usize,
        capacity: usize,
        segment_id: u64,
        position: Option<u64>,
    ) -> Extent {
        assert!(
            segment_id > 0 && capacity > 0 && (offset | capacity).is_multiple_of(SEGLET_BYTES),
            "a run has whole seglets and an owner"
        );
        let first = offset / SEGLET_BYTES;
        let count = capacity / SEGLET_BYTES;
        self.blocks.lock().all[offset / SEGMENT_BYTES].used_seglets += count;
        for (step, seglet) in self.seglets[first..first + count].iter().enumerate() {
            let start = position.map_or(SIDE_POSITION, |at| at + (step * SEGLET_BYTES) as u64);
            seglet.position.store(start, Ordering::Relaxed);
            seglet.first.store(first, Ordering::Relaxed);
            seglet.dead_bytes.store(0, Ordering::Relaxed);
            seglet.segment_id.store(segment_id, Ordering::Release);
        }
        Extent {
            arena: Arc::clone(self),
            offset,
            capacity,
        }
    }

    fn release(&self, offset: usize, capacity: usize) {
        let first = offset / SEGLET_BYTES;
        let count = capacity / SEGLET_BYTES;
        for seglet in &self.seglets[first..first + count] {
            let owner = seglet.segment_id.swap(0, Ordering::AcqRel);
            assert!(owner != 0, "only a used seglet is released");
        }
        let mut blocks = self.blocks.lock();
        blocks.all[offset / SEGMENT_BYTES].used_seglets -= count;
        self.free_if_unused(&mut blocks, offset / SEGMENT_BYTES);
    }

    fn free_if_unused(&self, blocks: &mut Blocks, index: usize) {
        let block = blocks.all[index];
        if block.used_seglets == 0 && !block.filling {
            blocks.free.push(index);
            self.free_count.store(blocks.free.len(), Ordering::Relaxed);
        }
    }

    /// Bytes of a block that belong to segments.
    pub fn claimed_bytes(&self, block: usize) -> usize {
        self.blocks.lock().all[block].used_seglets * SEGLET_BYTES
    }

    /// Free blocks.
    pub fn free_blocks(&self) -> usize {
        self.free_count.load(Ordering::Relaxed)
    }

    /// Blocks taken, ever: the clock by which segments age.
    pub fn taken_blocks(&self) -> u64 {
        self.taken_count.load(Ordering::Relaxed)
    }

    /// All blocks.
    pub fn blocks(&self) -> usize {
        self.bytes() / SEGMENT_BYTES
    }

    /// Bytes of log memory.
    pub fn bytes(&self) -> usize {
        self.seglets.len() * SEGLET_BYTES
    }

    /// See [`Mapping::populate`].
    pub fn populate(&self, offset: usize, bytes: usize) {
        self.memory.populate(offset, bytes);
    }

    /// Gives all pages back to the system; for a master that is closed.
    pub fn release_pages(&self) {
        self.memory.release_pages();
    }

    /// Start of the bytes at `offset`.
    ///
    /// # Panics
    /// If `offset` lies outside.
    #[inline(always)]
    pub fn pointer(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes(), "offset lies in the arena");
        // SAFETY: checked above.
        unsafe { self.memory.base().add(offset) }
    }

    /// Published bytes.
    ///
    /// # Safety
    /// The range is published and its segment is not freed while the result is in use.
    #[inline]
    pub unsafe fn published(&self, offset: usize, length: usize) -> &[u8] {
        assert!(offset + length <= self.bytes(), "range lies in the arena");
        // SAFETY: in bounds; nobody writes published bytes (caller's promise).
        unsafe { std::slice::from_raw_parts(self.memory.base().add(offset), length) }
    }

    /// Bytes that only the caller knows of.
    ///
    /// # Safety
    /// The range belongs to the caller alone until he publishes it.
    #[inline]
    #[allow(clippy::mut_from_ref)] // exclusive by the caller's promise, not by the type
    pub unsafe fn unpublished(&self, offset: usize, length: usize) -> &mut [u8] {
        assert!(offset + length <= self.bytes(), "range lies in the arena");
        // SAFETY: in bounds; exclusive (caller's promise).
        unsafe { std::slice::from_raw_parts_mut(self.memory.base().add(offset), length) }
    }

    /// The published entry at `offset`.
    ///
    /// # Safety
    /// `offset` came from a hash table slot or a segment of which nothing was freed since.
    #[inline(always)]
    pub unsafe fn entry(&self, offset: usize) -> EntryView<'_> {
        // SAFETY: a published entry has at least its header.
        let header = unsafe { self.published(offset, HEADER_BYTES) };
        let length = EntryView::length(header);
        // SAFETY: an entry is published as a whole.
        let bytes = unsafe { self.published(offset, length) };
        EntryView::parse(bytes).expect("published entries parse")
    }

    /// Fetches what is known of the segment that holds `offset`.
    #[inline(always)]
    pub fn prefetch_seglet(&self, offset: usize) {
        prefetch(std::ptr::from_ref(&self.seglets[offset / SEGLET_BYTES]).cast());
    }

    /// Segment that holds `offset`; 0 if it is free.
    #[inline]
    pub fn segment_id(&self, offset: usize) -> u64 {
        self.seglets[offset / SEGLET_BYTES]
            .segment_id
            .load(Ordering::Acquire)
    }

    /// Log position of the end of an entry at `offset`; 0 in a side segment.
    #[inline]
    pub fn end_position(&self, offset: usize, entry_bytes: usize) -> u64 {
        match self.seglets[offset / SEGLET_BYTES]
            .position
            .load(Ordering::Relaxed)
        {
            SIDE_POSITION => 0,
            start => start + (offset % SEGLET_BYTES + entry_bytes) as u64,
        }
    }

    /// Counts bytes as dead: of an object, or of what was adopted and has no task.
    #[inline]
    pub fn count_dead(&self, offset: usize, entry_bytes: usize) {
        // One counter for a run: the writer has it in its cache, the cleaner reads few of them.
        let first = self.seglets[offset / SEGLET_BYTES]
            .first
            .load(Ordering::Relaxed);
        self.seglets[first]
            .dead_bytes
            .fetch_add(entry_bytes as u64, Ordering::Relaxed);
    }

    /// Bytes in all used seglets that are known to be dead.
    pub fn dead_bytes(&self) -> u64 {
        let used = |seglet: &&Seglet| seglet.segment_id.load(Ordering::Relaxed) != 0;
        let dead = |seglet: &Seglet| seglet.dead_bytes.load(Ordering::Relaxed);
        self.seglets.iter().filter(used).map(dead).sum()
    }

    /// A block that is free and used, or whose seglets are counted wrongly.
    pub fn wrong_block(&self) -> Option<usize> {
        let blocks = self.blocks.lock();
        let owned = |seglet: &&Seglet| seglet.segment_id.load(Ordering::Acquire) != 0;
        let mut seglets = self.seglets.chunks(SEGMENT_SEGLETS);
        let wrong = (0..blocks.all.len()).find(|index| {
            let Block {
                used_seglets,
                filling,
            } = blocks.all[*index];
            let of_block = seglets.next().unwrap_or(&[]);
            let listed = blocks.free.iter().filter(|free| *free == index).count();
            used_seglets != of_block.iter().filter(owned).count()
                || (listed == 1) != (used_seglets == 0 && !filling)
                || listed > 1
        });
        let counted = self.free_count.load(Ordering::Relaxed) == blocks.free.len();
        wrong.or((!counted).then_some(0))
    }
}

//! The arena: all log memory of a master in one mapping, handed out as runs of seglets.
//!
//! Rules: the mapping lives as long as anybody holds the `Arc`, so a view of it never dangles; a
//! byte is written only by the owner of an unpublished range and read only after its publication
//! (a release store of a segment's end or of a hash table slot). Who may take the last runs is
//! decided by the caller, who names how many must stay free.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::entry::{EntryView, HEADER_BYTES, SEGLET_BYTES, SEGMENT_BYTES};
use crate::mapping::Mapping;
use crate::status::Status;

/// Seglets of a full segment.
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
    /// Bytes of dead objects that start here.
    dead_bytes: AtomicU64,
}

/// Log memory with its allocator.
pub struct Arena {
    memory: Mapping,
    seglets: Box<[Seglet]>,
    used: Mutex<Vec<bool>>,
    /// Changed under the lock of `used` only.
    free_count: AtomicUsize,
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
        let count = bytes / SEGLET_BYTES;
        Ok(Self {
            memory: Mapping::reserve(bytes)?,
            seglets: (0..count).map(|_| Seglet::default()).collect(),
            used: Mutex::new(vec![false; count]),
            free_count: AtomicUsize::new(count),
        })
    }

    /// Takes `seglets` contiguous seglets for a segment and returns their offset, provided that
    /// `keep_free` seglets remain. `position` is the log position of the first byte; a side segment
    /// has none.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn allocate(
        &self,
        seglets: usize,
        keep_free: usize,
        segment_id: u64,
        position: Option<u64>,
    ) -> Result<usize, Status> {
        assert!(
            seglets > 0 && segment_id > 0,
            "a run has seglets and an owner"
        );
        let mut used = self.used.lock();
        if self.free_seglets() < seglets + keep_free {
            return Err(Status::OutOfMemory);
        }
        let mut run = 0;
        for index in 0..used.len() {
            run = if used[index] { 0 } else { run + 1 };
            if run == seglets {
                let first = index + 1 - seglets;
                used[first..=index].fill(true);
                self.free_count.fetch_sub(seglets, Ordering::Relaxed);
                for (step, seglet) in self.seglets[first..=index].iter().enumerate() {
                    let at = position
                        .map_or(SIDE_POSITION, |start| start + (step * SEGLET_BYTES) as u64);
                    seglet.position.store(at, Ordering::Relaxed);
                    seglet.dead_bytes.store(0, Ordering::Relaxed);
                    seglet.segment_id.store(segment_id, Ordering::Release);
                }
                return Ok(first * SEGLET_BYTES);
            }
        }
        Err(Status::OutOfMemory)
    }

    /// Returns a run; nothing may refer into it any more.
    pub fn release(&self, offset: usize, seglets: usize) {
        let first = offset / SEGLET_BYTES;
        let mut used = self.used.lock();
        for index in first..first + seglets {
            assert!(used[index], "only a used seglet is released");
            used[index] = false;
            self.seglets[index].segment_id.store(0, Ordering::Release);
        }
        self.free_count.fetch_add(seglets, Ordering::Relaxed);
    }

    /// Free seglets.
    pub fn free_seglets(&self) -> usize {
        self.free_count.load(Ordering::Relaxed)
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
    #[inline]
    pub unsafe fn entry(&self, offset: usize) -> EntryView<'_> {
        // SAFETY: a published entry has at least its header.
        let header = unsafe { self.published(offset, HEADER_BYTES) };
        let length = EntryView::length(header);
        // SAFETY: an entry is published as a whole.
        let bytes = unsafe { self.published(offset, length) };
        EntryView::parse(bytes).expect("published entries parse")
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

    /// Counts an object as dead.
    #[inline]
    pub fn count_dead(&self, offset: usize, entry_bytes: usize) {
        let seglet = &self.seglets[offset / SEGLET_BYTES];
        seglet
            .dead_bytes
            .fetch_add(entry_bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of dead objects in all used seglets.
    pub fn dead_bytes(&self) -> u64 {
        let used = |seglet: &&Seglet| seglet.segment_id.load(Ordering::Relaxed) != 0;
        let dead = |seglet: &Seglet| seglet.dead_bytes.load(Ordering::Relaxed);
        self.seglets.iter().filter(used).map(dead).sum()
    }
}

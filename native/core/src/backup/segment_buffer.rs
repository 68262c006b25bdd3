//! 8 MiB buffers aligned for O_DIRECT, recycled through a pool because fresh memory is slow.
//!
//! Rule: a buffer is append-only while shared. Bytes below the owner's `received` length never
//! change until the last reference is gone, so readers need no lock. The pool keeps at most
//! `IDLE_MAX` idle buffers; how many are in use is bounded by their users.

use crate::backup::frame::BLOCK_BYTES;
use crate::entry::SEGMENT_BYTES;
use crate::mapping::Mapping;
use crate::status::Status;
use parking_lot::Mutex;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

/// Idle buffers kept; more are open at once only when many masters recover.
const IDLE_MAX: usize = 24;
/// Buffers that have their memory before the first segment is opened: what a recovery opens at
/// once on a small cluster. Clearing fresh pages was a fifth of such a recovery's processor time.
const WARM: usize = 12;

/// Zero-filled memory that starts at a multiple of a block.
pub(super) struct AlignedBytes {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is owned by this value alone and has no thread affinity.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access goes through `&self` slices or SegmentBuffer's rule.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `length` zero bytes; a positive multiple of a block.
    pub fn new(length: usize) -> Self {
        let layout = Self::layout(length);
        // SAFETY: the layout has a size above zero, which `layout` asserts.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else {
            handle_alloc_error(layout)
        };
        Self { start, length }
    }

    fn layout(length: usize) -> Layout {
        assert!(
            length > 0 && length.is_multiple_of(BLOCK_BYTES),
            "whole blocks"
        );
        Layout::from_size_align(length, BLOCK_BYTES).expect("a block is a power of two")
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` points to `length` initialised bytes owned by self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` excludes every other reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.length)) }
    }
}

/// Idle buffers.
pub(super) struct BufferPool {
    idle: Mutex<Vec<Mapping>>,
}

impl BufferPool {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Makes the first buffers, memory included, off the threads that serve.
    pub fn warm(&self) {
        for _ in 0..WARM {
            let Ok(memory) = Mapping::reserve(SEGMENT_BYTES) else {
                return;
            };
            memory.populate(0, SEGMENT_BYTES);
            self.give_back(memory);
        }
    }

    /// A buffer with arbitrary contents.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn take(self: &Arc<Self>) -> Result<SegmentBuffer, Status> {
        let idle = self.idle.lock().pop();
        let memory = match idle {
            Some(memory) => memory,
            None => Mapping::reserve(SEGMENT_BYTES)?,
        };
        Ok(SegmentBuffer {
            memory: Some(memory),
            pool: Arc::clone(self),
        })
    }

    fn give_back(&self, memory: Mapping) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(memory);
        }
    }
}

/// One segment's memory; goes back to the pool when dropped.
pub(super) struct SegmentBuffer {
    /// Present until drop.
    memory: Option<Mapping>,
    pool: Arc<BufferPool>,
}

impl SegmentBuffer {
    fn memory(&self) -> &Mapping {
        self.memory.as_ref().expect("present until drop")
    }

    /// Everything, for a sole owner.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let base = self.memory().base();
        // SAFETY: initialised memory of this length, and `&mut self` excludes other references.
        unsafe { std::slice::from_raw_parts_mut(base, SEGMENT_BYTES) }
    }

    /// Appends at `offset`.
    ///
    /// # Safety
    /// One appender at a time, and nobody has or takes a slice that reaches beyond `offset`
    /// before this returns.
    pub unsafe fn append(&self, offset: usize, bytes: &[u8]) {
        let memory = self.memory();
        assert!(
            offset + bytes.len() <= SEGMENT_BYTES,
            "append stays inside the segment"
        );
        // SAFETY: the range is inside the allocation and, by the contract, not borrowed.
        unsafe {
            let target = memory.base().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
    }

    /// The first `length` bytes.
    ///
    /// # Safety
    /// Nobody appends below `length` while the slice lives.
    pub unsafe fn prefix(&self, length: usize) -> &[u8] {
        let memory = self.memory();
        assert!(length <= SEGMENT_BYTES, "prefix stays inside the segment");
        // SAFETY: initialised memory inside the allocation that, by the contract, does not change.
        unsafe { std::slice::from_raw_parts(memory.base(), length) }
    }
}

impl Drop for SegmentBuffer {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else {
            return;
        };
        self.pool.give_back(memory);
    }
}

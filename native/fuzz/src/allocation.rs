//! Counts what a decoder asks of the allocator, so that a target can state: input of this size
//! never costs more memory than that.
//!
//! Rule: the counters belong to the calling thread; other threads of a test do not disturb them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static ALLOCATED_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // A thread that is ending has no counter any more, and nobody asks.
    let _counted = ALLOCATED_BYTES.try_with(|sum| sum.set(sum.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing, since
// the counter is a constant-initialised cell without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes.saturating_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs `work` and asserts that this thread allocated at most `bytes_max` meanwhile.
pub fn at_most<T>(bytes_max: usize, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATED_BYTES.get();
    let result = work();
    let allocated = ALLOCATED_BYTES.get() - before;
    assert!(
        allocated <= bytes_max,
        "allocated {allocated} bytes, at most {bytes_max} are justified"
    );
    result
}

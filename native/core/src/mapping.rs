//! Large memory straight from the system: log memory, the hash table, segment buffers.
//!
//! Rule: anonymous pages, hence initialised (zeros), aligned to huge pages, unmapped on drop.

use std::ptr::NonNull;

use crate::status::Status;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Anonymous zeroed memory, aligned to huge pages, unmapped on drop.
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    mapped: NonNull<u8>,
    mapped_bytes: usize,
}

// SAFETY: a mapping is plain memory; who may touch which part when is the users' contract.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `bytes`; pages get their memory at first touch.
    ///
    /// # Errors
    /// `OutOfMemory` if the address space or its limit does not allow it.
    pub fn reserve(bytes: usize) -> Result<Self, Status> {
        let mapped_bytes = bytes
            .checked_add(HUGE_PAGE_BYTES)
            .ok_or(Status::OutOfMemory)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(Status::OutOfMemory);
        }
        let mapped = NonNull::new(mapped.cast::<u8>()).ok_or(Status::OutOfMemory)?;
        let shift = mapped.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: shift < HUGE_PAGE_BYTES, the surplus of the mapping.
        let base = unsafe { mapped.add(shift) };
        // SAFETY: the range lies within the mapping. A kernel without huge pages refuses, which
        // costs speed only; hence the result does not matter.
        let _huge = unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Self {
            base,
            bytes,
            mapped,
            mapped_bytes,
        })
    }

    /// First byte.
    #[inline(always)]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Gives memory to the pages of [offset, offset + bytes) without changing what they hold. A
    /// kernel that cannot (before 5.14) costs speed only, at the first use of each page.
    pub fn populate(&self, offset: usize, bytes: usize) {
        let end = self.bytes.min(offset.saturating_add(bytes));
        if offset >= end {
            return;
        }
        // SAFETY: the range lies within the mapping, and populating changes no contents.
        let _populated = unsafe {
            let start = self.base.as_ptr().add(offset).cast();
            libc::madvise(start, end - offset, libc::MADV_POPULATE_WRITE)
        };
    }

    /// Gives the pages back to the system; they read as zeros from now on.
    pub fn release_pages(&self) {
        // SAFETY: the range is ours; anonymous pages come back as zeros.
        let released =
            unsafe { libc::madvise(self.base().cast(), self.bytes, libc::MADV_DONTNEED) };
        assert!(released == 0, "pages of an own mapping can be released");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `reserve`, and nobody holds a reference any more.
        let unmapped = unsafe { libc::munmap(self.mapped.as_ptr().cast(), self.mapped_bytes) };
        debug_assert_eq!(unmapped, 0, "an own mapping can be unmapped");
    }
}

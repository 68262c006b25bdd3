//! Memory on huge pages, touched before anything is measured on it.

use rekindle_core::status::Status;

use crate::Failure;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Anonymous memory, unmapped on drop.
pub struct HugeMemory {
    mapped: *mut u8,
    mapped_bytes: usize,
    start: usize,
    bytes: usize,
}

impl HugeMemory {
    /// Maps and touches `bytes`.
    ///
    /// # Errors
    /// The system has no memory.
    pub fn new(bytes: usize) -> Result<Self, Failure> {
        let mapped_bytes = bytes + HUGE_PAGE_BYTES;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let mapped = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped_bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(Failure::Core("memory", Status::OutOfMemory));
        }
        let mapped = mapped.cast::<u8>();
        let start = mapped.align_offset(HUGE_PAGE_BYTES);
        // SAFETY: start < HUGE_PAGE_BYTES, the surplus of the mapping. Without huge pages it is
        // slower only, hence the result does not matter.
        let _huge = unsafe { libc::madvise(mapped.add(start).cast(), bytes, libc::MADV_HUGEPAGE) };
        let mut memory = Self {
            mapped,
            mapped_bytes,
            start,
            bytes,
        };
        memory.bytes_mut().fill(1);
        Ok(memory)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and initialised by the kernel, ours until the drop.
        unsafe { std::slice::from_raw_parts(self.mapped.add(self.start), self.bytes) }
    }

    /// All of it, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.mapped.add(self.start), self.bytes) }
    }
}

/// Copies so that neither the target nor what was there stays in a cache.
///
/// # Panics
/// If the lengths differ or are no multiples of 8.
pub fn copy_past_caches(to: &mut [u8], from: &[u8]) {
    assert!(
        to.len() == from.len(),
        "a copy has the length of its source"
    );
    let (words, rest) = to.as_chunks_mut::<8>();
    assert!(rest.is_empty(), "entries are padded to 8");
    for (to, from) in words.iter_mut().zip(from.as_chunks::<8>().0) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: 8 bytes that are borrowed mutably; the instruction needs no alignment.
        unsafe {
            std::arch::x86_64::_mm_stream_si64(to.as_mut_ptr().cast(), i64::from_le_bytes(*from));
        }
        #[cfg(not(target_arch = "x86_64"))]
        to.copy_from_slice(from);
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: orders the stores above before everything that follows.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

impl Drop for HugeMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; no slice outlives `self`.
        let unmapped = unsafe { libc::munmap(self.mapped.cast(), self.mapped_bytes) };
        assert!(unmapped == 0, "an own mapping can be unmapped");
    }
}

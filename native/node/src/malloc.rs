//! Keeps freed buffers of the process in its own hands.
//!
//! Messages and pieces of segments are buffers of 64 KiB to 8 MiB that live for milliseconds. By
//! default the C library maps and unmaps such buffers one by one, and each page is cleared by the
//! kernel at its next use, which costs more than moving the bytes. The price is that the process
//! keeps the memory of its busiest moment.

const MMAP_THRESHOLD_BYTES: libc::c_int = 32 << 20;
const TRIM_THRESHOLD_BYTES: libc::c_int = 1 << 30;
const TOP_PAD_BYTES: libc::c_int = 16 << 20;
const ARENAS_MAX: libc::c_int = 2;

#[napi_derive::module_init]
fn keep_freed_buffers() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (libc::M_TOP_PAD, TOP_PAD_BYTES),
        (libc::M_ARENA_MAX, ARENAS_MAX),
    ] {
        // SAFETY: sets a parameter of the allocator; a refusal leaves the default, which is slower
        // only.
        let _accepted = unsafe { libc::mallopt(parameter, value) };
    }
}

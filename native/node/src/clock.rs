//! The clock of read leases: milliseconds since the machine started, suspended time included.
//!
//! Node has `CLOCK_MONOTONIC` only, which stands still while a machine is suspended: a master that
//! wakes with it would take leases for valid that its backups gave up long ago.

use napi_derive::napi;
use rekindle_core::status::Status;

use crate::errors::{self, Result};

/// `CLOCK_BOOTTIME`, with a fraction. Comparable between processes of one machine only.
#[napi]
pub fn boot_time_ms() -> Result<f64> {
    errors::guard("bootTimeMs", now_ms)
}

pub(crate) fn now_ms() -> std::result::Result<f64, Status> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to the structure that is passed.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    if failed != 0 {
        return Err(Status::Internal);
    }
    Ok(time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6)
}

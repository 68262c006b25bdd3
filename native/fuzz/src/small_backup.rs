//! The storage that targets work on: a few frames in a scratch directory, calls that wait.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rekindle_core::backup::frame_file::Faults;
use rekindle_core::backup::{BackupOptions, BackupStorage, Completion, Durability, StorageError};
use rekindle_core::crc32c::crc32c;
use rekindle_core::status::Status;

/// BACKUP_WRITE flags.
pub mod flag {
    /// Begins a replica.
    pub const OPEN: u32 = 1;
    /// Ends it.
    pub const CLOSE: u32 = 2;
    /// Read first by a recovery.
    pub const PRIMARY: u32 = 4;
    /// A certificate is there.
    pub const CERTIFICATE: u32 = 8;
}

const LIMIT: Duration = Duration::from_secs(20);

/// Opens a storage whose writes are done when they are in memory.
///
/// # Errors
/// What the storage says.
pub fn open(directory: &Path, frames_max: u32) -> Result<BackupStorage, StorageError> {
    let options = BackupOptions {
        directory: directory.to_path_buf(),
        frames_max,
        durability: Durability::Replicated,
        flush_interval: Duration::from_millis(1),
        compress: true,
        piece_cache_bytes: 16 << 20,
        scrub_bytes_per_second: 0,
    };
    let storage = BackupStorage::open(options, Arc::new(Faults::default()))?;
    storage.set_sink(Box::new(|_| ())); // else the answers would pile up for a receiver to come
    Ok(storage)
}

/// Runs a call that answers through a completion and waits for the answer.
///
/// # Panics
/// If there is none in time.
pub fn wait(call: impl FnOnce(Completion)) -> Result<(), Status> {
    let shared: Arc<(Mutex<Option<_>>, Condvar)> = Arc::default();
    let setter = Arc::clone(&shared);
    call(Box::new(move |outcome| {
        *setter.0.lock() = Some(outcome);
        setter.1.notify_all();
    }));
    let mut outcome = shared.0.lock();
    while outcome.is_none() {
        let late = shared.1.wait_for(&mut outcome, LIMIT).timed_out();
        assert!(!late, "the storage answers in time");
    }
    outcome.take().expect("just seen")
}

/// Waits until a gauge or counter says so.
///
/// # Panics
/// If it does not in time.
pub fn until(storage: &BackupStorage, reached: impl Fn(&dyn Fn(&str) -> f64) -> bool) {
    let end = Instant::now() + LIMIT;
    loop {
        let stats = storage.stats();
        if reached(&|name| stats[name]) {
            return;
        }
        assert!(Instant::now() < end, "not reached in time: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The fields of a BACKUP_WRITE body.
#[derive(Clone, Copy, Debug, Default)]
pub struct Write<'a> {
    /// Log.
    pub master_id: u64,
    /// Segment.
    pub segment_id: u64,
    /// Epoch.
    pub epoch: u64,
    /// Where the bytes go.
    pub offset: u32,
    /// Bytes that the certificate names, and their checksum.
    pub certificate: (u32, u32),
    /// See [`flag`].
    pub flags: u32,
    /// The data.
    pub bytes: &'a [u8],
}

impl Write<'_> {
    /// A write of `all[from..]` with a certificate of `all`.
    pub fn certified(id: (u64, u64), all: &[u8], from: usize, flags: u32) -> Write<'_> {
        Write {
            master_id: id.0,
            segment_id: id.1,
            epoch: 1,
            offset: from as u32,
            certificate: (all.len() as u32, crc32c(all)),
            flags: flags | flag::CERTIFICATE,
            bytes: &all[from..],
        }
    }

    /// The body.
    pub fn body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for field in [self.master_id, self.segment_id, self.epoch] {
            out.extend(field.to_le_bytes());
        }
        let (end, checksum) = self.certificate;
        for field in [
            self.offset,
            self.bytes.len() as u32,
            end,
            checksum,
            self.flags,
            0,
        ] {
            out.extend(field.to_le_bytes());
        }
        out.extend_from_slice(self.bytes);
        out
    }
}

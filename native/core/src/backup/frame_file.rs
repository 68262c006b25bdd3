//! The file of frames: aligned reads and writes with O_DIRECT, and the faults that tests inject.
//!
//! Falls back to buffered I/O where the file system refuses O_DIRECT; `is_direct` says which. A
//! failed write or sync is reported once and never repeated here: what to give up is the caller's
//! decision.

use crate::backup::frame::{BLOCK_BYTES, FRAME_BYTES, frame_offset};
use crate::backup::segment_buffer::AlignedBytes;
use crate::backup::write_queue::{BlockWrite, WriteQueue};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// Disk space is reserved this many frames at a time.
const GROWTH_FRAMES: u32 = 8;

/// Stands between the storage and the file: a disk with a volatile cache, a slow one.
pub trait Medium: Send + Sync {
    /// Instead of the write.
    ///
    /// # Errors
    /// What the storage shall see.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Instead of fdatasync.
    ///
    /// # Errors
    /// What the storage shall see.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// A disk that fails on request; compiled in always so that tests run the shipped code. Counters
/// below zero mean "never".
pub struct Faults {
    medium: Option<Arc<dyn Medium>>,
    writes_left: AtomicI64,
    syncs_left: AtomicI64,
    reads_fail: AtomicBool,
    permanent: AtomicBool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            medium: None,
            writes_left: AtomicI64::new(-1),
            syncs_left: AtomicI64::new(-1),
            reads_fail: AtomicBool::new(false),
            permanent: AtomicBool::new(false),
        }
    }
}

impl Faults {
    /// Whether writes have to be made one by one, because one of them may be made to fail.
    fn watch_writes(&self) -> bool {
        self.medium.is_some() || self.writes_left.load(Ordering::SeqCst) >= 0
    }

    /// All writes and syncs go through `medium`.
    pub fn over(medium: Arc<dyn Medium>) -> Self {
        Self {
            medium: Some(medium),
            ..Self::default()
        }
    }

    /// The write after `count` more is torn in the middle and fails; if `permanent`, so does
    /// everything after it, as if the machine had died there.
    pub fn fail_write_after(&self, count: u32, permanent: bool) {
        self.permanent.store(permanent, Ordering::SeqCst);
        self.writes_left.store(i64::from(count), Ordering::SeqCst);
    }

    /// The sync after `count` more fails; if `permanent`, so does every later one.
    pub fn fail_sync_after(&self, count: u32, permanent: bool) {
        self.permanent.store(permanent, Ordering::SeqCst);
        self.syncs_left.store(i64::from(count), Ordering::SeqCst);
    }

    /// All reads fail from now on.
    pub fn fail_reads(&self, fail: bool) {
        self.reads_fail.store(fail, Ordering::SeqCst);
    }

    /// `write@N`, `sync@N`: all writes (syncs) after N more fail; `read`: all reads do.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let faults = Self::default();
        match text.split_once('@') {
            None if text == "read" => faults.fail_reads(true),
            Some((kind, count)) => {
                let count = count.parse().map_err(|_| format!("{count} is no count"))?;
                match kind {
                    "write" => faults.fail_write_after(count, true),
                    "sync" => faults.fail_sync_after(count, true),
                    other => return Err(format!("unknown disk fault {other}")),
                }
            }
            None => return Err(format!("unknown disk fault {text}")),
        }
        Ok(faults)
    }

    fn strikes(&self, left: &AtomicI64) -> bool {
        if left.load(Ordering::SeqCst) < 0 {
            return false;
        }
        let permanent = self.permanent.load(Ordering::SeqCst);
        let before = left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| match count {
                0 if permanent => Some(0),
                count if count < 0 => None,
                count => Some(count - 1),
            })
            .unwrap_or(-1);
        before == 0
    }
}

fn injected() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// The open file.
pub struct FrameFile {
    file: File,
    direct: bool,
    /// Only with O_DIRECT: else it would write one after the other as well.
    queue: Option<WriteQueue>,
    faults: Arc<Faults>,
}

impl FrameFile {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn open(path: &Path, faults: Arc<Faults>) -> io::Result<Self> {
        let open = |flags: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.custom_flags(flags | libc::O_CLOEXEC).open(path)
        };
        let direct = open(libc::O_DIRECT).and_then(|file| {
            // Some file systems accept the flag and refuse the first transfer.
            let mut probe = AlignedBytes::new(BLOCK_BYTES);
            file.read_at(probe.bytes_mut(), 0).map(|_| file)
        });
        match direct {
            Ok(file) => Ok(Self {
                file,
                direct: true,
                queue: WriteQueue::new(),
                faults,
            }),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Self {
                file: open(0)?,
                direct: false,
                queue: None,
                faults,
            }),
            Err(error) => Err(error),
        }
    }

    /// Whether O_DIRECT is in use.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Frames that the file reaches into.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn frame_count(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().div_ceil(FRAME_BYTES as u64))
    }

    /// Reserves space so that frames from `frame` on lie together; a file system without
    /// reservation is fine.
    ///
    /// # Errors
    /// `StorageFull` and others of the operating system.
    pub fn reserve(&self, frame: u32) -> io::Result<()> {
        if !frame.is_multiple_of(GROWTH_FRAMES) {
            return Ok(());
        }
        let length = u64::from(GROWTH_FRAMES) * FRAME_BYTES as u64;
        let (start, length) = (frame_offset(frame) as i64, length as i64);
        let descriptor = self.file.as_raw_fd();
        // SAFETY: a plain system call on a descriptor that self owns; no memory is passed.
        let result =
            unsafe { libc::fallocate(descriptor, libc::FALLOC_FL_KEEP_SIZE, start, length) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => Ok(()),
            _ => Err(error),
        }
    }

    /// Writes whole blocks at a block boundary.
    ///
    /// # Errors
    /// Of the operating system, or injected.
    ///
    /// # Panics
    /// If buffer, length or offset are not aligned.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert_aligned(bytes.as_ptr(), bytes.len(), offset);
        if self.faults.strikes(&self.faults.writes_left) {
            let torn = bytes.len() / 2 / BLOCK_BYTES * BLOCK_BYTES;
            self.file.write_all_at(&bytes[..torn], offset)?;
            return Err(injected());
        }
        match &self.faults.medium {
            None => self.file.write_all_at(bytes, offset),
            Some(medium) => medium.write(&self.file, bytes, offset),
        }
    }

    /// Makes these writes, at once where the system can; what became of each, in their order.
    ///
    /// # Panics
    /// As [`Self::write`].
    pub fn write_all(&self, writes: &[BlockWrite<'_>]) -> Vec<io::Result<()>> {
        match &self.queue {
            Some(queue) if writes.len() > 1 && !self.faults.watch_writes() => {
                for BlockWrite { bytes, offset } in writes {
                    assert_aligned(bytes.as_ptr(), bytes.len(), *offset);
                }
                queue.write(&self.file, writes)
            }
            _ => {
                let each = writes.iter();
                each.map(|write| self.write(write.bytes, write.offset))
                    .collect()
            }
        }
    }

    /// Fills `bytes` from a block boundary; what lies beyond the end of the file is zero.
    ///
    /// # Errors
    /// Of the operating system, or injected.
    ///
    /// # Panics
    /// If buffer, length or offset are not aligned.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        assert_aligned(bytes.as_ptr(), bytes.len(), offset);
        if self.faults.reads_fail.load(Ordering::SeqCst) {
            return Err(injected());
        }
        let mut filled = 0;
        while filled < bytes.len() {
            match self
                .file
                .read_at(&mut bytes[filled..], offset + filled as u64)
            {
                Ok(0) => break,
                Ok(count) if count % BLOCK_BYTES != 0 => {
                    filled += count;
                    break;
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes[filled..].fill(0);
        Ok(())
    }

    /// Makes all completed writes durable (fdatasync).
    ///
    /// # Errors
    /// Of the operating system, or injected.
    pub fn sync(&self) -> io::Result<()> {
        if self.faults.strikes(&self.faults.syncs_left) {
            return Err(injected());
        }
        if self.faults.permanent.load(Ordering::SeqCst)
            && self.faults.writes_left.load(Ordering::SeqCst) == 0
        {
            return Err(injected());
        }
        match &self.faults.medium {
            None => self.file.sync_data(),
            Some(medium) => medium.sync(&self.file),
        }
    }
}

fn assert_aligned(start: *const u8, length: usize, offset: u64) {
    assert!(
        start.addr().is_multiple_of(BLOCK_BYTES),
        "buffer is block-aligned"
    );
    assert!(length.is_multiple_of(BLOCK_BYTES), "length is whole blocks");
    assert!(
        offset.is_multiple_of(BLOCK_BYTES as u64),
        "offset is block-aligned"
    );
}

//! The handle of a backup's storage: opens it, takes requests, owns the threads.
//!
//! Rule: no call here waits for the disk except `open`, `read`, `digests` and `close`; everything
//! else answers at once or through a callback that runs on a thread of the storage. Two processes
//! never share a directory.

use crate::backup::compressor;
use crate::backup::digest::Digest;
use crate::backup::frame_file::{Faults, FrameFile};
use crate::backup::io_thread;
use crate::backup::recovery::{PieceWaiter, Recoveries};
use crate::backup::restart;
use crate::backup::scrub;
use crate::backup::segment_buffer::BufferPool;
use crate::backup::split::Partition;
use crate::backup::state::{JOBS_MAX, Job, Replica, ReplicaKey, State};
use crate::backup::stats;
use crate::backup::superblock::{
    CLUSTER_ID_BYTES, FENCED_MAX, Identity, Superblock, SuperblockFiles,
};
use crate::backup::write::Accepted;
use crate::entry::SEGMENT_BYTES;
use crate::status::Status;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Called once with the outcome, on a thread of the storage or of the caller.
pub type Completion = Box<dyn FnOnce(Result<(), Status>) + Send>;
/// Gets the tokens of writes that had to wait. Runs on the I/O thread; it must not call the
/// storage.
pub type DoneSink = Box<dyn Fn(&[(u64, Status)]) + Send + Sync>;

/// When a write is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is flushed.
    Fsync,
    /// When it is in memory; closes still wait for the flush.
    Replicated,
}

/// How to open a storage.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Holds `frames` and the superblocks; created if missing.
    pub directory: PathBuf,
    /// Most frames the file may have.
    pub frames_max: u32,
    /// When a write is done.
    pub durability: Durability,
    /// Mode `replicated`: bytes are flushed at most this much later.
    pub flush_interval: Duration,
    /// Compress closed replicas where it pays.
    pub compress: bool,
    /// Bytes of split pieces that are kept for recovery masters.
    pub piece_cache_bytes: usize,
    /// Closed replicas are read again and verified at this rate; 0: never.
    pub scrub_bytes_per_second: u64,
}

/// Why a storage could not be opened.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct StorageError {
    /// The class.
    pub status: Status,
    /// For the operator.
    pub message: String,
}

/// A replica, as `replicas` lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The log.
    pub master_id: u64,
    /// The segment.
    pub segment_id: u64,
    /// The segment's replication epoch.
    pub epoch: u64,
    /// Certified bytes.
    pub length: u32,
    /// Never changes again.
    pub closed: bool,
    /// The replica that recovery reads first.
    pub primary: bool,
    /// Written by an earlier process.
    pub from_restart: bool,
    /// Open, and that process may have acknowledged more than it had flushed when it ended.
    pub doubtful: bool,
    /// Its bytes on disk are not those of its certificate.
    pub rotten: bool,
}

/// What a backup can take at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// A frame that may still be created is free.
    pub free_frames: usize,
    /// Received and not yet durable.
    pub queued_bytes: u64,
    /// Nothing is written any more; replicas are read as far as they can be.
    pub disk_failed: bool,
}

/// What the threads share.
pub(super) struct Shared {
    pub file: FrameFile,
    /// The compressor's own: the system reports a failed write-back once per open file, so a sync
    /// of one thread must not swallow the error that belongs to another.
    pub compressor_file: FrameFile,
    pub superblocks: SuperblockFiles,
    pub options: BackupOptions,
    pub state: Mutex<State>,
    pub io_wake: Condvar,
    pub compress_wake: Condvar,
    pub scrub_wake: Condvar,
    pub pool: Arc<BufferPool>,
    sink: Mutex<Sink>,
    /// Holds the lock on the directory until `close`.
    directory: Mutex<Option<File>>,
}

/// The receiver of finished writes, or what finished before there was one.
#[derive(Default)]
struct Sink {
    receiver: Option<Arc<DoneSink>>,
    undelivered: Vec<(u64, Status)>,
}

impl Shared {
    /// Whether a certified replica lies here.
    pub(super) fn holds(&self, key: ReplicaKey) -> bool {
        let state = self.state.lock();
        let replica = state.replicas.get(&key);
        replica.and_then(Replica::visible).is_some()
    }

    pub(super) fn deliver(&self, done: Vec<(u64, Status)>) {
        if done.is_empty() {
            return;
        }
        let receiver = {
            let mut sink = self.sink.lock();
            match &sink.receiver {
                Some(receiver) => Arc::clone(receiver),
                None => return sink.undelivered.extend(done),
            }
        };
        receiver(&done);
    }

    pub(super) fn queue_job(&self, state: &mut State, job: Job) -> Option<(Completion, Status)> {
        let refusal = if state.stopping {
            Status::Internal
        } else if state.jobs.len() >= JOBS_MAX {
            Status::Retry
        } else {
            state.jobs.push_back(job);
            self.io_wake.notify_one();
            return None;
        };
        match job {
            Job::Free { done, .. } | Job::Superblock { done, .. } => Some((done, refusal)),
            Job::Switch(_) => panic!("the compressor queues switches itself"),
        }
    }
}

fn refuse(refused: Option<(Completion, Status)>) {
    if let Some((done, status)) = refused {
        done(Err(status));
    }
}

/// The storage of one backup. Dropping it flushes and ends the threads, like `close`.
pub struct BackupStorage {
    shared: Arc<Shared>,
    recoveries: Arc<Recoveries>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl BackupStorage {
    /// Opens or creates the storage and scans all frames.
    ///
    /// # Errors
    /// If another process has the directory, a superblock is foreign or damaged (nothing is
    /// touched), or the operating system refuses.
    pub fn open(options: BackupOptions, faults: Arc<Faults>) -> Result<Self, StorageError> {
        let (directory, superblocks, superblock) = open_directory(&options)?;
        let path = options.directory.join("frames");
        let disk = |error: std::io::Error| disk_error(&path, &error);
        let file = FrameFile::open(&path, Arc::clone(&faults)).map_err(disk)?;
        let compressor_file = FrameFile::open(&path, faults).map_err(disk)?;
        directory
            .sync_all()
            .map_err(|error| disk_error(&options.directory, &error))?;
        let mut state = State::new(
            options.frames_max,
            superblock,
            options.durability == Durability::Replicated,
        );
        let pool = BufferPool::new();
        restart::scan(&file, &pool, &mut state).map_err(disk)?;
        pool.warm();
        let piece_cache_bytes = options.piece_cache_bytes;
        let shared = Arc::new(Shared {
            file,
            compressor_file,
            superblocks,
            options,
            state: Mutex::new(state),
            io_wake: Condvar::new(),
            compress_wake: Condvar::new(),
            scrub_wake: Condvar::new(),
            pool,
            sink: Mutex::new(Sink::default()),
            directory: Mutex::new(Some(directory)),
        });
        io_thread::run_once(&shared);
        let recoveries = Recoveries::new(Arc::clone(&shared), piece_cache_bytes);
        let storage = Self {
            shared,
            recoveries,
            threads: Mutex::new(Vec::new()),
        };
        storage.spawn_threads()?;
        Ok(storage)
    }

    fn spawn_threads(&self) -> Result<(), StorageError> {
        let io = Arc::clone(&self.shared);
        self.spawn("backup-io", move || io_thread::run(&io))?;
        if self.shared.options.compress {
            let shared = Arc::clone(&self.shared);
            self.spawn("backup-lz4", move || compressor::run(&shared))?;
        }
        if self.shared.options.scrub_bytes_per_second > 0 {
            let shared = Arc::clone(&self.shared);
            self.spawn("backup-scrub", move || scrub::run(&shared))?;
        }
        for _ in 0..crate::backup::recovery::WORKERS {
            let recoveries = Arc::clone(&self.recoveries);
            self.spawn("backup-split", move || recoveries.run())?;
        }
        Ok(())
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), StorageError> {
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|error| StorageError {
                status: Status::Internal,
                message: format!("no thread {name}: {error}"),
            })?;
        self.threads.lock().push(handle);
        Ok(())
    }

    /// From the superblock; None for a new directory.
    pub fn identity(&self) -> Option<Identity> {
        self.shared.state.lock().superblock.identity.clone()
    }

    /// Writes the identity durably.
    pub fn set_identity(&self, identity: Identity, done: Completion) {
        if identity.cluster_id.len() != CLUSTER_ID_BYTES || !identity.cluster_id.is_ascii() {
            return done(Err(Status::InvalidArgument));
        }
        let job = Job::Superblock {
            identity: Some(identity),
            done,
        };
        let refused = self.shared.queue_job(&mut self.shared.state.lock(), job);
        refuse(refused);
    }

    /// All visible replicas, ascending by master and segment.
    pub fn replicas(&self) -> Vec<ReplicaReport> {
        let state = self.shared.state.lock();
        let visible = state
            .replicas
            .iter()
            .filter_map(|(key, one)| Some((key, one.visible()?)));
        let report = |(key, replica): (&(u64, u64), &Replica)| {
            let certified = replica.certified.expect("visible replicas are certified");
            ReplicaReport {
                master_id: key.0,
                segment_id: key.1,
                epoch: certified.epoch,
                length: certified.length,
                closed: replica.closed,
                primary: replica.primary,
                from_restart: replica.from_restart,
                doubtful: replica.from_restart && replica.durable_ahead,
                rotten: replica.rotten,
            }
        };
        visible.map(report).collect()
    }

    /// Takes one BACKUP_WRITE body. The sink gets `token` when the write is done, unless it is done
    /// when this returns.
    ///
    /// # Errors
    /// Why it was refused; then nothing was changed and the sink will not hear of it.
    pub fn write(&self, body: &[u8], token: u64) -> Result<Accepted, Status> {
        let wait_for_flush = self.shared.options.durability == Durability::Fsync;
        let mut state = self.shared.state.lock();
        if state.stopping {
            return Err(Status::Internal);
        }
        let plan = (state.dirty_since, state.urgent);
        let pool = &self.shared.pool;
        let accepted = state.write(body, token, wait_for_flush, pool, Instant::now())?;
        // Else the I/O thread knows already when it has to write: to wake it for each write of mode
        // `replicated` took as long as the write.
        let wakes = (state.dirty_since, state.urgent) != plan;
        drop(state);
        if wakes {
            self.shared.io_wake.notify_one();
        }
        Ok(accepted)
    }

    /// Names the receiver of finished writes and hands it what finished before.
    pub fn set_sink(&self, sink: DoneSink) {
        let sink = Arc::new(sink);
        let undelivered = {
            let mut current = self.shared.sink.lock();
            current.receiver = Some(Arc::clone(&sink));
            std::mem::take(&mut current.undelivered)
        };
        if !undelivered.is_empty() {
            sink(&undelivered);
        }
    }

    /// Forgets the receiver, so that whatever it holds is released.
    pub fn clear_sink(&self) {
        self.shared.sink.lock().receiver = None;
    }

    /// What it can take at present.
    pub fn load(&self) -> Load {
        let state = self.shared.state.lock();
        Load {
            free_frames: if state.stopping {
                0
            } else {
                state.frames.free_count()
            },
            queued_bytes: state.queued_bytes(),
            // A storage that stopped by itself writes nothing either.
            disk_failed: state.frames.failed() || state.counters.panics > 0,
        }
    }

    /// Frees replicas; unknown ones are fine. `done` runs when that is durable; with `DiskError`
    /// they are forgotten here, but bytes of them may be on disk and come back with a restart.
    pub fn free(&self, master_id: u64, segment_ids: &[u64], done: Completion) {
        let mut finished = Vec::new();
        let refused = {
            let mut state = self.shared.state.lock();
            let full = state.jobs.len() >= JOBS_MAX;
            if state.stopping || full {
                Some((
                    done,
                    if full {
                        Status::Retry
                    } else {
                        Status::Internal
                    },
                ))
            } else {
                let (mut places, mut incomplete) = (Vec::new(), false);
                for key in segment_ids
                    .iter()
                    .map(|&segment_id| (master_id, segment_id))
                {
                    incomplete |= state.unfreed.contains(&key);
                    places.extend(state.forget_replica(key, &mut finished));
                }
                state.tokens_waiting -= finished.len();
                let job = Job::Free {
                    places,
                    incomplete,
                    done,
                };
                self.shared.queue_job(&mut state, job)
            }
        };
        refuse(refused);
        self.shared.deliver(finished);
    }

    /// Refuses all writes of a master from now on; `done` runs when that is durable and the
    /// writes accepted before are flushed.
    pub fn fence(&self, master_id: u64, done: Completion) {
        let refused = {
            let mut state = self.shared.state.lock();
            let room = state.fenced.contains(&master_id) || state.fenced.len() < FENCED_MAX;
            if room {
                state.fenced.insert(master_id);
                state.settle_open(Some(master_id), Instant::now());
                self.shared.queue_job(
                    &mut state,
                    Job::Superblock {
                        identity: None,
                        done,
                    },
                )
            } else {
                Some((done, Status::Retry))
            }
        };
        refuse(refused);
    }

    /// Masters whose writes are refused, ascending; those of earlier processes too.
    pub fn fenced(&self) -> Vec<u64> {
        self.shared.state.lock().fenced.iter().copied().collect()
    }

    /// Forgets a fence.
    pub fn unfence(&self, master_id: u64, done: Completion) {
        let refused = {
            let mut state = self.shared.state.lock();
            state.fenced.remove(&master_id);
            self.shared.queue_job(
                &mut state,
                Job::Superblock {
                    identity: None,
                    done,
                },
            )
        };
        refuse(refused);
    }

    /// The certified bytes of a replica; reads the disk.
    ///
    /// # Errors
    /// `ReplicaUnknown`, `ChecksumMismatch` or `DiskError`.
    pub fn read(&self, master_id: u64, segment_id: u64) -> Result<Vec<u8>, Status> {
        let replica = self.shared.read_replica((master_id, segment_id))?;
        Ok(replica.bytes().to_vec())
    }

    /// Digests of a master's heads that are still open; reads the disk.
    pub fn digests(&self, master_id: u64) -> Vec<Digest> {
        self.shared.digests(master_id)
    }

    /// Starts to read and split segments of a dead master; replaces older recoveries of it.
    ///
    /// # Errors
    /// `InvalidArgument` for overlapping tablets; `Retry` when too many recoveries run.
    pub fn start_partitions(
        &self,
        recovery_id: u64,
        master_id: u64,
        partitions: &[Partition],
        segment_ids: &[u64],
    ) -> Result<(), Status> {
        self.recoveries
            .start(recovery_id, master_id, partitions, segment_ids)
    }

    /// The piece of a segment for a partition, with its {length, checksum} header.
    pub fn recovery_data(
        &self,
        recovery_id: u64,
        segment_id: u64,
        partition_id: u64,
        waiter: PieceWaiter,
    ) {
        self.recoveries
            .piece(recovery_id, segment_id, partition_id, waiter);
    }

    /// Drops a recovery's pieces; unknown ids are fine.
    pub fn end_recovery(&self, recovery_id: u64) {
        self.recoveries.end(recovery_id);
    }

    /// Gauges and counters by name.
    pub fn stats(&self) -> BTreeMap<&'static str, f64> {
        let mut stats = stats::of_state(&self.shared.state.lock());
        let direct = self.shared.file.is_direct();
        stats.insert("directIo", f64::from(u8::from(direct)));
        self.recoveries.add_stats(&mut stats);
        stats
    }

    /// Flushes what is queued, ends the threads and unlocks the directory; idempotent. Later calls
    /// are refused.
    pub fn close(&self) {
        {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            state.settle_open(None, Instant::now());
        }
        self.shared.io_wake.notify_all();
        self.shared.compress_wake.notify_all();
        self.shared.scrub_wake.notify_all();
        self.recoveries.stop();
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            if thread.join().is_err() {
                self.shared.state.lock().counters.panics += 1;
            }
        }
        drop(self.shared.directory.lock().take());
    }
}

impl Drop for BackupStorage {
    fn drop(&mut self) {
        self.close();
    }
}

fn disk_error(path: &Path, error: &std::io::Error) -> StorageError {
    StorageError {
        status: Status::DiskError,
        message: format!("{}: {error}", path.display()),
    }
}

fn lock_directory(path: &Path) -> Result<File, StorageError> {
    let directory = File::open(path).map_err(|error| disk_error(path, &error))?;
    // SAFETY: a plain system call on an open descriptor; no memory is passed.
    let result = unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    if result == 0 {
        return Ok(directory);
    }
    let error = std::io::Error::last_os_error();
    if error.kind() == std::io::ErrorKind::WouldBlock {
        let message = format!("{} is in use by another backup", path.display());
        return Err(StorageError {
            status: Status::InvalidArgument,
            message,
        });
    }
    Err(disk_error(path, &error))
}

/// Locks the directory and reads the superblock, or writes the first one.
fn open_directory(
    options: &BackupOptions,
) -> Result<(File, SuperblockFiles, Superblock), StorageError> {
    let path = &options.directory;
    if options.frames_max == 0 {
        let message = "framesMax must be at least 1".to_owned();
        return Err(StorageError {
            status: Status::InvalidArgument,
            message,
        });
    }
    std::fs::create_dir_all(path).map_err(|error| disk_error(path, &error))?;
    let directory = lock_directory(path)?;
    let superblocks = SuperblockFiles::new(path);
    let refused = |message| StorageError {
        status: Status::InvalidArgument,
        message,
    };
    if let Some(superblock) = superblocks.load().map_err(refused)? {
        return Ok((directory, superblocks, superblock));
    }
    let frames = path.join("frames");
    if std::fs::metadata(&frames).is_ok_and(|metadata| metadata.len() > 0) {
        return Err(refused(format!(
            "{} has no superblock beside it",
            frames.display()
        )));
    }
    let superblock = Superblock {
        sequence: 1,
        ..Superblock::default()
    };
    superblocks
        .write(&superblock)
        .map_err(|error| disk_error(path, &error))?;
    Ok((directory, superblocks, superblock))
}

const _: () = assert!(SEGMENT_BYTES <= u32::MAX as usize);

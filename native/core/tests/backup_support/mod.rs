//! What the backup tests share: a directory that goes away, a storage with a synchronous face, a
//! seeded source of randomness.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod images;

use parking_lot::{Condvar, Mutex};
use rekindle_core::backup::frame_file::Faults;
use rekindle_core::backup::split::{Partition, Tablet};
use rekindle_core::backup::{BackupOptions, BackupStorage, Completion, Durability};
use rekindle_core::crc32c::crc32c;
use rekindle_core::status::Status;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const OPEN: u32 = 1;
pub const CLOSE: u32 = 2;
pub const PRIMARY: u32 = 4;
const CERTIFICATE: u32 = 8;
const LIMIT: Duration = Duration::from_secs(20);

/// `REKINDLE_SEED`, or one from the clock; printed, so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("REKINDLE_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = given.unwrap_or_else(|| clock.map_or(1, |now| u64::from(now.subsec_nanos())));
    // The harness shows this only when the test fails.
    #[allow(clippy::print_stdout, reason = "the way to repeat a failure")]
    {
        println!("repeat: REKINDLE_SEED={seed} cargo test -p rekindle-core {test}");
    }
    seed
}

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }
}

pub fn random_bytes(random: &mut Random, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes());
    words.take(length).collect()
}

/// Bytes of which `noise` sixteenths do not compress and the rest all but vanish.
pub fn mixed_bytes(random: &mut Random, length: usize, noise: usize) -> Vec<u8> {
    const CHUNK_BYTES: usize = 8192;
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(CHUNK_BYTES) {
        let noisy = chunk.len() * noise.min(16) / 16;
        for word in chunk[..noisy].chunks_mut(8) {
            let fresh = random.next().to_le_bytes();
            word.copy_from_slice(&fresh[..word.len()]);
        }
    }
    bytes
}

pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "rekindle-backup-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removes the temporary directory");
    }
}

pub fn options(directory: &Directory, frames_max: u32, compress: bool) -> BackupOptions {
    BackupOptions {
        directory: directory.path().to_path_buf(),
        frames_max,
        durability: Durability::Fsync,
        flush_interval: Duration::from_millis(5),
        compress,
        piece_cache_bytes: 1 << 30,
        scrub_bytes_per_second: 0,
    }
}

/// A value that arrives on another thread.
pub struct Arrival<T>(Arc<(Mutex<Option<T>>, Condvar)>);

impl<T: Send + 'static> Arrival<T> {
    pub fn new() -> Self {
        Self(Arc::new((Mutex::new(None), Condvar::new())))
    }

    pub fn setter(&self) -> Box<dyn FnOnce(T) + Send> {
        let shared = Arc::clone(&self.0);
        Box::new(move |value| {
            *shared.0.lock() = Some(value);
            shared.1.notify_all();
        })
    }

    pub fn wait(&self) -> T {
        let mut value = self.0.0.lock();
        while value.is_none() {
            assert!(
                !self.0.1.wait_for(&mut value, LIMIT).timed_out(),
                "no answer in time"
            );
        }
        value.take().expect("just seen")
    }
}

pub struct Completed(Arrival<Result<(), Status>>);

impl Completed {
    pub fn new() -> Self {
        Self(Arrival::new())
    }

    pub fn completion(&self) -> Completion {
        self.0.setter()
    }

    pub fn wait(&self) -> Result<(), Status> {
        self.0.wait()
    }
}

/// A BACKUP_WRITE body; with `certified`, the certificate is the one of these bytes.
#[allow(clippy::too_many_arguments, reason = "the fields of the message")]
pub fn write_body(
    master_id: u64,
    segment_id: u64,
    epoch: u64,
    offset: usize,
    bytes: &[u8],
    certified: Option<&[u8]>,
    flags: u32,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(48 + bytes.len());
    for field in [master_id, segment_id, epoch] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    let (end, checksum) = certified.map_or((0, 0), |all| (all.len() as u32, crc32c(all)));
    let flags = flags | if certified.is_some() { CERTIFICATE } else { 0 };
    for field in [offset as u32, bytes.len() as u32, end, checksum, flags, 0] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    body.extend_from_slice(bytes);
    body
}

type Answers = Arc<(Mutex<BTreeMap<u64, Status>>, Condvar)>;

/// A storage with its faults; calls wait for their answers.
pub struct Disk {
    pub storage: BackupStorage,
    pub faults: Arc<Faults>,
    answers: Answers,
    next_token: u64,
}

impl Disk {
    pub fn open(_directory: &Directory, options: BackupOptions) -> Self {
        Self::with_faults(options, Faults::default())
    }

    pub fn with_faults(options: BackupOptions, faults: Faults) -> Self {
        let faults = Arc::new(faults);
        let storage = BackupStorage::open(options, Arc::clone(&faults)).expect("opens");
        let answers: Answers = Arc::default();
        let sink = Arc::clone(&answers);
        storage.set_sink(Box::new(move |done| {
            sink.0.lock().extend(done.iter().copied());
            sink.1.notify_all();
        }));
        Self {
            storage,
            faults,
            answers,
            next_token: 1,
        }
    }

    /// One BACKUP_WRITE; with `certified`, the certificate is the one of these bytes.
    #[allow(clippy::too_many_arguments, reason = "the fields of the message")]
    pub fn write(
        &mut self,
        master_id: u64,
        segment_id: u64,
        epoch: u64,
        offset: usize,
        bytes: &[u8],
        certified: Option<&[u8]>,
        flags: u32,
    ) -> Status {
        let body = write_body(
            master_id, segment_id, epoch, offset, bytes, certified, flags,
        );
        self.raw(&body)
    }

    pub fn raw(&mut self, body: &[u8]) -> Status {
        match self.submit(body) {
            Ok(token) => self.answer(token),
            Err(status) => status,
        }
    }

    /// Sends a body without waiting; the token is for `answer`.
    pub fn submit(&mut self, body: &[u8]) -> Result<u64, Status> {
        let token = self.next_token;
        self.next_token += 1;
        let accepted = self.storage.write(body, token)?;
        if !accepted.waits {
            self.answers.0.lock().insert(token, Status::Ok);
        }
        Ok(token)
    }

    pub fn answer(&self, token: u64) -> Status {
        let mut answers = self.answers.0.lock();
        loop {
            if let Some(status) = answers.remove(&token) {
                return status;
            }
            let late = self.answers.1.wait_for(&mut answers, LIMIT).timed_out();
            assert!(!late, "token {token} is answered in time");
        }
    }

    pub fn free(&self, master_id: u64, segment_ids: &[u64]) -> Result<(), Status> {
        let done = Completed::new();
        self.storage.free(master_id, segment_ids, done.completion());
        done.wait()
    }

    pub fn piece(
        &self,
        recovery_id: u64,
        segment_id: u64,
        partition: u64,
    ) -> Result<Vec<u8>, Status> {
        let arrival = Arrival::new();
        let setter = arrival.setter();
        let waiter = Box::new(move |piece: Result<Arc<Vec<u8>>, Status>| {
            setter(piece.map(|piece| piece.to_vec()));
        });
        self.storage
            .recovery_data(recovery_id, segment_id, partition, waiter);
        arrival.wait()
    }

    /// The certified bytes of a replica, as the storage verifies them.
    pub fn read(&self, master_id: u64, segment_id: u64) -> Result<Vec<u8>, Status> {
        self.storage.read(master_id, segment_id)
    }

    pub fn poll(&self, what: &str, reached: impl Fn(&BTreeMap<&'static str, f64>) -> bool) {
        let end = Instant::now() + LIMIT;
        while !reached(&self.storage.stats()) {
            assert!(Instant::now() < end, "{what}: {:?}", self.storage.stats());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until frames are pre-written, so that injected faults hit what the test means.
    pub fn settle(&self) {
        let wanted = |stats: &BTreeMap<&'static str, f64>| stats["framesPrewriting"] == 0.0;
        self.poll("pre-writing", |stats| {
            wanted(stats) && stats["framesCreated"] >= 2.0
        });
    }
}

pub fn tablet(table_id: u64, start_slot: u32, end_slot: u32, ctime_segment_id: u64) -> Tablet {
    Tablet {
        table_id,
        start_slot,
        end_slot,
        ctime_segment_id,
    }
}

pub fn partition(partition_id: u64, tablets: Vec<Tablet>) -> Partition {
    Partition {
        partition_id,
        tablets,
    }
}

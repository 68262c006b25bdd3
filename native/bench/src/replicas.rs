//! Three backups in this process and one thread that keeps them up to date, as the replica manager
//! of a server does with those of other servers.
//!
//! Rules: pieces are certified and go to all three; the next head is open everywhere before one is
//! closed; survivors are closed everywhere before their pass is committed; replicas of cleaned
//! segments are freed when the head that leaves them out is durable.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rekindle_core::backup::frame_file::Faults;
use rekindle_core::backup::{BackupOptions, BackupStorage, Durability};
use rekindle_core::master::Master;
use rekindle_core::master::cleaner::passes::Pass;
use rekindle_core::status::Status;

use crate::Failure;
use crate::masters::{SERVER_ID, stat};

const BACKUPS: usize = 3;
const CHUNK_BYTES: usize = 1 << 20;
const IDLE_PAUSE: Duration = Duration::from_micros(100);
/// After this, a pass opens a head for itself.
const FORCE_AFTER: Duration = Duration::from_millis(100);
const FLUSH_INTERVAL: Duration = Duration::from_millis(10);
const WRITE_HEADER_BYTES: usize = 48;
const FLAG_OPEN: u32 = 1;
const FLAG_CLOSE: u32 = 2;
const FLAG_PRIMARY: u32 = 4;
const FLAG_CERTIFICATE: u32 = 8;
const EPOCH: u64 = 1;

fn core(call: &'static str) -> impl Fn(Status) -> Failure {
    move |status| Failure::Core(call, status)
}

/// Counts writes that are not durable yet.
#[derive(Default)]
struct Acks {
    waiting: Mutex<usize>,
    none: Condvar,
    failed: AtomicBool,
}

impl Acks {
    fn done(&self, outcomes: &[(u64, Status)]) {
        if outcomes.iter().any(|(_, status)| *status != Status::Ok) {
            self.failed.store(true, Ordering::Relaxed);
        }
        let mut waiting = self.waiting.lock();
        *waiting -= outcomes.len();
        self.none.notify_one();
    }
}

/// What the load may look at.
#[derive(Default)]
pub struct Progress {
    /// Everything below is on all backups.
    pub durable: AtomicU64,
    /// Bytes of segments sent to each backup.
    pub sent_bytes: AtomicU64,
    stop: AtomicBool,
}

/// The three backups and their thread.
pub struct Replicas {
    /// How far it is.
    pub progress: Arc<Progress>,
    thread: thread::JoinHandle<Result<(), Failure>>,
}

impl Replicas {
    /// Opens three storages below `folder` and starts the thread.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn start(master: &Arc<Master>, folder: &Path, frames_max: u32) -> Result<Self, Failure> {
        let acks = Arc::new(Acks::default());
        let mut storages = Vec::new();
        for number in 0..BACKUPS {
            let options = BackupOptions {
                directory: folder.join(number.to_string()),
                frames_max,
                durability: Durability::Fsync,
                flush_interval: FLUSH_INTERVAL,
                compress: false,
                piece_cache_bytes: 0,
                scrub_bytes_per_second: 0,
            };
            let storage = BackupStorage::open(options, Arc::<Faults>::default());
            let storage = storage.map_err(|error| Failure::Wrong(error.to_string()))?;
            let told = Arc::clone(&acks);
            storage.set_sink(Box::new(move |outcomes| told.done(outcomes)));
            storages.push(storage);
        }
        let told = Arc::new(Mutex::new(VecDeque::new()));
        let heard = Arc::clone(&told);
        master.on_cleaning_pass(Box::new(move |pass| heard.lock().push_back(pass.clone())));
        let progress = Arc::new(Progress::default());
        let mut replicator = Replicator {
            master: Arc::clone(master),
            storages,
            acks,
            told,
            passes: VecDeque::new(),
            heads: VecDeque::new(),
            head_last: 0,
            progress: Arc::clone(&progress),
        };
        let thread = thread::Builder::new()
            .name("replicator".into())
            .spawn(move || replicator.run())?;
        Ok(Self { progress, thread })
    }

    /// Whether the thread has ended by itself, which it does only on a failure.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends the thread and closes the storages.
    ///
    /// # Errors
    /// What the thread has met.
    pub fn stop(self) -> Result<(), Failure> {
        self.progress.stop.store(true, Ordering::Relaxed);
        let broken = |_| Err(Failure::Wrong("the replicator panicked".into()));
        self.thread.join().unwrap_or_else(broken)
    }
}

struct Head {
    id: u64,
    /// Bytes on the backups; 0: not open there.
    sent: usize,
}

struct PassState {
    pass: Pass,
    /// Survivors that are closed on the backups.
    replicated: usize,
    committed_at: Option<Instant>,
}

struct Replicator {
    master: Arc<Master>,
    storages: Vec<BackupStorage>,
    acks: Arc<Acks>,
    told: Arc<Mutex<VecDeque<Pass>>>,
    passes: VecDeque<PassState>,
    /// Those that are not closed everywhere, oldest first.
    heads: VecDeque<Head>,
    head_last: u64,
    progress: Arc<Progress>,
}

impl Replicator {
    fn run(&mut self) -> Result<(), Failure> {
        while !self.progress.stop.load(Ordering::Relaxed) {
            let busy = self.step_heads()?;
            if !self.step_passes()? && !busy {
                thread::sleep(IDLE_PAUSE);
            }
        }
        for storage in &self.storages {
            storage.clear_sink();
            storage.close();
        }
        Ok(())
    }

    /// One piece or one close of the oldest head that is not closed.
    fn step_heads(&mut self) -> Result<bool, Failure> {
        for id in self
            .master
            .heads_after(self.head_last)
            .map_err(core("heads"))?
        {
            self.heads.push_back(Head { id, sent: 0 });
            self.head_last = id;
        }
        let Some(&Head { id, sent }) = self.heads.front() else {
            return Ok(false);
        };
        let state = self.master.segment_state(id).map_err(core("state"))?;
        if sent < state.appended {
            let end = self.send_chunk(id, sent, FLAG_PRIMARY)?;
            self.heads[0].sent = end;
            self.set_durable(state.position + end as u64)?;
            return Ok(true);
        }
        let Some(&Head {
            id: next,
            sent: next_sent,
        }) = self.heads.get(1)
        else {
            return Ok(false);
        };
        if next_sent == 0 {
            self.heads[1].sent = self.send_chunk(next, 0, FLAG_PRIMARY)?;
        }
        self.close(id, sent)?;
        self.heads.pop_front();
        let state = self.master.segment_state(next).map_err(core("state"))?;
        self.set_durable(state.position + self.heads[0].sent as u64)?;
        Ok(true)
    }

    fn set_durable(&self, position: u64) -> Result<(), Failure> {
        self.progress.durable.store(position, Ordering::Release);
        self.master
            .set_durable(position)
            .map_err(core("set_durable"))
    }

    /// One survivor of one pass, or the end of the oldest.
    fn step_passes(&mut self) -> Result<bool, Failure> {
        let fresh = self.told.lock().drain(..).collect::<Vec<_>>();
        self.passes.extend(fresh.into_iter().map(|pass| PassState {
            pass,
            replicated: 0,
            committed_at: None,
        }));
        let missing = |state: &PassState| state.replicated < state.pass.survivors.len();
        if let Some(index) = self.passes.iter().position(missing) {
            let state = &self.passes[index];
            self.copy_whole(state.pass.survivors[state.replicated])?;
            self.passes[index].replicated += 1;
            return Ok(true);
        }
        let Some(state) = self.passes.front_mut() else {
            return Ok(false);
        };
        let since = *state.committed_at.get_or_insert_with(Instant::now);
        let short = stat(&self.master, "memoryShort")? == 1;
        let force = short || since.elapsed() > FORCE_AFTER;
        let position = self.master.commit_cleaning(state.pass.id, force);
        let position = position.map_err(core("commit_cleaning"))?;
        if position == 0 || self.progress.durable.load(Ordering::Relaxed) < position {
            return Ok(false);
        }
        for storage in &self.storages {
            storage.free(SERVER_ID, &state.pass.cleaned, Box::new(|_| ()));
        }
        self.master
            .end_cleaning(state.pass.id)
            .map_err(core("end_cleaning"))?;
        self.passes.pop_front();
        Ok(true)
    }

    fn copy_whole(&self, id: u64) -> Result<(), Failure> {
        let total = self
            .master
            .segment_state(id)
            .map_err(core("state"))?
            .appended;
        let mut sent = 0;
        while sent < total {
            sent = self.send_chunk(id, sent, 0)?;
        }
        self.close(id, sent)
    }

    /// Sends the next certified piece to all backups and waits for them; returns its end.
    fn send_chunk(&self, id: u64, from: usize, flags: u32) -> Result<usize, Failure> {
        let piece = self
            .master
            .chunk(id, from, CHUNK_BYTES)
            .map_err(core("chunk"))?;
        let open = if from == 0 { FLAG_OPEN } else { 0 };
        let segment = self.master.segment(id).map_err(core("segment"))?;
        let (offset, length) = segment.locate(from).map_err(core("locate"))?;
        assert!(piece.end - from <= length, "a piece is contiguous");
        // SAFETY: certified, hence published; the segment is held.
        let bytes = unsafe { self.master.arena().published(offset, piece.end - from) };
        self.write(id, from, (piece.end, piece.checksum), flags | open, bytes)?;
        self.progress
            .sent_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(piece.end)
    }

    fn close(&self, id: u64, end: usize) -> Result<(), Failure> {
        // What was certified last: the end.
        let before = self
            .master
            .chunk(id, end, CHUNK_BYTES)
            .map_err(core("chunk"))?;
        assert!(before.end == end, "a closed segment was sent to its end");
        self.write(id, end, (end, before.checksum), FLAG_CLOSE, &[])?;
        self.master.unpin_segment(id).map_err(core("unpin"))
    }

    /// A BACKUP_WRITE of `docs/formats.md` §3, on all backups.
    fn write(
        &self,
        id: u64,
        offset: usize,
        (end, checksum): (usize, u32),
        flags: u32,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let mut body = Vec::with_capacity(WRITE_HEADER_BYTES + bytes.len());
        for field in [SERVER_ID, id, EPOCH] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        let flags = flags | FLAG_CERTIFICATE;
        for field in [
            offset as u32,
            bytes.len() as u32,
            end as u32,
            checksum,
            flags,
            0,
        ] {
            body.extend_from_slice(&field.to_le_bytes());
        }
        body.extend_from_slice(bytes);
        *self.acks.waiting.lock() += BACKUPS;
        for storage in &self.storages {
            loop {
                match storage.write(&body, id) {
                    Ok(accepted) => {
                        assert!(accepted.waits, "in mode fsync all new bytes wait");
                        break;
                    }
                    Err(Status::Retry | Status::NoFreeFrame) => thread::sleep(IDLE_PAUSE),
                    Err(status) => return Err(Failure::Core("backup write", status)),
                }
            }
        }
        let mut waiting = self.acks.waiting.lock();
        while *waiting > 0 {
            self.acks.none.wait(&mut waiting);
        }
        if self.acks.failed.load(Ordering::Relaxed) {
            return Err(Failure::Wrong("a backup has failed".into()));
        }
        Ok(())
    }
}

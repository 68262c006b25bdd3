//! The master half: log, hash table, objects, EXECUTE messages, recovery replay.
//!
//! [`Master`] is the handle. One thread serves (all calls but replay take the serving lock, which
//! is uncontended then); replay runs on the pool's threads and cleaning on its own beside it, and
//! both share [`objects`] only. Long work that needs the serving lock takes it for a moment at a
//! time ([`chore`]). Locking order: serving state, recovery state, a replay worker,
//! passes of the cleaner, segments. All segments share one id space; ids only grow.

pub mod arena;
mod batch;
pub mod chore;
pub mod cleaner;
pub mod epoch;
pub mod execute;
pub mod hash_table;
pub mod log;
pub mod message;
pub mod migration;
pub mod notes;
pub mod objects;
mod ownership;
pub mod present_segments;
mod pretouch;
pub mod prior_segments;
pub mod recovery;
pub mod replay;
pub mod segment;
pub mod split;
pub mod tablets;
pub mod unacked_rpc_results;
pub mod verify;
pub mod worker_pool;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use self::arena::Arena;
use self::cleaner::CleanerState;
use self::cleaner::passes::Listener;
use self::epoch::Pin;
use self::execute::{Executed, Serving};
use self::log::Purpose;
use self::message::{OperationKind, Request};
use self::migration::Migration;
use self::objects::Objects;
pub use self::ownership::TabletStats;
use self::recovery::Recovery;
use self::segment::{Certificate, Segment};
use self::tablets::{SlotRange, Tablet};
use self::worker_pool::WorkerPool;
use crate::entry::SEGMENT_BYTES;
use crate::status::Status;

/// Least log memory: the reserve, a head and room for a replay.
pub const MEMORY_BYTES_MIN: usize = 64 << 20;
const REPLAY_THREADS_MAX: usize = 64;
const DISK_EXPANSION_FACTOR_MAX: f64 = 64.0;
/// Participants of the epochs.
const SERVING_PARTICIPANT: usize = 0;
/// The first replay thread; the others follow.
const REPLAY_PARTICIPANT: usize = 1;

/// How a master is made.
#[derive(Clone, Copy, Debug)]
pub struct MasterOptions {
    /// Log id.
    pub server_id: u64,
    /// A multiple of the segment size, at least 64 MiB.
    pub memory_bytes: usize,
    /// 1 … 64.
    pub replay_threads: usize,
    /// Whether backups hold the log. Without, all is durable as soon as it is appended.
    pub replicated: bool,
    /// Segments that the log may have, as a multiple of those that fit into memory; at least 1.
    pub disk_expansion_factor: f64,
}

/// The state of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentState {
    /// Bytes appended.
    pub appended: usize,
    /// Nothing more will be.
    pub closed: bool,
    /// Log position of the first byte; 0 for side segments.
    pub position: u64,
    /// Bytes of the opening.
    pub opening_bytes: usize,
}

/// A master's data.
pub struct Master {
    objects: Objects,
    pool: WorkerPool,
    replay_threads: usize,
    closed: AtomicBool,
    /// Log memory that needs no page fault any more.
    touched_bytes: AtomicUsize,
    /// Most segments that backups should hold; None without backups.
    log_segments_max: Option<usize>,
    /// With fewer free ones, the cleaner has work.
    wanted_blocks: usize,
    cleaner: CleanerState,
    serving: Mutex<Serving>,
}

/// The serving state, locked; what its holder can reach stays.
pub struct ServingGuard<'a> {
    // Dropped first: the next holder pins again.
    _pin: Pin<'a>,
    guard: MutexGuard<'a, Serving>,
}

impl ServingGuard<'_> {
    /// Hands the lock to whoever waits for it, instead of a race that he may lose again and again.
    fn let_go(self) {
        let Self { _pin, guard } = self;
        drop(_pin);
        MutexGuard::unlock_fair(guard);
    }
}

impl Deref for ServingGuard<'_> {
    type Target = Serving;
    fn deref(&self) -> &Serving {
        &self.guard
    }
}

impl DerefMut for ServingGuard<'_> {
    fn deref_mut(&mut self) -> &mut Serving {
        &mut self.guard
    }
}

impl Master {
    /// An empty master without tablets.
    ///
    /// # Errors
    /// `InvalidArgument`, `OutOfMemory`.
    pub fn new(options: MasterOptions) -> Result<Arc<Self>, Status> {
        let MasterOptions {
            server_id,
            memory_bytes,
            replay_threads,
            replicated,
            disk_expansion_factor,
        } = options;
        if memory_bytes < MEMORY_BYTES_MIN
            || !(1..=REPLAY_THREADS_MAX).contains(&replay_threads)
            || server_id == 0
            || !(1.0..=DISK_EXPANSION_FACTOR_MAX).contains(&disk_expansion_factor)
        {
            return Err(Status::InvalidArgument);
        }
        let blocks = memory_bytes / SEGMENT_BYTES;
        let log_segments_max = (blocks as f64 * disk_expansion_factor) as usize;
        let participants = REPLAY_PARTICIPANT + replay_threads;
        let objects = Objects::new(server_id, memory_bytes, participants, replicated)?;
        let master = Arc::new(Self {
            wanted_blocks: cleaner::wanted_blocks(blocks, objects.reserve.writes),
            objects,
            pool: WorkerPool::new(replay_threads)?,
            replay_threads,
            closed: AtomicBool::new(false),
            touched_bytes: AtomicUsize::new(0),
            log_segments_max: replicated.then_some(log_segments_max),
            cleaner: CleanerState::default(),
            serving: Mutex::default(),
        });
        pretouch::pretouch(&master)?;
        cleaner::start(&master)?;
        Ok(master)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn replicated(&self) -> bool {
        self.log_segments_max.is_some()
    }

    #[inline]
    fn serving(&self) -> Result<ServingGuard<'_>, Status> {
        let guard = self.serving.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(Status::InvalidArgument);
        }
        if self.cleaner.failed.load(Ordering::Relaxed) {
            return Err(Status::Internal);
        }
        let _pin = self.objects.pin_epoch(SERVING_PARTICIPANT);
        Ok(ServingGuard { _pin, guard })
    }

    /// Seconds since 1970, for entries that no request brings.
    fn timestamp(&self) -> u32 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        u32::try_from(now).unwrap_or(u32::MAX)
    }

    /// Whether an EXECUTE body changes nothing, so that it may be executed without backups. False
    /// for one that is malformed.
    pub fn is_read_only(body: &[u8]) -> bool {
        Request::parse(body).is_ok_and(|request| {
            request
                .operations()
                .all(|operation| operation.kind == OperationKind::Read)
        })
    }

    /// Executes an EXECUTE body; `now_ms` is since 1970.
    ///
    /// # Errors
    /// `MalformedRequest`; then nothing was executed.
    pub fn execute(&self, body: &[u8], reply: &mut [u8], now_ms: u64) -> Result<Executed, Status> {
        let mut serving = self.serving()?;
        let mut executed = serving.execute(&self.objects, body, reply, now_ms)?;
        if executed.position > 0 && !self.replicated() {
            let appended = serving.log.appended_position();
            serving.set_durable(&self.objects, appended)?;
            executed.position = 0;
        }
        if self.objects.arena.free_blocks() < self.wanted_blocks {
            self.cleaner.wake();
        }
        Ok(executed)
    }

    /// Opens the first head; idempotent.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn open_log(&self) -> Result<(), Status> {
        let serving = &mut *self.serving()?;
        if serving.log.head().is_none() {
            let timestamp = self.timestamp();
            serving
                .log
                .roll(&self.objects, &serving.tablets, Purpose::Write, timestamp)?;
        }
        Ok(())
    }

    /// The log says from now on that `key` is `value`, or, if that is empty, nothing of `key`. In
    /// force where the log is durable up to `appended_position`.
    ///
    /// # Errors
    /// `InvalidArgument`, `OutOfMemory`; then nothing has changed.
    pub fn note(&self, key: &[u8], value: &[u8]) -> Result<(), Status> {
        let serving = &mut *self.serving()?;
        let timestamp = self.timestamp();
        let Serving { log, tablets, .. } = serving;
        log.note(&self.objects, tablets, key, value, timestamp)
    }

    /// Closes the head and opens the next; returns its id.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn roll_head(&self) -> Result<u64, Status> {
        let serving = &mut *self.serving()?;
        let timestamp = self.timestamp();
        let head = serving
            .log
            .roll(&self.objects, &serving.tablets, Purpose::Head, timestamp)?;
        Ok(head.id)
    }

    /// Heads opened after segment `id`, ascending.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn heads_after(&self, id: u64) -> Result<Vec<u64>, Status> {
        Ok(self.serving()?.log.heads_after(id).to_vec())
    }

    /// A segment's state.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not here.
    pub fn segment_state(&self, id: u64) -> Result<SegmentState, Status> {
        let segment = self.segment(id)?;
        // `closed` first: once it is set, `appended` does not move.
        let closed = segment.closed();
        Ok(SegmentState {
            appended: segment.appended(),
            closed,
            position: segment.position,
            opening_bytes: segment.opening_bytes(),
        })
    }

    /// The next certified piece of a segment; see [`Segment::chunk`].
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn chunk(&self, id: u64, from: usize, bytes_max: usize) -> Result<Certificate, Status> {
        if from == 0 {
            // Whoever starts over gets one content to the end.
            let _serving = self.serving()?;
            return self.objects.pin(id)?.chunk(from, bytes_max);
        }
        self.segment(id)?.chunk(from, bytes_max)
    }

    /// A segment's content as it is replicated; it stays as it is as long as it is held.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not here.
    pub fn segment(&self, id: u64) -> Result<Arc<Segment>, Status> {
        let _serving = self.serving()?;
        self.objects.content(id)
    }

    /// No replica of the segment is being written: the cleaner may take it.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn unpin_segment(&self, id: u64) -> Result<(), Status> {
        let _serving = self.serving()?;
        self.objects.unpin(id);
        Ok(())
    }

    /// Calls `listener` with each pass of the cleaner whose survivors must be replicated.
    pub fn on_cleaning_pass(&self, listener: Listener) {
        self.cleaner.passes.listen(listener);
    }

    /// The survivors of a pass are closed on all their backups: the next head's digest names them
    /// and leaves the cleaned segments out. Returns the position that must be durable before
    /// `end_cleaning`, 0 if that head is not open yet; `force` opens it.
    ///
    /// # Errors
    /// `InvalidArgument` for a pass that is not under way; `OutOfMemory`.
    pub fn commit_cleaning(&self, pass_id: u64, force: bool) -> Result<u64, Status> {
        let serving = &mut *self.serving()?;
        let (objects, timestamp) = (&self.objects, self.timestamp());
        let Serving { log, tablets, .. } = serving;
        let passes = &self.cleaner.passes;
        passes.commit(pass_id, force, log, objects, tablets, timestamp)
    }

    /// The position that `commit_cleaning` returned is durable: the cleaned segments go.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not.
    pub fn end_cleaning(&self, pass_id: u64) -> Result<(), Status> {
        let serving = self.serving()?;
        let passes = &self.cleaner.passes;
        let pass = passes.end(pass_id, serving.durable)?;
        self.objects.release_segments(&pass.cleaned);
        for id in pass.survivors {
            self.objects.segment(id)?.set_cleanable(true);
        }
        drop(serving);
        self.cleaner.wake();
        Ok(())
    }

    /// Without backups, survivors take the place of cleaned segments at once.
    fn exchange_segments(&self, survivors: &[u64], cleaned: &[u64]) {
        let mut serving = self.serving.lock();
        serving.log.add(survivors);
        serving.log.remove(cleaned);
        self.objects.release_segments(cleaned);
    }

    /// What the cleaner must know of the serving state.
    fn survey(&self) -> Result<(Vec<Arc<Tablet>>, u64), Status> {
        let serving = self.serving()?;
        let tablets = serving.tablets.iter().cloned().collect();
        Ok((tablets, serving.durable))
    }

    /// The log memory, for views that outlive the master.
    pub fn arena(&self) -> &Arc<Arena> {
        &self.objects.arena
    }

    /// Position after the newest append.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn appended_position(&self) -> Result<u64, Status> {
        Ok(self.serving()?.log.appended_position())
    }

    /// Everything below `position` is on all its backups.
    ///
    /// # Errors
    /// `InvalidArgument` beyond what was appended.
    pub fn set_durable(&self, position: u64) -> Result<(), Status> {
        self.serving()?.set_durable(&self.objects, position)
    }

    /// Segments of the log, ascending.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn log_segments(&self) -> Result<Vec<u64>, Status> {
        Ok(self.serving()?.log.segments().collect())
    }

    /// Prepares tablets for the replay of one partition.
    ///
    /// # Errors
    /// `InvalidArgument` on an overlap, `OutOfMemory`; then nothing has changed.
    pub fn start_recovery(self: &Arc<Self>, ranges: &[SlotRange]) -> Result<Recovery, Status> {
        Recovery::start(self, ranges)
    }

    /// Starts to give a tablet away; one at a time.
    ///
    /// # Errors
    /// `UnknownTablet`, `InvalidArgument` if it is not exactly one; `Retry` while another is on its
    /// way.
    pub fn start_migration(self: &Arc<Self>, range: &SlotRange) -> Result<Migration, Status> {
        Migration::start(self, range)
    }

    /// Takes over what clients were answered by the former owner of a tablet that is durable here.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not what `Migration::results` gives, `OutOfMemory`.
    pub fn import_results(&self, bytes: &[u8], now_ms: u64) -> Result<(), Status> {
        self.serving()?.results.import(bytes, now_ms)
    }

    /// Sizes and counters by name.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn stats(&self) -> Result<Vec<(&'static str, u64)>, Status> {
        let serving = self.serving()?;
        let (arena, table) = (&self.objects.arena, &self.objects.table);
        let counters = serving.counters;
        let sum = |of: fn(&Tablet) -> u64| serving.tablets.iter().map(|tablet| of(tablet)).sum();
        let mut stats = vec![
            ("tablets", serving.tablets.iter().count() as u64),
            ("objects", sum(Tablet::records)),
            ("liveBytes", sum(Tablet::bytes)),
            ("deadBytes", arena.dead_bytes()),
            ("memoryBytes", arena.bytes() as u64),
            (
                "touchedBytes",
                self.touched_bytes.load(Ordering::Relaxed) as u64,
            ),
            ("segmentsUsed", self.objects.segment_count() as u64),
            ("segmentsFree", arena.free_blocks() as u64),
            ("segmentsReserved", self.objects.reserve.writes as u64),
            ("buckets", table.buckets() as u64),
            ("overflowBuckets", table.overflow_buckets() as u64),
            ("appendedPosition", serving.log.appended_position()),
            ("durablePosition", serving.durable),
            ("safeVersion", self.objects.safe_version()),
            ("clients", serving.results.clients() as u64),
            ("savedResults", serving.results.results() as u64),
            (
                "memoryShort",
                u64::from(arena.free_blocks() < self.objects.reserve.writes),
            ),
            ("memoryFull", u64::from(self.objects.full())),
            ("messages", counters.messages),
            ("reads", counters.reads),
            ("writes", counters.writes),
            ("removes", counters.removes),
            ("duplicates", counters.duplicates),
            ("stale", counters.stale),
            (
                "replayedObjects",
                self.objects.replayed_entries.load(Ordering::Relaxed),
            ),
        ];
        stats.extend(self.cleaner.stats());
        Ok(stats)
    }

    /// Ends the threads and gives the memory back; every later call fails. Views of segments read
    /// zeros.
    ///
    /// # Errors
    /// `InvalidArgument` if it was closed before.
    pub fn close(&self) -> Result<(), Status> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Err(Status::InvalidArgument);
        }
        // Replays that wait fail at once now, those that run end with their segment.
        self.pool.close();
        self.cleaner.passes.unlisten();
        self.cleaner.join();
        let _serving = self.serving.lock();
        self.objects.arena.release_pages();
        self.objects.table.release_pages();
        Ok(())
    }
}

const _: () = assert!(
    MEMORY_BYTES_MIN >= 4 * SEGMENT_BYTES,
    "reserve, head, one side segment"
);

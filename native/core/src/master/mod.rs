//! The master half: log, hash table, objects, EXECUTE messages, recovery replay.
//!
//! [`Master`] is the handle. One thread serves (all calls but replay take the serving lock, which
//! is uncontended then); replay runs on the pool's threads beside it and shares [`objects`] only.
//! Locking order: serving state, recovery state, a replay worker, segments.
//! Side segments and log segments share one id space; ids only grow.

pub mod arena;
pub mod execute;
pub mod hash_table;
pub mod log;
pub mod message;
pub mod objects;
mod pretouch;
pub mod prior_segments;
pub mod recovery;
pub mod replay;
pub mod segment;
pub mod tablets;
pub mod unacked_rpc_results;
pub mod worker_pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use self::arena::{Arena, SEGMENT_SEGLETS};
use self::execute::{Executed, Serving};
use self::hash_table::prefetch;
use self::log::{Purpose, RESERVE_SEGLETS};
use self::message::{OperationKind, Request};
use self::objects::Objects;
use self::recovery::Recovery;
use self::segment::{Certificate, Segment};
use self::tablets::{SlotRange, Tablet};
use self::worker_pool::WorkerPool;
use crate::entry::SEGMENT_BYTES;
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

/// Least log memory: the reserve, a head and room for a replay.
pub const MEMORY_BYTES_MIN: usize = 64 << 20;
const REPLAY_THREADS_MAX: usize = 64;

/// How a master is made.
#[derive(Clone, Copy, Debug)]
pub struct MasterOptions {
    /// Log id.
    pub server_id: u64,
    /// A multiple of the segment size, at least 64 MiB.
    pub memory_bytes: usize,
    /// 1 … 64.
    pub replay_threads: usize,
}

/// What a tablet weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TabletStats {
    /// Its keys.
    pub range: SlotRange,
    /// Bytes of the entries of its objects.
    pub bytes: u64,
    /// Its objects.
    pub records: u64,
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
    serving: Mutex<Serving>,
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
        } = options;
        if memory_bytes < MEMORY_BYTES_MIN
            || !(1..=REPLAY_THREADS_MAX).contains(&replay_threads)
            || server_id == 0
        {
            return Err(Status::InvalidArgument);
        }
        let master = Arc::new(Self {
            objects: Objects::new(server_id, memory_bytes)?,
            pool: WorkerPool::new(replay_threads)?,
            replay_threads,
            closed: AtomicBool::new(false),
            touched_bytes: AtomicUsize::new(0),
            serving: Mutex::default(),
        });
        pretouch::pretouch(&master)?;
        Ok(master)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn serving(&self) -> Result<MutexGuard<'_, Serving>, Status> {
        let serving = self.serving.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(Status::InvalidArgument);
        }
        Ok(serving)
    }

    /// Seconds since 1970, for entries that no request brings.
    fn timestamp(&self) -> u32 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_secs());
        u32::try_from(now).unwrap_or(u32::MAX)
    }

    /// Owns and serves a tablet.
    ///
    /// # Errors
    /// `InvalidArgument` on an overlap, `Retry` while it is being recovered here, `OutOfMemory`.
    pub fn take_tablet(&self, range: SlotRange) -> Result<(), Status> {
        let mut serving = self.serving()?;
        match serving.tablets.exact(&range)? {
            Some(tablet) if tablet.ready() => Ok(()),
            Some(_) => Err(Status::Retry),
            None => serving.tablets.insert(Tablet::new(range, true)),
        }
    }

    /// Forgets a tablet and its objects.
    ///
    /// # Errors
    /// `InvalidArgument` if another tablet overlaps, `Retry` while it is being recovered here.
    pub fn drop_tablet(&self, range: SlotRange) -> Result<(), Status> {
        let mut serving = self.serving()?;
        let records = match serving.tablets.exact(&range)? {
            None => return Ok(()),
            Some(tablet) if !tablet.ready() => return Err(Status::Retry),
            Some(tablet) => tablet.records(),
        };
        serving.tablets.remove(&range);
        // A tombstone left behind would outlive the tablet's versions if it came back.
        if records > 0 || serving.has_pending_tombstones() {
            let arena = &self.objects.arena;
            self.objects.table.retain(
                |offset| prefetch(arena.pointer(offset)),
                |offset| drop_if_within(arena, offset, &range),
            );
        }
        Ok(())
    }

    /// The tablets that are served.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn tablets(&self) -> Result<Vec<TabletStats>, Status> {
        let serving = self.serving()?;
        let ready = serving.tablets.iter().filter(|tablet| tablet.ready());
        Ok(ready
            .map(|tablet| TabletStats {
                range: tablet.range,
                bytes: tablet.bytes(),
                records: tablet.records(),
            })
            .collect())
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
        self.serving()?.execute(&self.objects, body, reply, now_ms)
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
        self.segment(id)?.chunk(from, bytes_max)
    }

    /// A segment; valid until it is freed.
    ///
    /// # Errors
    /// `InvalidArgument` if it is not here.
    pub fn segment(&self, id: u64) -> Result<Arc<Segment>, Status> {
        let _serving = self.serving()?;
        self.objects.segment(id)
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

    /// Sizes and counters by name.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn stats(&self) -> Result<Vec<(&'static str, u64)>, Status> {
        let serving = self.serving()?;
        let (arena, table) = (&self.objects.arena, &self.objects.table);
        let free_segments = arena.free_seglets() / SEGMENT_SEGLETS;
        let counters = serving.counters;
        let sum = |of: fn(&Tablet) -> u64| serving.tablets.iter().map(|tablet| of(tablet)).sum();
        Ok(vec![
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
            ("segmentsFree", free_segments as u64),
            (
                "segmentsReserved",
                (RESERVE_SEGLETS / SEGMENT_SEGLETS) as u64,
            ),
            ("buckets", table.buckets() as u64),
            ("overflowBuckets", table.overflow_buckets() as u64),
            ("appendedPosition", serving.log.appended_position()),
            ("durablePosition", serving.durable),
            ("safeVersion", self.objects.safe_version()),
            ("clients", serving.results.clients() as u64),
            ("savedResults", serving.results.results() as u64),
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
        ])
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
        let _serving = self.serving.lock();
        self.objects.arena.release_pages();
        self.objects.table.release_pages();
        Ok(())
    }
}

fn drop_if_within(arena: &Arena, offset: usize, range: &SlotRange) -> bool {
    // SAFETY: called with the offset of a slot, while no segment is freed.
    let entry = unsafe { arena.entry(offset) };
    let within = entry.table_id() == range.table_id
        && range.contains(
            entry.table_id(),
            slot(key_hash(entry.table_id(), entry.key())),
        );
    if within && entry.entry_type() == crate::entry::EntryType::Object {
        arena.count_dead(offset, entry.total_bytes());
    }
    within
}

const _: () = assert!(
    MEMORY_BYTES_MIN >= 4 * SEGMENT_BYTES,
    "reserve, head, one side segment"
);

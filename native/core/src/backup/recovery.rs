//! Reading and splitting a dead master's segments for its recovery masters.
//!
//! At most [`WORKERS`] threads read, verify and split, first what somebody waits for, then ahead of
//! demand while the cache has room. A piece leaves the cache when it is handed out: a recovery
//! master asks for it once, if nothing fails. What is asked for and not there is split again.
//!
//! Masters take their partitions in turn, each from the newest segment to the oldest. So over the
//! cache's limit go pieces of partitions that nobody has begun, latest splits first (the next turn
//! comes to them last), and only then those of the present turn, oldest first.
//!
//! Rule: a request never waits for room. Splits on demand ignore the limit and evict afterwards, so
//! a cache full of segments that nobody asked for cannot stop the one that somebody waits for.
//! Memory is bounded by the limit plus one segment a worker.

use crate::backup::split::{Partition, PartitionMap, split};
use crate::backup::storage::Shared;
use crate::status::Status;
use parking_lot::{Condvar, Mutex};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Threads that read and split.
pub(super) const WORKERS: usize = 2;
/// Recoveries at the same time.
const RECOVERIES_MAX: usize = 64;
/// Requests that wait in one recovery; beyond it `Retry`.
const WAITERS_MAX: usize = 4_096;

/// A piece {u32 length, u32 checksum, bytes}, shared with the cache.
pub type Piece = Arc<Vec<u8>>;
/// Called once with the piece or the reason why there is none.
pub type PieceWaiter = Box<dyn FnOnce(Result<Piece, Status>) + Send>;

enum Progress {
    /// Not split, or nothing is left of it.
    Absent,
    Working,
    /// By partition, what was neither handed out nor evicted: at least one piece.
    Ready(Vec<Option<Piece>>),
    Failed(Status),
}

struct SegmentWork {
    progress: Progress,
    waiters: Vec<(usize, PieceWaiter)>,
    /// By partition: handed out at least once.
    served: Vec<bool>,
}

impl SegmentWork {
    fn new(partitions: usize) -> Self {
        let served = vec![false; partitions];
        Self {
            progress: Progress::Absent,
            waiters: Vec::new(),
            served,
        }
    }

    /// Takes the pieces that `wanted` says by their partition, until `over` bytes are taken; says
    /// how many were.
    fn take(&mut self, over: usize, wanted: impl Fn(usize) -> bool) -> usize {
        let Progress::Ready(pieces) = &mut self.progress else {
            return 0;
        };
        let mut taken = 0;
        for (index, place) in pieces.iter_mut().enumerate() {
            if taken < over && wanted(index) {
                taken += place.take().map_or(0, |piece| piece.len());
            }
        }
        if pieces.iter().all(Option::is_none) {
            self.progress = Progress::Absent;
        }
        taken
    }
}

struct Recovery {
    /// Tells a recovery from its successor with the same id.
    serial: u64,
    master_id: u64,
    partitions: Arc<PartitionMap>,
    segments: BTreeMap<u64, SegmentWork>,
    /// By partition: somebody has asked for a piece of it.
    begun: Vec<bool>,
    waiters: usize,
}

#[derive(Default)]
struct Inner {
    recoveries: BTreeMap<u64, Recovery>,
    next_serial: u64,
    /// (recovery id, serial, segment id) that somebody waits for.
    urgent: VecDeque<(u64, u64, u64)>,
    /// Those to split ahead of demand.
    ahead: VecDeque<(u64, u64, u64)>,
    /// Segments that were split, the latest last; of some nothing may be left.
    ready: VecDeque<(u64, u64, u64)>,
    cached_bytes: usize,
    splits: u64,
    evictions: u64,
    stopping: bool,
}

/// All recoveries of one backup.
pub(super) struct Recoveries {
    shared: Arc<Shared>,
    cache_bytes_max: usize,
    inner: Mutex<Inner>,
    wake: Condvar,
}

struct Task {
    recovery_id: u64,
    serial: u64,
    segment_id: u64,
    master_id: u64,
    partitions: Arc<PartitionMap>,
}

type Answer = (PieceWaiter, Result<Piece, Status>);

fn answer(answers: Vec<Answer>) {
    for (waiter, result) in answers {
        waiter(result);
    }
}

impl Inner {
    fn segment(&mut self, id: (u64, u64, u64)) -> Option<&mut SegmentWork> {
        let recovery = self
            .recoveries
            .get_mut(&id.0)
            .filter(|found| found.serial == id.1)?;
        recovery.segments.get_mut(&id.2)
    }

    fn remove(&mut self, recovery_id: u64, status: Status, answers: &mut Vec<Answer>) {
        let Some(recovery) = self.recoveries.remove(&recovery_id) else {
            return;
        };
        for work in recovery.segments.into_values() {
            if let Progress::Ready(pieces) = &work.progress {
                self.cached_bytes -= bytes_of(pieces);
            }
            let waiters = work.waiters.into_iter();
            answers.extend(waiters.map(|(_, waiter)| (waiter, Err(status))));
        }
        let serial = recovery.serial;
        for queue in [&mut self.urgent, &mut self.ahead, &mut self.ready] {
            queue.retain(|task| task.1 != serial);
        }
    }

    /// Drops pieces until the cache is within its limit, in the order of the file's head.
    fn evict(&mut self, limit: usize) {
        if self.cached_bytes <= limit {
            return;
        }
        let ready = std::mem::take(&mut self.ready);
        for id in ready.iter().rev() {
            self.drop_pieces(*id, limit, false);
        }
        for id in &ready {
            self.drop_pieces(*id, limit, true);
        }
        self.ready = ready;
    }

    fn drop_pieces(&mut self, id: (u64, u64, u64), limit: usize, of_begun: bool) {
        let over = self.cached_bytes.saturating_sub(limit);
        let recovery = self.recoveries.get_mut(&id.0);
        let recovery = recovery.expect("ready segments belong to a recovery");
        let work = recovery.segments.get_mut(&id.2);
        let work = work.expect("ready segments are known");
        let taken = work.take(over, |index| of_begun || !recovery.begun[index]);
        self.cached_bytes -= taken;
        self.evictions += u64::from(taken > 0);
    }

    /// Notes that a segment was split, and forgets those of which nothing is left.
    fn note_ready(&mut self, id: (u64, u64, u64)) {
        let recoveries = &self.recoveries;
        self.ready.retain(|other| {
            let recovery = recoveries.get(&other.0);
            let work = recovery.and_then(|found| found.segments.get(&other.2));
            *other != id && work.is_some_and(|work| matches!(work.progress, Progress::Ready(_)))
        });
        self.ready.push_back(id);
    }

    fn next_task(&mut self, cache_bytes_max: usize) -> Option<Task> {
        loop {
            let (id, demanded) = match self.urgent.pop_front() {
                Some(id) => (id, true),
                None => {
                    if self.cached_bytes >= cache_bytes_max {
                        return None;
                    }
                    (self.ahead.pop_front()?, false)
                }
            };
            let Some(work) = self.segment(id) else {
                continue;
            };
            // Left over: answered meanwhile, or handed out in part, after which only demand counts.
            let wanted = if demanded {
                !work.waiters.is_empty()
            } else {
                work.served.iter().all(|&served| !served)
            };
            if !wanted || !matches!(work.progress, Progress::Absent) {
                continue;
            }
            work.progress = Progress::Working;
            let recovery = self.recoveries.get(&id.0).expect("its segment was found");
            return Some(Task {
                recovery_id: id.0,
                serial: id.1,
                segment_id: id.2,
                master_id: recovery.master_id,
                partitions: Arc::clone(&recovery.partitions),
            });
        }
    }

    fn finish(
        &mut self,
        task: &Task,
        result: Result<Vec<Piece>, Status>,
        cache_bytes_max: usize,
    ) -> Vec<Answer> {
        self.splits += 1;
        let id = (task.recovery_id, task.serial, task.segment_id);
        let Some(work) = self.segment(id) else {
            return Vec::new();
        };
        let mut answers: Vec<Answer> = Vec::new();
        for (index, waiter) in std::mem::take(&mut work.waiters) {
            work.served[index] = true;
            let piece = result.as_ref().map(|pieces| Arc::clone(&pieces[index]));
            answers.push((waiter, piece.map_err(|status| *status)));
        }
        match result {
            Ok(pieces) => {
                let pieces = pieces.into_iter().zip(&work.served);
                let kept: Vec<_> = pieces
                    .map(|(piece, served)| (!served).then_some(piece))
                    .collect();
                let bytes = bytes_of(&kept);
                work.progress = if bytes == 0 {
                    Progress::Absent
                } else {
                    Progress::Ready(kept)
                };
                self.cached_bytes += bytes;
                self.note_ready(id);
            }
            Err(status) => work.progress = Progress::Failed(status),
        }
        let recovery = self
            .recoveries
            .get_mut(&id.0)
            .expect("its segment was found");
        recovery.waiters -= answers.len();
        self.evict(cache_bytes_max);
        answers
    }
}

fn bytes_of(pieces: &[Option<Piece>]) -> usize {
    pieces.iter().flatten().map(|piece| piece.len()).sum()
}

impl Recoveries {
    pub fn new(shared: Arc<Shared>, cache_bytes_max: usize) -> Arc<Self> {
        let (inner, wake) = (Mutex::new(Inner::default()), Condvar::new());
        Arc::new(Self {
            shared,
            cache_bytes_max,
            inner,
            wake,
        })
    }

    pub fn start(
        &self,
        recovery_id: u64,
        master_id: u64,
        partitions: &[Partition],
        segment_ids: &[u64],
    ) -> Result<(), Status> {
        let partitions = Arc::new(PartitionMap::new(partitions)?);
        let mut answers = Vec::new();
        let mut inner = self.inner.lock();
        if inner.stopping {
            return Err(Status::Internal);
        }
        let older = inner.recoveries.iter();
        let older: Vec<u64> = older
            .filter(|(id, recovery)| **id == recovery_id || recovery.master_id == master_id)
            .map(|(id, _)| *id)
            .collect();
        if inner.recoveries.len() - older.len() >= RECOVERIES_MAX {
            return Err(Status::Retry);
        }
        for id in older {
            inner.remove(id, Status::RecoveryUnknown, &mut answers);
        }
        inner.next_serial += 1;
        let serial = inner.next_serial;
        let count = partitions.count();
        let segments: BTreeMap<u64, SegmentWork> = segment_ids
            .iter()
            .map(|&id| (id, SegmentWork::new(count)))
            .collect();
        // As recovery masters ask: newest first.
        let newest_first = segments.keys().rev();
        inner
            .ahead
            .extend(newest_first.map(|&id| (recovery_id, serial, id)));
        let recovery = Recovery {
            serial,
            master_id,
            partitions,
            segments,
            begun: vec![false; count],
            waiters: 0,
        };
        inner.recoveries.insert(recovery_id, recovery);
        drop(inner);
        self.shared.rest();
        self.wake.notify_all();
        answer(answers);
        Ok(())
    }

    pub fn piece(&self, recovery_id: u64, segment_id: u64, partition_id: u64, waiter: PieceWaiter) {
        self.shared.rest();
        if let Some((waiter, result)) =
            self.find_piece(recovery_id, segment_id, partition_id, waiter)
        {
            // There is room for another one now.
            self.wake.notify_one();
            waiter(result);
        }
    }

    /// The answer, or None if the waiter was queued.
    fn find_piece(
        &self,
        recovery_id: u64,
        segment_id: u64,
        partition_id: u64,
        waiter: PieceWaiter,
    ) -> Option<Answer> {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(recovery) = inner.recoveries.get_mut(&recovery_id) else {
            return Some((waiter, Err(Status::RecoveryUnknown)));
        };
        let Some(index) = recovery.partitions.index_of(partition_id) else {
            return Some((waiter, Err(Status::InvalidArgument)));
        };
        // Named at the start are only the segments to read unasked. Any other replica that lies
        // here is served on demand: the backup that was to serve it is dead or its copy is bad.
        let key = (recovery.master_id, segment_id);
        let work = match recovery.segments.entry(segment_id) {
            Entry::Occupied(work) => work.into_mut(),
            Entry::Vacant(place) if self.shared.holds(key) => {
                place.insert(SegmentWork::new(recovery.partitions.count()))
            }
            Entry::Vacant(_) => return Some((waiter, Err(Status::ReplicaUnknown))),
        };
        recovery.begun[index] = true;
        if let Progress::Failed(status) = work.progress {
            return Some((waiter, Err(status)));
        }
        if let Progress::Ready(pieces) = &work.progress {
            if let Some(piece) = pieces[index].clone() {
                work.served[index] = true;
                inner.cached_bytes -= work.take(usize::MAX, |other| other == index);
                return Some((waiter, Ok(piece)));
            }
            // Handed out before, or evicted: all of the segment is split again.
            inner.cached_bytes -= work.take(usize::MAX, |_| true);
        }
        if recovery.waiters >= WAITERS_MAX {
            return Some((waiter, Err(Status::Retry)));
        }
        work.waiters.push((index, waiter));
        recovery.waiters += 1;
        if matches!(work.progress, Progress::Absent) {
            let id = (recovery_id, recovery.serial, segment_id);
            inner.urgent.push_back(id);
        }
        drop(guard);
        self.wake.notify_one();
        None
    }

    pub fn end(&self, recovery_id: u64) {
        let mut answers = Vec::new();
        let mut inner = self.inner.lock();
        inner.remove(recovery_id, Status::RecoveryUnknown, &mut answers);
        let last = inner.recoveries.is_empty();
        drop(inner);
        if last {
            self.shared.end_rest();
        }
        self.wake.notify_all();
        answer(answers);
    }

    /// Ends the workers; what waits is answered.
    pub fn stop(&self) {
        let mut answers = Vec::new();
        {
            let mut inner = self.inner.lock();
            inner.stopping = true;
            let ids: Vec<u64> = inner.recoveries.keys().copied().collect();
            for id in ids {
                inner.remove(id, Status::RecoveryUnknown, &mut answers);
            }
        }
        self.wake.notify_all();
        answer(answers);
    }

    pub fn add_stats(&self, stats: &mut BTreeMap<&'static str, f64>) {
        let inner = self.inner.lock();
        stats.insert("recoveries", inner.recoveries.len() as f64);
        stats.insert("pieceCacheBytes", inner.cached_bytes as f64);
        stats.insert("segmentSplits", inner.splits as f64);
        stats.insert("segmentEvictions", inner.evictions as f64);
    }

    /// A worker: runs until `stop`.
    pub fn run(&self) {
        loop {
            let task = {
                let mut inner = self.inner.lock();
                loop {
                    if inner.stopping {
                        return;
                    }
                    if let Some(task) = inner.next_task(self.cache_bytes_max) {
                        break task;
                    }
                    self.wake.wait(&mut inner);
                }
            };
            // A panic (a bug) fails this segment here; the recovery masters use other replicas.
            let result = catch_unwind(AssertUnwindSafe(|| self.split_segment(&task)))
                .unwrap_or(Err(Status::Internal));
            let answers = self
                .inner
                .lock()
                .finish(&task, result, self.cache_bytes_max);
            answer(answers);
        }
    }

    fn split_segment(&self, task: &Task) -> Result<Vec<Piece>, Status> {
        let replica = self
            .shared
            .read_replica((task.master_id, task.segment_id))?;
        let pieces = split(replica.bytes(), task.segment_id, &task.partitions)?;
        Ok(pieces.into_iter().map(Arc::new).collect())
    }
}

//! The recovery of one partition on this master: prepare, replay, commit, activate or abort.
//!
//! Rules: its tablets are not served before `activate`; its side segments enter the log only
//! through the digest of the head that `commit` opens; `abort` leaves nothing in the table. After a
//! commit the digest names the side segments, and freeing their replicas before a later digest is
//! durable would tear a hole into the log: such a recovery is taken back by `withdraw`, a new
//! durable head, `abort`. An abort straight after a commit keeps them in the log as dead weight.

pub mod room;
mod sift;
mod undo;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use self::room::Room;
use super::log::Purpose;
use super::replay::{PIECE_BYTES_MAX, Replay, ReplayWorker, Replayed, Source};
use super::segment::Segment;
use super::tablets::{Service, SlotRange, Tablet};
use super::{Master, REPLAY_PARTICIPANT};
use crate::entry::PieceChecksum;
use crate::status::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Replaying,
    /// A replay failed half-way; only `abort` is left.
    Failed(Status),
    /// Markers are taken out of the table.
    Finishing,
    Finished,
    Committed,
    Active,
    Aborted,
}

struct State {
    phase: Phase,
    running: usize,
}

/// See the file's head.
pub struct Recovery {
    master: Arc<Master>,
    tablets: Vec<Arc<Tablet>>,
    /// First segment of the log that can hold entries of the recovered tablets.
    pub ctime_segment_id: u64,
    cancelled: AtomicBool,
    state: Mutex<State>,
    none_running: Condvar,
    /// By thread of the pool; a worker's lock is taken by its thread alone while it replays.
    workers: Box<[Mutex<ReplayWorker>]>,
    /// All side segments.
    sides: Mutex<Vec<Arc<Segment>>>,
}

impl Recovery {
    pub(super) fn start(master: &Arc<Master>, ranges: &[SlotRange]) -> Result<Self, Status> {
        let mut serving = master.serving()?;
        let mut tablets: Vec<_> = ranges
            .iter()
            .map(|range| Tablet::new(*range, Service::Coming, u64::MAX))
            .collect();
        tablets.sort_by_key(|tablet| tablet.range);
        let mut inserted = 0;
        let outcome = tablets
            .iter()
            .try_for_each(|tablet| {
                serving.tablets.insert(Arc::clone(tablet))?;
                inserted += 1;
                Ok(())
            })
            .and_then(|()| {
                let serving = &mut *serving;
                // Attempts that fail must not cost a segment each: an unused head bounds as well,
                // unless the cleaner may yet put old tombstones into a segment above it.
                let unused = serving.log.unused_head();
                if let Some(head) = unused.filter(|head| head.id >= master.objects.survivor_id()) {
                    return Ok(Arc::clone(head));
                }
                let timestamp = master.timestamp();
                serving
                    .log
                    .roll(&master.objects, &serving.tablets, Purpose::Write, timestamp)
            });
        let head = match outcome {
            Ok(head) => head,
            Err(status) => {
                for tablet in &tablets[..inserted] {
                    serving.tablets.remove(&tablet.range);
                }
                return Err(status);
            }
        };
        master.objects.table.begin_replay();
        drop(serving);
        for tablet in &tablets {
            tablet.set_ctime_segment_id(head.id);
        }
        Ok(Self {
            master: Arc::clone(master),
            tablets,
            ctime_segment_id: head.id,
            cancelled: AtomicBool::new(false),
            state: Mutex::new(State {
                phase: Phase::Replaying,
                running: 0,
            }),
            none_running: Condvar::new(),
            workers: (0..master.replay_threads)
                .map(|_| Mutex::default())
                .collect(),
            sides: Mutex::new(Vec::new()),
        })
    }

    /// Replays one recovery segment on a thread of the pool; `done` is called on that thread.
    ///
    /// # Errors
    /// `Retry` if too many wait already; `done` is dropped uncalled.
    pub fn replay_later<B, D>(
        self: &Arc<Self>,
        bytes: B,
        checksum: u32,
        done: D,
    ) -> Result<(), Status>
    where
        B: AsRef<[u8]> + Send + 'static,
        D: FnOnce(Result<Replayed, Status>, B) + Send + 'static,
    {
        let recovery = Arc::clone(self);
        self.master.pool.submit(Box::new(move |thread| {
            let replayed = recovery.replay(thread, bytes.as_ref(), checksum);
            drop(recovery);
            done(replayed, bytes);
        }))
    }

    /// Replays one recovery segment here; `thread` is below the number of replay threads.
    ///
    /// # Errors
    /// `ChecksumMismatch`, `InvalidArgument`: nothing of it was applied. `OutOfMemory`,
    /// `RecoveryUnknown`, `Internal`: only `abort` is left.
    pub fn replay(&self, thread: usize, bytes: &[u8], checksum: u32) -> Result<Replayed, Status> {
        if bytes.is_empty() {
            // Costs no side segment.
            self.enter()?;
            self.leave(None);
            let whole = PieceChecksum::default().finish() == checksum;
            return whole
                .then(Replayed::default)
                .ok_or(Status::ChecksumMismatch);
        }
        if self.holds_much_dead() {
            return self.replay_sifted(thread, bytes, checksum);
        }
        let room = self.reserve(thread, bytes.len())?;
        room.replay(bytes.len(), checksum, Source::Bytes(bytes))
    }

    fn holds_much_dead(&self) -> bool {
        let sides = self.sides.lock();
        let side_bytes = sides.iter().map(|side| side.appended() as u64).sum();
        drop(sides);
        let live_bytes = self.tablets.iter().map(|tablet| tablet.bytes()).sum();
        sift::is_worth_it(side_bytes, live_bytes)
    }

    /// The same, but what is dead on arrival takes no log memory.
    ///
    /// # Errors
    /// See `replay`.
    pub fn replay_sifted(
        &self,
        thread: usize,
        bytes: &[u8],
        checksum: u32,
    ) -> Result<Replayed, Status> {
        self.enter()?;
        let sifted = catch_unwind(AssertUnwindSafe(|| {
            let _worker = self.workers[thread].lock();
            let participant = REPLAY_PARTICIPANT + thread;
            sift::sift(
                &self.master.objects,
                &self.tablets,
                participant,
                bytes,
                checksum,
            )
        }))
        .unwrap_or(Err(Status::Internal));
        self.leave(sifted.as_ref().err().copied());
        let sifted = sifted?;
        let (rest, checksum, dropped) = match &sifted {
            Some(sifted) => (&sifted.bytes[..], sifted.checksum, sifted.dropped),
            None => (bytes, checksum, 0),
        };
        let adopted =
            self.reserve(thread, rest.len())?
                .replay(rest.len(), checksum, Source::Bytes(rest))?;
        Ok(Replayed {
            objects: adopted.objects + dropped,
            bytes: bytes.len() as u64,
        })
    }

    /// The same for the LZ4 image of a recovery segment of `raw_length` bytes.
    ///
    /// # Errors
    /// See `replay`.
    pub fn replay_image(
        &self,
        thread: usize,
        image: &[u8],
        raw_length: usize,
        checksum: u32,
    ) -> Result<Replayed, Status> {
        let room = self.reserve(thread, raw_length)?;
        room.replay(raw_length, checksum, Source::Image(image))
    }

    /// Replays the recovery segment of `length` bytes that was put into `room`.
    ///
    /// # Errors
    /// See `replay`.
    ///
    /// # Panics
    /// If the room is shorter or another thread's.
    pub fn replay_in_place(
        &self,
        thread: usize,
        room: Room<'_>,
        length: usize,
        checksum: u32,
    ) -> Result<Replayed, Status> {
        room.assert_of(self, thread, length);
        room.replay(length, checksum, Source::InPlace)
    }

    /// Log memory for a recovery segment of up to `length` bytes, to be filled and then replayed;
    /// one at a time for each thread. It costs nothing if it is dropped.
    ///
    /// # Errors
    /// `InvalidArgument` beyond the longest recovery segment. `OutOfMemory`, `RecoveryUnknown`:
    /// only `abort` is left.
    pub fn reserve(&self, thread: usize, length: usize) -> Result<Room<'_>, Status> {
        if length > PIECE_BYTES_MAX {
            return Err(Status::InvalidArgument);
        }
        self.enter()?;
        let mut worker = self.workers[thread].lock();
        let timestamp = self.master.timestamp();
        match self.replay_of(thread, &mut worker, timestamp).side(length) {
            Ok(side) => Ok(Room {
                recovery: self,
                worker,
                side,
                thread,
                length,
                timestamp,
                ended: false,
            }),
            Err(status) => {
                drop(worker);
                self.leave(Some(status));
                Err(status)
            }
        }
    }

    fn replay_of<'a>(
        &'a self,
        thread: usize,
        worker: &'a mut ReplayWorker,
        timestamp: u32,
    ) -> Replay<'a> {
        Replay {
            objects: &self.master.objects,
            tablets: &self.tablets,
            sides: &self.sides,
            cancelled: &self.cancelled,
            timestamp,
            participant: REPLAY_PARTICIPANT + thread,
            worker,
        }
    }

    fn enter(&self) -> Result<(), Status> {
        let mut state = self.state.lock();
        match state.phase {
            _ if self.master.closed.load(Ordering::Acquire) => Err(Status::RecoveryUnknown),
            Phase::Replaying => {
                state.running += 1;
                Ok(())
            }
            Phase::Failed(status) => Err(status),
            _ => Err(Status::RecoveryUnknown),
        }
    }

    fn leave(&self, failure: Option<Status>) {
        let mut state = self.state.lock();
        state.running -= 1;
        self.none_running.notify_all();
        if let Some(status) = failure
            && !matches!(status, Status::ChecksumMismatch | Status::InvalidArgument)
            && state.phase == Phase::Replaying
        {
            state.phase = Phase::Failed(status);
            self.cancel();
        }
    }

    /// Side segments so far, ascending.
    pub fn side_segments(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = self.sides.lock().iter().map(|side| side.id).collect();
        ids.sort_unstable();
        ids
    }

    fn advance(&self, from: Phase, to: Phase) -> Result<(), Status> {
        let mut state = self.state.lock();
        if let Phase::Failed(status) = state.phase {
            return Err(status);
        }
        if state.phase != from || state.running > 0 {
            return Err(Status::InvalidArgument);
        }
        state.phase = to;
        Ok(())
    }

    /// Adds the side segments to the log and rolls the head. Returns the position that must be
    /// durable before ownership may be claimed.
    ///
    /// # Errors
    /// `OutOfMemory`: nothing has changed. `InvalidArgument` before `finish_replay` or twice.
    pub fn commit(&self) -> Result<u64, Status> {
        let mut serving = self.master.serving()?;
        self.advance(Phase::Finished, Phase::Committed)?;
        let sides = self.side_segments();
        let serving = &mut *serving;
        serving.log.add(&sides);
        let timestamp = self.master.timestamp();
        let objects = &self.master.objects;
        match serving
            .log
            .roll(objects, &serving.tablets, Purpose::Head, timestamp)
        {
            Ok(_) => Ok(serving.log.appended_position()),
            Err(status) => {
                serving.log.remove(&sides);
                self.advance(Phase::Committed, Phase::Finished)?;
                Err(status)
            }
        }
    }

    /// Undoes `commit`: the next head does not name the side segments. Until that head is durable
    /// the older digest does, so they and their replicas stay until `abort`.
    ///
    /// # Errors
    /// `InvalidArgument` before `commit` or once active.
    pub fn withdraw(&self) -> Result<(), Status> {
        let mut serving = self.master.serving()?;
        self.advance(Phase::Committed, Phase::Finished)?;
        serving.log.remove(&self.side_segments());
        Ok(())
    }

    /// Serves the tablets.
    ///
    /// # Errors
    /// `InvalidArgument` before `commit` or twice.
    pub fn activate(&self) -> Result<(), Status> {
        let _serving = self.master.serving()?;
        self.advance(Phase::Committed, Phase::Active)?;
        for side in self.sides.lock().iter() {
            side.set_cleanable(true);
        }
        for tablet in &self.tablets {
            tablet.set_service(Service::Full);
        }
        Ok(())
    }

    /// Replays that run end soon, those that wait fail.
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Returns when no replay runs; soon after `cancel`.
    fn await_replays(&self) {
        let mut state = self.state.lock();
        while state.running > 0 {
            self.none_running.wait(&mut state);
        }
    }
}

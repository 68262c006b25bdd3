//! Compresses closed replicas where a probe says that it pays, on a low-priority thread.
//!
//! While a recovery needs the processor nothing is compressed: making its copies small was a fifth
//! of what it took. What was closed meanwhile is read from disk and compressed afterwards.
//!
//! Rule: the image is written to units that nothing on disk names and flushed here; the I/O thread
//! then writes the directory that names it, flushes that, and only then frees the raw frame. A
//! crash leaves one or both; the restart scan keeps one. A replica that cannot be compressed now
//! (no room, a disk error, more closes than this thread can follow) stays raw and is counted.

use crate::backup::directory::{Extent, UNIT_BYTES};
use crate::backup::frame::{block_ceiling, frame_of};
use crate::backup::lz4_image;
use crate::backup::read::ReplicaBytes;
use crate::backup::segment_buffer::SegmentBuffer;
use crate::backup::state::{CompressJob, Job, State, Switch};
use crate::backup::storage::Shared;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Frames that compression leaves to new replicas.
const FRAMES_SPARED: usize = 2;
/// After a disk error nothing is compressed for this long: a disk that goes on failing would have
/// one frame after the other latched.
const PAUSE: Duration = Duration::from_secs(10);
const NICENESS: i32 = 10;
/// Closed replicas that are remembered while compression rests: a frame file of 32 GB.
const PARKED_MAX: usize = 4_096;
/// After the last request of a recovery masters still write their copies.
const REST: Duration = Duration::from_secs(5);

#[derive(PartialEq, Eq)]
enum Outcome {
    /// The I/O thread has the image, and counts what becomes of it.
    Switching,
    StaysRaw,
    DiskFailed,
}

/// Runs until the storage stops.
pub(super) fn run(shared: &Arc<Shared>) {
    // SAFETY: a plain system call about the calling thread; failure leaves the normal priority.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS) };
    let mut pause_until: Option<Instant> = None;
    loop {
        let job = {
            let mut state = shared.state.lock();
            loop {
                if state.stopping {
                    state.compress_queue.clear();
                    state.compress_parked.clear();
                    return;
                }
                if let Some(until) = state.rests(Instant::now()) {
                    state.park_compression();
                    shared.compress_wake.wait_until(&mut state, until);
                    continue;
                }
                let fresh = state.compress_queue.pop_front();
                if let Some(job) = fresh.or_else(|| state.compress_parked.pop_front()) {
                    break job;
                }
                shared.compress_wake.wait(&mut state);
            }
        };
        let paused = pause_until.is_some_and(|until| Instant::now() < until);
        let outcome = if paused {
            Outcome::StaysRaw
        } else {
            compress(shared, &job)
        };
        if outcome == Outcome::DiskFailed {
            pause_until = Some(Instant::now() + PAUSE);
        }
        if outcome != Outcome::Switching {
            shared.state.lock().counters.compression_skipped += 1;
        }
    }
}

impl State {
    /// Until when nothing is compressed or pre-written, if that is not over.
    pub fn rests(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| *until > now)
    }

    /// Remembers what waits without its bytes.
    pub fn park_compression(&mut self) {
        for mut job in self.compress_queue.drain(..) {
            if self.compress_parked.len() < PARKED_MAX {
                job.buffer = None;
                self.compress_parked.push_back(job);
            } else {
                self.counters.compression_skipped += 1;
            }
        }
    }
}

impl Shared {
    /// A recovery is served here: its masters write copies to this backup as well.
    pub(super) fn rest(&self) {
        self.state.lock().rests_until = Some(Instant::now() + REST);
    }

    /// No recovery is served here any more.
    pub(super) fn end_rest(&self) {
        self.state.lock().rests_until = None;
        self.io_wake.notify_one();
        self.compress_wake.notify_one();
    }

    /// Of the replica that a job is about; None if it is gone or cannot be read.
    fn bytes_of(&self, job: &CompressJob) -> Option<ReplicaBytes> {
        if let Some(buffer) = &job.buffer {
            return Some(ReplicaBytes::of_closed(buffer, job.certified.length));
        }
        let state = self.state.lock();
        let there = state.replicas.get(&job.key).map(|replica| replica.id) == Some(job.id);
        drop(state);
        self.read_replica(job.key).ok().filter(|_| there)
    }
}

fn compress(shared: &Shared, job: &CompressJob) -> Outcome {
    let Some(replica) = shared.bytes_of(job) else {
        return Outcome::StaysRaw;
    };
    let bytes = replica.bytes();
    if !lz4_image::probe(bytes) {
        return Outcome::StaysRaw;
    }
    let Ok(mut image) = shared.pool.take() else {
        return Outcome::StaysRaw;
    };
    let Some(stored) = lz4_image::encode(bytes, image.bytes_mut()) else {
        return Outcome::StaysRaw;
    };
    let extent = {
        let mut state = shared.state.lock();
        let replica = state.replicas.get(&job.key);
        let wanted = replica.is_some_and(|replica| replica.id == job.id);
        let units = stored.div_ceil(UNIT_BYTES) as u32;
        let extent = if wanted && !state.stopping {
            state.frames.allocate_extent(units, FRAMES_SPARED)
        } else {
            None
        };
        let Some(extent) = extent else {
            return Outcome::StaysRaw;
        };
        extent
    };
    let written = write_image(shared, extent, stored, &mut image);
    let mut state = shared.state.lock();
    if let Err(failure) = written {
        give_up(&mut state, extent, &failure);
        return Outcome::DiskFailed;
    }
    if state.stopping {
        state.frames.release_extent(extent);
        return Outcome::StaysRaw;
    }
    let switch = Switch {
        key: job.key,
        id: job.id,
        certified: job.certified,
        primary: job.primary,
        stored: stored as u32,
        extent,
    };
    state.jobs.push_back(Job::Switch(switch));
    shared.io_wake.notify_one();
    Outcome::Switching
}

/// Why an image could not be flushed; with the frame, if one write failed.
struct Failure {
    frame: Option<u32>,
    disk_full: bool,
}

fn write_image(
    shared: &Shared,
    extent: Extent,
    stored: usize,
    image: &mut SegmentBuffer,
) -> Result<(), Failure> {
    let end = block_ceiling(stored);
    let image = image.bytes_mut();
    image[stored..end].fill(0);
    for (offset, range) in extent.runs(end) {
        let written = shared.compressor_file.write(&image[range], offset);
        written.map_err(|error| Failure {
            frame: Some(frame_of(offset)),
            disk_full: error.kind() == ErrorKind::StorageFull,
        })?;
    }
    let synced = shared.compressor_file.sync();
    synced.map_err(|_| Failure {
        frame: None,
        disk_full: false,
    })
}

/// Latches the frames that failed; what they hold for others stays readable. A full disk is no
/// reason to latch a frame that others live in: its units were never written before.
fn give_up(state: &mut State, extent: Extent, failure: &Failure) {
    state.counters.disk_errors += 1;
    if failure.disk_full {
        state.frames.pause_growth(Instant::now());
    }
    for piece in extent.pieces() {
        let hit = failure.frame.is_none_or(|frame| frame == piece.frame);
        let spared = failure.disk_full && !state.frames.shared.tenants(piece.frame).is_empty();
        if hit && !spared {
            state.frames.latch_bad(piece.frame);
        } else {
            let (home, next) = (piece, None);
            state.frames.release_extent(Extent { home, next });
        }
    }
}

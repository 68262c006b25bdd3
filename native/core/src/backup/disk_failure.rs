//! What a failing disk costs: frames, replicas, at last the whole disk. And forgetting replicas.
//!
//! Rules, all latched until the process ends. A write that fails, or a closed replica that the
//! scrub cannot read, may have met a bad block: it costs its frame. A flush that fails says nothing
//! about what it covered, and [`FRAMES_FAILED_MAX`] bad frames are no chance: then nothing is
//! written any more, and no frame is given out. A full disk is not a failing one; growth pauses. A
//! replica whose write failed is *lost*: it takes no more writes, but what was acknowledged stays
//! readable until its master frees it, since the master may be dead and this the last copy. A free
//! never claims that bytes are gone that may be on disk.

use crate::backup::state::{Place, ReplicaKey, State};
use crate::status::Status;
use std::io;
use std::time::Instant;

/// Bad frames with which the disk counts as failed.
const FRAMES_FAILED_MAX: u32 = 3;

/// What failed in one group.
#[derive(Default)]
pub(super) struct Failures {
    frames: u32,
    disk: bool,
    full: bool,
}

impl Failures {
    /// A write to one frame failed.
    pub fn note_frame(&mut self, error: &io::Error) {
        if error.kind() == io::ErrorKind::StorageFull {
            self.full = true;
        } else {
            self.frames += 1;
        }
    }

    /// A flush failed, or a write of what every replica depends on.
    pub fn note_disk(&mut self) {
        self.disk = true;
    }
}

impl State {
    /// Before the group is applied: what does not belong to one of its frames.
    pub fn apply_failures(&mut self, failures: &Failures, done: &mut Vec<(u64, Status)>) {
        if failures.full {
            self.frames.pause_growth(Instant::now());
        }
        self.counters.frames_failed += failures.frames;
        if failures.disk || self.counters.frames_failed >= FRAMES_FAILED_MAX {
            self.fail_disk(done);
        }
    }

    /// A closed replica that was acknowledged cannot be read any more.
    pub fn note_unreadable(&mut self, done: &mut Vec<(u64, Status)>) {
        self.counters.frames_failed += 1;
        if self.counters.frames_failed >= FRAMES_FAILED_MAX {
            self.fail_disk(done);
        }
    }

    /// Open replicas are lost; those that are closed, or from earlier processes, are still read.
    fn fail_disk(&mut self, done: &mut Vec<(u64, Status)>) {
        if self.frames.failed() {
            return;
        }
        self.frames.fail();
        self.dirty.clear();
        self.dirty_since = None;
        self.compress_queue.clear();
        self.compress_parked.clear();
        for replica in self.replicas.values_mut() {
            let waiting = replica.waiting.drain(..);
            done.extend(waiting.map(|token| (token, Status::DiskError)));
            replica.lost |= replica.memory.is_some() && !replica.durable_closed;
        }
    }

    /// The replica took a write that failed.
    pub fn lose_replica(&mut self, key: ReplicaKey, id: u64, done: &mut Vec<(u64, Status)>) {
        self.counters.disk_errors += 1;
        let Some(replica) = self.replicas.get_mut(&key) else {
            return;
        };
        if replica.id != id {
            return;
        }
        replica.lost = true;
        let waiting = replica.waiting.drain(..);
        done.extend(waiting.map(|token| (token, Status::DiskError)));
        if let Some(replaced) = replica.replaced.take() {
            self.unfreed.insert(key);
            self.replicas.insert(key, *replaced);
        }
    }

    /// Forgets a replica; returns the places to free.
    pub fn forget_replica(
        &mut self,
        key: ReplicaKey,
        done: &mut Vec<(u64, Status)>,
    ) -> Vec<(ReplicaKey, Place)> {
        self.dirty.remove(&key);
        let Some(mut replica) = self.replicas.remove(&key) else {
            return Vec::new();
        };
        let waiting = replica.waiting.drain(..);
        done.extend(waiting.map(|token| (token, Status::ReplicaUnknown)));
        let replaced = replica.replaced.take().map(|replaced| replaced.place);
        let places = std::iter::once(replica.place).chain(replaced);
        places.map(|place| (key, place)).collect()
    }

    /// Whoever reads a replica beside the I/O thread: its frames keep what they hold meanwhile.
    pub fn pin(&mut self, place: Place) {
        for piece in place.extent().pieces() {
            self.frames.pin(piece.frame);
        }
    }

    pub fn unpin(&mut self, place: Place) {
        for piece in place.extent().pieces() {
            self.frames.unpin(piece.frame);
        }
    }
}

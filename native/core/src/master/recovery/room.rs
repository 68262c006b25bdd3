//! Log memory that a replay thread fills with a recovery segment.
//!
//! Rule: it lies behind the published bytes of the thread's open side segment and belongs to the
//! holder alone; a recovery is not taken back while one is held.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::Recovery;
use crate::master::replay::{ReplayWorker, Replayed, Source};
use crate::master::segment::Segment;
use crate::status::Status;

/// See the file's head.
pub struct Room<'a> {
    pub(super) recovery: &'a Recovery,
    pub(super) worker: MutexGuard<'a, ReplayWorker>,
    pub(super) side: Arc<Segment>,
    pub(super) thread: usize,
    pub(super) length: usize,
    pub(super) timestamp: u32,
    /// The recovery knows already that this thread has left.
    pub(super) ended: bool,
}

impl Room<'_> {
    /// The memory.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.side.offset + self.side.appended();
        let arena = &self.recovery.master.objects.arena;
        // SAFETY: behind the published bytes, of whose segment this thread is the only appender.
        unsafe { arena.unpublished(start, self.length) }
    }

    pub(super) fn assert_of(&self, recovery: &Recovery, thread: usize, length: usize) {
        assert!(
            std::ptr::eq(self.recovery, recovery) && self.thread == thread && length <= self.length,
            "a room is used by the thread that reserved it"
        );
    }

    pub(super) fn replay(
        mut self,
        length: usize,
        checksum: u32,
        source: Source<'_>,
    ) -> Result<Replayed, Status> {
        let replayed = catch_unwind(AssertUnwindSafe(|| {
            let mut replay = self
                .recovery
                .replay_of(self.thread, &mut self.worker, self.timestamp);
            replay.piece(&self.side, length, checksum, source)
        }))
        .unwrap_or(Err(Status::Internal));
        self.ended = true;
        self.recovery.leave(replayed.err());
        replayed
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.recovery.leave(None);
        }
    }
}

//! What takes entries of a recovery out of the table again, in turns: markers at the end of its
//! replay, all of it when it is given up.
//!
//! Rule: whether it is still to be done is looked at under the serving lock, with each turn: side
//! segments are freed under that lock, and what lies there later is not the recovery's business.

use std::sync::Arc;

use super::{Phase, Recovery};
use crate::entry::{EntryIterator, EntryType};
use crate::key_hash::key_hash;
use crate::master::chore::{self, Haste, Turn};
use crate::master::objects::Objects;
use crate::master::replay::Marker;
use crate::master::segment::{Piece, Segment};
use crate::status::Status;

/// Entries that are taken out in a turn. Their buckets are fetched before the lock is taken.
const TURN_ENTRIES: usize = 512;

/// The markers of a replay that has ended.
pub struct Finishing {
    markers: Vec<Marker>,
}

/// A recovery that is given up.
pub struct Undoing {
    committed: bool,
    replaying: bool,
    /// None until all replays have noticed.
    left: Option<Left>,
}

/// What is left to take out.
struct Left {
    sides: Vec<Arc<Segment>>,
    /// Of all sides; the table refers to nothing of those before `piece`.
    pieces: Vec<Piece>,
    piece: usize,
    /// Of the present piece.
    offset: usize,
}

impl Left {
    fn new(sides: Vec<Arc<Segment>>) -> Self {
        let pieces = sides.iter().flat_map(|side| side.pieces()).collect();
        Self {
            sides,
            pieces,
            piece: 0,
            offset: 0,
        }
    }

    /// The next entries to take out; none only at the end.
    fn next(&mut self, objects: &Objects) -> Vec<Marker> {
        let mut batch = Vec::with_capacity(TURN_ENTRIES);
        while let Some(piece) = self.pieces.get(self.piece) {
            let start = piece.extent.offset + self.offset;
            // SAFETY: the piece keeps its extent, and its bytes are published.
            let bytes = unsafe { objects.arena.published(start, piece.bytes - self.offset) };
            let mut entries = EntryIterator::new(bytes);
            while batch.len() < TURN_ENTRIES
                && let Some(item) = entries.next()
            {
                let (at, entry) = item.expect("published entries parse");
                if let EntryType::Object | EntryType::Tombstone = entry.entry_type() {
                    batch.push(Marker {
                        hash: key_hash(entry.table_id(), entry.key()),
                        offset: start + at,
                    });
                }
            }
            if batch.len() == TURN_ENTRIES {
                self.offset += entries.offset();
                break;
            }
            (self.piece, self.offset) = (self.piece + 1, 0);
        }
        batch
    }
}

fn fetch(objects: &Objects, batch: &[Marker]) {
    for marker in batch {
        objects.table.prefetch_bucket(marker.hash);
    }
}

impl Recovery {
    /// Nothing more is replayed: takes the markers out of the table, closes all side segments; done
    /// when it returns.
    ///
    /// # Errors
    /// See `begin_finish`; `RecoveryUnknown` if it is given up meanwhile.
    pub fn finish_replay(&self) -> Result<(), Status> {
        let mut finishing = self.begin_finish()?;
        chore::finish(|| self.finish(&mut finishing))
    }

    /// The same on a thread of the pool, which calls `done` then.
    ///
    /// # Errors
    /// See `begin_finish`; `done` is dropped uncalled.
    pub fn finish_replay_later(
        self: &Arc<Self>,
        done: impl FnOnce(Result<(), Status>) + Send + 'static,
    ) -> Result<(), Status> {
        let mut finishing = self.begin_finish()?;
        let recovery = Arc::clone(self);
        self.master
            .do_chore(Haste::Urgent, move || recovery.finish(&mut finishing), done);
        Ok(())
    }

    /// Closes all side segments: nothing more is replayed. What is left is `finish`.
    ///
    /// # Errors
    /// The error of a failed replay; `InvalidArgument` while one is running or in another phase.
    pub fn begin_finish(&self) -> Result<Finishing, Status> {
        let serving = self.master.serving()?;
        self.advance(Phase::Replaying, Phase::Finishing)?;
        self.master.objects.table.end_replay();
        let mut markers = Vec::new();
        for worker in &self.workers {
            let mut worker = worker.lock();
            worker.close();
            markers.append(&mut worker.markers);
        }
        drop(serving);
        Ok(Finishing { markers })
    }

    /// One turn of the end of the replay.
    ///
    /// # Errors
    /// `RecoveryUnknown` once it is given up, `InvalidArgument` once closed.
    pub fn finish(&self, finishing: &mut Finishing) -> Turn<()> {
        let objects = &self.master.objects;
        let markers = &mut finishing.markers;
        let rest = markers.len().saturating_sub(TURN_ENTRIES);
        fetch(objects, &markers[rest..]);
        let serving = self.master.serving()?;
        if self.state.lock().phase != Phase::Finishing {
            return Err(Status::RecoveryUnknown);
        }
        for marker in markers.drain(rest..) {
            // Not there any more if a newer object has taken its slot.
            objects.table.erase(marker.hash, marker.offset);
        }
        let all = markers.is_empty();
        if all {
            self.advance(Phase::Finishing, Phase::Finished)?;
        }
        serving.let_go();
        Ok(all.then_some(()))
    }

    /// Takes everything back; done when it returns. Returns the ids of the segments that were
    /// freed: none after a commit, or when called again.
    ///
    /// # Errors
    /// See `begin_abort`.
    pub fn abort(&self) -> Result<Vec<u64>, Status> {
        match self.begin_abort()? {
            Some(mut undoing) => chore::finish(|| self.undo(&mut undoing)),
            None => Ok(Vec::new()),
        }
    }

    /// The same on a thread of the pool, which calls `done` then.
    ///
    /// # Errors
    /// See `begin_abort`; `done` is dropped uncalled.
    pub fn abort_later(
        self: &Arc<Self>,
        done: impl FnOnce(Result<Vec<u64>, Status>) + Send + 'static,
    ) -> Result<(), Status> {
        match self.begin_abort()? {
            Some(mut undoing) => {
                let recovery = Arc::clone(self);
                self.master
                    .do_chore(Haste::Leisurely, move || recovery.undo(&mut undoing), done);
            }
            None => done(Ok(Vec::new())),
        }
        Ok(())
    }

    /// Gives it up. What is left is `undo`; until its end nobody else can take the tablets. Nothing
    /// if it was given up before.
    ///
    /// # Errors
    /// `InvalidArgument` once active.
    pub fn begin_abort(&self) -> Result<Option<Undoing>, Status> {
        let _serving = self.master.serving()?;
        let mut state = self.state.lock();
        let phase = state.phase;
        match phase {
            Phase::Active => return Err(Status::InvalidArgument),
            Phase::Aborted => return Ok(None),
            _ => {}
        }
        state.phase = Phase::Aborted;
        self.cancel();
        Ok(Some(Undoing {
            committed: phase == Phase::Committed,
            replaying: matches!(phase, Phase::Replaying | Phase::Failed(_)),
            left: None,
        }))
    }

    /// One turn of taking it back; the first waits until running replays have noticed. At the end:
    /// the segments that were freed.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn undo(&self, undoing: &mut Undoing) -> Turn<Vec<u64>> {
        let objects = &self.master.objects;
        let Some(left) = &mut undoing.left else {
            self.await_replays();
            let _serving = self.master.serving()?;
            if undoing.replaying {
                objects.table.end_replay();
            }
            for worker in &self.workers {
                let mut worker = worker.lock();
                worker.close();
                worker.markers.clear();
            }
            undoing.left = Some(Left::new(std::mem::take(&mut *self.sides.lock())));
            return Ok(None);
        };
        let batch = left.next(objects);
        fetch(objects, &batch);
        let serving = self.master.serving()?;
        for entry in &batch {
            objects.table.erase(entry.hash, entry.offset);
        }
        serving.let_go();
        if batch.is_empty() {
            return self.forget(undoing).map(Some);
        }
        Ok(None)
    }

    /// Nothing refers to the side segments any more: they and the tablets go.
    fn forget(&self, undoing: &mut Undoing) -> Result<Vec<u64>, Status> {
        let objects = &self.master.objects;
        let mut serving = self.master.serving()?;
        let left = undoing.left.take().expect("all of it is out of the table");
        let mut freed = Vec::new();
        for side in &left.sides {
            side.set_cleanable(undoing.committed);
            if !undoing.committed {
                freed.push(side.id);
            }
        }
        freed.sort_unstable();
        objects.release_segments(&freed);
        for tablet in &self.tablets {
            serving.tablets.remove(&tablet.range);
            if undoing.committed {
                let below = objects.next_segment_id();
                serving.tablets.give_up(tablet.range.table_id, below);
            }
        }
        // Readers and the last holder let go before the memory is asked for.
        drop(left);
        drop(serving);
        objects.reclaim();
        Ok(freed)
    }
}

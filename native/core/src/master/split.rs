//! Makes two tablets of one: no object moves, only the books are kept apart.
//!
//! Rule: what a tablet counts is exact at every moment, hence what the lower half has is counted
//! bucket by bucket before there are two: each under the serving lock, while the cleaner stands
//! still, and whoever changes something in a bucket that was counted already adds it. Then the two
//! take the place of the one in a single step. Reads and writes go on all the time.

use std::ops::Range;
use std::sync::Arc;

use super::Master;
use super::chore::{self, Haste, Turn};
use super::hash_table::prefetch;
use super::tablets::{LowerHalf, SlotRange, TABLETS_MAX, Tablet};
use crate::entry::EntryType;
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

/// Buckets that are counted while the serving lock is held.
const BATCH_BUCKETS: usize = 256;
/// Batches for which the cleaner stands still: it may be at work for long before it does.
const TURN_BATCHES: usize = 64;

/// A tablet that is being cut.
pub struct Split {
    tablet: Arc<Tablet>,
    lower: Arc<LowerHalf>,
    /// Buckets below are counted.
    next: usize,
}

impl Master {
    /// Makes two of the tablet that holds `slot`, the upper one from there on; done when it
    /// returns.
    ///
    /// # Errors
    /// See `begin_split` and `count_half`.
    pub fn split_tablet(&self, range: SlotRange, slot: u32) -> Result<(), Status> {
        match self.begin_split(range, slot)? {
            Some(mut split) => chore::finish(|| self.count_half(&mut split)),
            None => Ok(()),
        }
    }

    /// The same on a thread of the pool, which calls `done` then.
    ///
    /// # Errors
    /// See `begin_split`; `done` is dropped uncalled.
    pub fn split_tablet_later(
        self: &Arc<Self>,
        range: SlotRange,
        slot: u32,
        done: impl FnOnce(Result<(), Status>) + Send + 'static,
    ) -> Result<(), Status> {
        match self.begin_split(range, slot)? {
            Some(mut split) => {
                let master = Arc::clone(self);
                self.do_chore(Haste::Urgent, move || master.count_half(&mut split), done);
            }
            None => done(Ok(())),
        }
        Ok(())
    }

    /// Begins to count what is below `slot` in the tablet that holds it; `range` is what the
    /// coordinator takes for one tablet. Nothing if a tablet begins there already.
    ///
    /// # Errors
    /// `UnknownTablet`; `InvalidArgument` if the range is not made of tablets or does not go on
    /// below the slot; `Retry` if the tablet is not served or is given away, or another is split;
    /// `OutOfMemory` if there are too many.
    pub fn begin_split(&self, range: SlotRange, slot: u32) -> Result<Option<Split>, Status> {
        let serving = self.serving()?;
        let tablets = &serving.tablets;
        if tablets.within(&range)?.is_empty() {
            return Err(Status::UnknownTablet);
        }
        if !(range.start_slot < slot && slot <= range.end_slot) {
            return Err(Status::InvalidArgument);
        }
        let parts = tablets.parts(&range)?;
        let holder = parts.iter().rfind(|part| part.range.start_slot <= slot);
        let tablet = holder.expect("the parts begin where the range does");
        if tablet.range.start_slot == slot {
            return Ok(None);
        }
        if !tablet.divisible() || tablets.iter().any(|one| one.splitting()) {
            return Err(Status::Retry);
        }
        if tablets.iter().count() >= TABLETS_MAX {
            return Err(Status::OutOfMemory);
        }
        let lower = Arc::new(LowerHalf::new(slot));
        tablet.set_lower(Some(Arc::clone(&lower)));
        Ok(Some(Split {
            tablet: Arc::clone(tablet),
            lower,
            next: 0,
        }))
    }

    /// One turn of a split; the last one makes two of the tablet.
    ///
    /// # Errors
    /// `Retry` if the tablet has gone meanwhile or is being given away: it is as it was.
    /// `InvalidArgument` once closed.
    pub fn count_half(&self, split: &mut Split) -> Turn<()> {
        // The cleaner moves entries, and weighs them anew, from bucket to bucket.
        let _turn = self.cleaner.turn.lock();
        let buckets = self.objects.table.buckets();
        for _ in 0..TURN_BATCHES {
            let end = buckets.min(split.next + BATCH_BUCKETS);
            self.count_batch(split, split.next..end)?;
            split.next = end;
            if end == buckets {
                return self.cut(split).map(Some);
            }
            chore::pause();
        }
        Ok(None)
    }

    fn count_batch(&self, split: &Split, buckets: Range<usize>) -> Result<(), Status> {
        let (arena, table) = (&self.objects.arena, &self.objects.table);
        for index in buckets.clone() {
            table.walk(index, |offset| prefetch(arena.pointer(offset)));
        }
        let range = split.tablet.range;
        let serving = self.serving()?;
        let (mut records, mut bytes) = (0, 0);
        for index in buckets.clone() {
            table.walk(index, |offset| {
                // SAFETY: called with the offset of a slot, under the serving lock.
                let entry = unsafe { arena.entry(offset) };
                let table_id = entry.table_id();
                let counts = entry.entry_type() == EntryType::Object && table_id == range.table_id;
                if counts {
                    let place = slot(key_hash(table_id, entry.key()));
                    if range.contains(table_id, place) && split.lower.holds(place) {
                        records += 1;
                        bytes += entry.total_bytes() as i64;
                    }
                }
            });
        }
        split.lower.counted(buckets.end, records, bytes);
        serving.let_go();
        Ok(())
    }

    /// All is counted: two tablets from now on.
    fn cut(&self, split: &Split) -> Result<(), Status> {
        let mut serving = self.serving()?;
        let tablet = &split.tablet;
        tablet.set_lower(None);
        let present = serving.tablets.exact(&tablet.range);
        let there = present.is_ok_and(|one| one.is_some_and(|one| Arc::ptr_eq(one, tablet)));
        if !there || !tablet.divisible() {
            return Err(Status::Retry);
        }
        serving.tablets.cut(tablet, &split.lower);
        Ok(())
    }
}

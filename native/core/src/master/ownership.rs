//! Which tablets are this master's: take, drop, merge.
//!
//! Rule: what the coordinator has committed is done here, and again if it is asked for again. The
//! coordinator's tablets are made up of whole ones of this master, never of parts of one.
//!
//! A drop takes the ownership away at once: nothing of the tablet is read or written any more. Its
//! entries leave the table later, some buckets at a time ([`Erasure`]); until the last of them is
//! gone the range is refused to whoever wants to own it again, so that none comes back.

use std::sync::Arc;

use super::Master;
use super::chore::{self, Haste, Turn};
use super::hash_table::prefetch;
use super::tablets::{Service, SlotRange, Tablet};
use crate::entry::EntryType;
use crate::status::Status;

/// Buckets in a turn: their entries are fetched before the serving lock is taken, and stay in the
/// cache until they are looked at.
const TURN_BUCKETS: usize = 256;

/// A range that was dropped and whose entries are on their way out of the table.
#[derive(Debug)]
pub struct Erasure {
    range: SlotRange,
    /// Buckets below hold nothing of it.
    next: usize,
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

impl Master {
    /// Owns and serves a tablet.
    ///
    /// # Errors
    /// `InvalidArgument` on an overlap, `Retry` while it is being recovered here or a part of it is
    /// being erased, `OutOfMemory`.
    pub fn take_tablet(&self, range: SlotRange) -> Result<(), Status> {
        let mut serving = self.serving()?;
        match serving.tablets.exact(&range)? {
            Some(tablet) if tablet.ready() => Ok(()),
            Some(_) => Err(Status::Retry),
            None => {
                let ctime = serving.log.head().map_or(0, |head| head.id);
                let tablet = Tablet::new(range, Service::Full, ctime);
                serving.tablets.insert(tablet)
            }
        }
    }

    /// Forgets the tablets that a range is made of, and their objects; done when it returns.
    ///
    /// # Errors
    /// See `begin_drop`; `InvalidArgument` once closed.
    pub fn drop_tablet(&self, range: SlotRange) -> Result<(), Status> {
        match self.begin_drop(range)? {
            Some(mut erasure) => chore::finish(|| self.erase(&mut erasure)),
            None => Ok(()),
        }
    }

    /// The same, but the objects are forgotten on a thread of the pool, which calls `done` when
    /// they are.
    ///
    /// # Errors
    /// See `begin_drop`; `done` is dropped uncalled.
    pub fn drop_tablet_later(
        self: &Arc<Self>,
        range: SlotRange,
        done: impl FnOnce(Result<(), Status>) + Send + 'static,
    ) -> Result<(), Status> {
        match self.begin_drop(range)? {
            Some(mut erasure) => {
                let master = Arc::clone(self);
                self.do_chore(Haste::Leisurely, move || master.erase(&mut erasure), done);
            }
            None => done(Ok(())),
        }
        Ok(())
    }

    /// Takes the tablets away that a range is made of; what is left is to be erased, if anything.
    ///
    /// # Errors
    /// `InvalidArgument` if a tablet reaches beyond it, `Retry` while one is being recovered here,
    /// or while a part of the range is being erased.
    pub fn begin_drop(&self, range: SlotRange) -> Result<Option<Erasure>, Status> {
        let mut serving = self.serving()?;
        let parts = serving.tablets.within(&range)?;
        let settled = parts.iter().all(|tablet| tablet.owned());
        if !settled || serving.tablets.erasing(&range) {
            return Err(Status::Retry);
        }
        if parts.is_empty() {
            return Ok(None);
        }
        let first_segment = self.objects.first_segment_id();
        serving.tablets.forget_given_up(first_segment);
        serving
            .tablets
            .give_up(range.table_id, self.objects.next_segment_id());
        for part in &parts {
            serving.tablets.remove(&part.range);
        }
        // A tombstone left behind would outlive the tablet's versions if it came back.
        if parts.iter().all(|part| part.records() == 0) && !serving.has_pending_tombstones() {
            return Ok(None);
        }
        serving.tablets.begin_erasing(range);
        Ok(Some(Erasure { range, next: 0 }))
    }

    /// One turn of an erasure.
    ///
    /// # Errors
    /// `InvalidArgument` once closed.
    pub fn erase(&self, erasure: &mut Erasure) -> Turn<()> {
        let (arena, table) = (&self.objects.arena, &self.objects.table);
        let Erasure { range, next } = erasure;
        let end = table.buckets().min(*next + TURN_BUCKETS);
        for index in *next..end {
            table.walk(index, |offset| prefetch(arena.pointer(offset)));
        }
        let mut serving = self.serving()?;
        // SAFETY: called with the offset of a slot, while no segment is freed.
        let entry = |offset| unsafe { arena.entry(offset) };
        table.sweep(
            *next..end,
            |offset| range.holds(&entry(offset)),
            |offset| {
                let gone = entry(offset);
                if gone.entry_type() == EntryType::Object {
                    arena.count_dead(offset, gone.total_bytes());
                }
            },
        );
        *next = end;
        let all = end == table.buckets();
        if all {
            serving.tablets.end_erasing(range);
        }
        serving.let_go();
        Ok(all.then_some(()))
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

    /// The first segment whose entries count if the tablets that make up a range are one.
    ///
    /// # Errors
    /// See [`super::tablets::Tablets::merged_ctime`].
    pub fn merged_ctime(&self, range: &SlotRange) -> Result<u64, Status> {
        let serving = self.serving()?;
        let first_segment = self.objects.first_segment_id();
        serving.tablets.merged_ctime(range, first_segment)
    }

    /// Makes one tablet of those that make up a range; one alone is left as it is.
    ///
    /// # Errors
    /// See `merged_ctime`; `Retry` also while the cleaner moves entries: it has the old ones in
    /// mind.
    pub fn merge_tablets(&self, range: SlotRange) -> Result<(), Status> {
        let _turn = self.cleaner.turn.try_lock().ok_or(Status::Retry)?;
        let mut serving = self.serving()?;
        if serving.tablets.parts(&range)?.len() == 1 {
            return Ok(());
        }
        let first_segment = self.objects.first_segment_id();
        let ctime = serving.tablets.merged_ctime(&range, first_segment)?;
        serving.tablets.merge(range, ctime)
    }
}

//! Which tablets are this master's: take, drop, merge.
//!
//! Rule: what the coordinator has committed is done here, and again if it is asked for again. The
//! coordinator's tablets are made up of whole ones of this master, never of parts of one.

use super::Master;
use super::arena::Arena;
use super::hash_table::prefetch;
use super::tablets::{Service, SlotRange, Tablet};
use crate::entry::EntryType;
use crate::status::Status;

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
    /// `InvalidArgument` on an overlap, `Retry` while it is being recovered here, `OutOfMemory`.
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

    /// Forgets the tablets that a range is made of, and their objects.
    ///
    /// # Errors
    /// `InvalidArgument` if a tablet reaches beyond it, `Retry` while one is being recovered here.
    pub fn drop_tablet(&self, range: SlotRange) -> Result<(), Status> {
        let mut serving = self.serving()?;
        let parts = serving.tablets.within(&range)?;
        if parts.is_empty() {
            return Ok(());
        }
        if !parts.iter().all(|tablet| tablet.owned()) {
            return Err(Status::Retry);
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
        if parts.iter().any(|part| part.records() > 0) || serving.has_pending_tombstones() {
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

fn drop_if_within(arena: &Arena, offset: usize, range: &SlotRange) -> bool {
    // SAFETY: called with the offset of a slot, while no segment is freed.
    let entry = unsafe { arena.entry(offset) };
    let within = range.holds(&entry);
    if within && entry.entry_type() == EntryType::Object {
        arena.count_dead(offset, entry.total_bytes());
    }
    within
}

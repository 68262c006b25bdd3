//! Survivors: the segments to which combined cleaning moves what is alive.
//!
//! Rule: their ids were reserved before the pass looked at the tablets, so that a tablet that comes
//! later is younger than all of them. What a pass has begun it ends: half a segment moved frees
//! nothing.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::READERS_WAIT;
use super::relocation::{BATCH, Live, Order, Survey, prefetch_entries, stretch};
use crate::master::Master;
use crate::master::segment::Segment;

/// Where a pass moves entries to.
pub struct Survivors<'a> {
    master: &'a Master,
    ids: Range<u64>,
    /// Is being filled.
    pub open: Option<Arc<Segment>>,
    /// By this pass.
    pub opened: Vec<Arc<Segment>>,
    /// By this pass.
    pub bytes_moved: u64,
}

impl<'a> Survivors<'a> {
    /// For one pass; `open` is what an earlier one has left room in.
    pub fn new(master: &'a Master, ids: Range<u64>, open: Option<Arc<Segment>>) -> Self {
        Self {
            master,
            ids,
            open,
            opened: Vec::new(),
            bytes_moved: 0,
        }
    }

    /// Moves what is alive in segments as it is found, while it is in the cache. None once the
    /// master is closed.
    pub fn take_segments(&mut self, survey: &Survey<'_>, segments: &[Arc<Segment>]) -> Option<()> {
        for segment in segments {
            for piece in segment.pieces() {
                let scanned = survey.scan(segment.id, &piece, |live| {
                    self.take(survey, live, Order::Found)
                        .map_or(ControlFlow::Break(()), ControlFlow::Continue)
                });
                scanned.continue_value()?;
            }
        }
        Some(())
    }

    /// Moves entries from anywhere, in order. None once the master is closed.
    pub fn take_sorted(&mut self, survey: &Survey<'_>, entries: &[Live]) -> Option<()> {
        let mut rest = entries;
        while !rest.is_empty() {
            let (next, behind) = rest.split_at(rest.len().min(BATCH));
            prefetch_entries(&self.master.objects, behind);
            self.take(survey, next, Order::Any)?;
            rest = behind;
        }
        Some(())
    }

    fn take(&mut self, survey: &Survey<'_>, entries: &[Live], order: Order) -> Option<()> {
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let survivor = Arc::clone(self.survivor(first)?);
            let (count, bytes) = stretch(rest, survivor.free_bytes());
            let mut tombstone_bytes = 0;
            let used = survivor.append_if(bytes, |target, out| {
                let moved = survey.relocate(&rest[..count], order, target, out);
                tombstone_bytes = moved.tombstone_bytes;
                moved.bytes
            });
            if tombstone_bytes > 0 {
                let released = self.master.objects.released();
                survivor.count_tombstone(tombstone_bytes, released);
            }
            self.bytes_moved += used as u64;
            rest = &rest[count..];
        }
        Some(())
    }

    /// One with room for an entry at least.
    fn survivor(&mut self, live: &Live) -> Option<&Arc<Segment>> {
        let fits = |open: &Arc<Segment>| open.fits(live.bytes());
        if !self.open.as_ref().is_some_and(fits) {
            let fresh = self.open_survivor(live.timestamp)?;
            self.opened.push(Arc::clone(&fresh));
            if let Some(full) = self.open.replace(fresh) {
                full.close();
                full.set_cleanable(!self.master.replicated());
            }
        }
        self.open.as_ref()
    }

    /// The pass was made to fit, but heads that must be opened may have come before: then it waits,
    /// since what is half moved cannot be left.
    fn open_survivor(&mut self, timestamp: u32) -> Option<Arc<Segment>> {
        let id = self.ids.next().expect("an id for each survivor");
        let objects = &self.master.objects;
        while !self.master.is_closed() {
            match objects.open_segment_as(id, None, 0, timestamp) {
                Ok(fresh) => return Some(fresh),
                Err(_) => std::thread::sleep(READERS_WAIT),
            }
        }
        None
    }
}

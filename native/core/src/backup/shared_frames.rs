//! The units of shared frames: which are taken, and what the next directory of a frame says.
//!
//! Rule: units are given back only when no directory on disk names them any more and nobody reads
//! them. Holes are filled before a fresh frame is begun: the fullest frame that has room for the
//! whole image, else the emptiest one and a second. So a frame is kept only while an image lies in
//! it, and an image keeps at most two frames; images that are freed one by one thin frames out
//! until new images come.

use crate::backup::directory::{Extent, Piece, Tenant, UNITS};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct SharedFrame {
    taken: u8,
    /// Given back and still read; part of `taken`.
    draining: u8,
    /// Their units are part of `taken`.
    tenants: Vec<Tenant>,
    /// The disk failed under it: nothing is placed there.
    bad: bool,
}

impl SharedFrame {
    fn free_units(&self) -> u32 {
        self.taken.count_zeros()
    }
}

#[derive(Default)]
pub(super) struct SharedFrames {
    frames: BTreeMap<u32, SharedFrame>,
    /// (free units, frame) of the frames where an image may be placed.
    room: BTreeSet<(u32, u32)>,
    mirrors_due: BTreeSet<u32>,
}

/// The lowest `count` units that are not in `taken`.
fn lowest_free(taken: u8, count: u32) -> u8 {
    let free = (0..UNITS).filter(|unit| taken >> unit & 1 == 0);
    let units: u8 = free
        .take(count as usize)
        .fold(0, |units, unit| units | 1 << unit);
    assert!(units.count_ones() == count, "the frame has the room");
    units
}

impl SharedFrames {
    pub fn count(&self) -> usize {
        self.frames.len()
    }

    pub fn free_units(&self) -> u32 {
        self.room.iter().map(|(free, _)| free).sum()
    }

    fn piece(&self, frame: u32, count: u32) -> Piece {
        let taken = self.frames.get(&frame).map_or(0, |shared| shared.taken);
        let units = lowest_free(taken, count);
        Piece { frame, units }
    }

    /// A place for an image of `count` units in the frames that there are.
    pub fn fit(&self, count: u32) -> Option<Extent> {
        if let Some(&(_, frame)) = self.room.range((count, 0)..).next() {
            let home = self.piece(frame, count);
            return Some(Extent { home, next: None });
        }
        let &(most, emptiest) = self.room.last()?;
        let others = self.room.range((count - most, 0)..);
        let &(_, second) = others.into_iter().find(|(_, frame)| *frame != emptiest)?;
        Some(Extent {
            home: self.piece(emptiest, most),
            next: Some(self.piece(second, count - most)),
        })
    }

    /// A place in a fresh frame, for an image that `fit` has no place for; what the emptiest frame
    /// can hold goes there.
    pub fn fit_with(&self, fresh: u32, count: u32) -> Extent {
        let next = self
            .room
            .last()
            .map(|&(most, emptiest)| self.piece(emptiest, most));
        let held = next.map_or(0, |piece| piece.units.count_ones());
        let home = self.piece(fresh, count - held);
        Extent { home, next }
    }

    fn change<T>(&mut self, frame: u32, change: impl FnOnce(&mut SharedFrame) -> T) -> T {
        let shared = self.frames.entry(frame).or_default();
        self.room.remove(&(shared.free_units(), frame));
        let result = change(shared);
        if !shared.bad && shared.free_units() > 0 {
            self.room.insert((shared.free_units(), frame));
        }
        result
    }

    /// Whether none of the units is taken.
    pub fn is_free(&self, piece: Piece) -> bool {
        let shared = self.frames.get(&piece.frame);
        shared.is_none_or(|shared| shared.taken & piece.units == 0)
    }

    pub fn take(&mut self, piece: Piece) {
        self.change(piece.frame, |shared| {
            assert!(shared.taken & piece.units == 0, "units have one owner");
            shared.taken |= piece.units;
        });
    }

    /// Gives units back, `pinned` ones at the last `unpinned`. True if the frame is empty now.
    pub fn give_back(&mut self, piece: Piece, pinned: bool) -> bool {
        self.change(piece.frame, |shared| {
            assert!(
                shared.taken & piece.units == piece.units,
                "given back by the owner"
            );
            if pinned {
                shared.draining |= piece.units;
            } else {
                shared.taken &= !piece.units;
            }
            shared.taken == 0
        })
    }

    /// Nobody reads the frame any more. True if it is empty now.
    pub fn unpinned(&mut self, frame: u32) -> bool {
        self.change(frame, |shared| {
            shared.taken &= !std::mem::take(&mut shared.draining);
            shared.taken == 0
        })
    }

    pub fn forget(&mut self, frame: u32) {
        let removed = self.frames.remove(&frame);
        self.room.remove(&(UNITS as u32, frame));
        self.mirrors_due.remove(&frame);
        let empty = removed.is_some_and(|shared| shared.taken == 0 && shared.tenants.is_empty());
        assert!(empty, "an empty frame is forgotten");
    }

    pub fn latch_bad(&mut self, frame: u32) {
        if self.frames.contains_key(&frame) {
            self.change(frame, |shared| shared.bad = true);
            self.mirrors_due.remove(&frame);
        }
    }

    pub fn contains(&self, frame: u32) -> bool {
        self.frames.contains_key(&frame)
    }

    /// Names an image whose units are taken.
    pub fn add_tenant(&mut self, frame: u32, tenant: Tenant) {
        let shared = self.frames.get_mut(&frame).expect("its units are taken");
        shared.tenants.push(tenant);
    }

    /// Its units stay taken until the directory without it is durable.
    pub fn remove_tenant(&mut self, home: Piece) {
        let shared = self
            .frames
            .get_mut(&home.frame)
            .expect("a tenant's home is shared");
        let before = shared.tenants.len();
        shared.tenants.retain(|tenant| tenant.units != home.units);
        assert!(shared.tenants.len() + 1 == before, "a tenant leaves once");
    }

    pub fn tenants(&self, frame: u32) -> &[Tenant] {
        &self
            .frames
            .get(&frame)
            .expect("a directory's frame is shared")
            .tenants
    }

    /// The newest slot says something new, or (`due` false) both say the same.
    pub fn set_mirror_due(&mut self, frame: u32, due: bool) {
        let due = due && !self.tenants(frame).is_empty();
        if due {
            self.mirrors_due.insert(frame);
        } else {
            self.mirrors_due.remove(&frame);
        }
    }

    pub fn mirrors_due(&self) -> impl Iterator<Item = u32> {
        self.mirrors_due.iter().copied()
    }
}

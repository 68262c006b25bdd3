//! Which frames are free, in use by one replica or shared by images, being read, or bad.
//!
//! Rules: a frame's slot sequence only grows; the newest slot is never the next one written; a
//! frame that someone reads is not used again before the reader is done; a frame whose disk failed
//! is never used again by this process, nor is one whose bytes have rotted once it is freed.

use crate::backup::directory::{Extent, Piece};
use crate::backup::frame::SLOTS;
use crate::backup::shared_frames::SharedFrames;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Pre-written frames that the I/O thread keeps ready.
const READY_MIN: usize = 2;
/// After a failed growth (a full disk) the next attempt waits this long.
const GROWTH_RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameUse {
    Free,
    Used,
    /// Its units are in `shared`.
    Shared,
    /// Freed on disk, and still read.
    Draining,
    /// Zeros are being written.
    Prewriting,
    Bad,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    /// Highest sequence planned or found.
    pub sequence: u64,
    /// The slot that holds what is durable.
    pub newest_slot: usize,
    pub usage: FrameUse,
    pins: u32,
    /// Its bytes have rotted: bad as soon as it is empty.
    retired: bool,
}

impl Frame {
    pub fn new(usage: FrameUse) -> Self {
        Self {
            sequence: 0,
            newest_slot: SLOTS - 1,
            usage,
            pins: 0,
            retired: false,
        }
    }
}

pub(super) struct FrameTable {
    frames: Vec<Frame>,
    free: VecDeque<u32>,
    pub shared: SharedFrames,
    frames_max: usize,
    prewriting: Option<u32>,
    /// The disk was full, and nothing has grown since: only a pre-write may try, from then on. A
    /// replica that tried would be lost.
    growth_retry_at: Option<Instant>,
    /// Nothing is written to this disk any more.
    failed: bool,
}

impl FrameTable {
    pub fn new(frames_max: u32) -> Self {
        Self {
            frames: Vec::new(),
            free: VecDeque::new(),
            shared: SharedFrames::default(),
            frames_max: frames_max as usize,
            prewriting: None,
            growth_retry_at: None,
            failed: false,
        }
    }

    /// No frame is given out or written any more; what the frames hold can still be read.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Whether nothing may be written to this frame.
    pub fn is_bad(&self, frame: u32) -> bool {
        self.failed || self.frames[frame as usize].usage == FrameUse::Bad
    }

    /// Its bytes have rotted: what it holds stays, nothing more comes, and it is bad when empty.
    pub fn retire(&mut self, frame: u32) {
        self.frame_mut(frame).retired = true;
        self.shared.latch_bad(frame);
    }

    /// Takes a frame that the restart scan found; a free one is ready after `found_all`.
    pub fn push_found(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    /// The scan is done, `torn` frames are to be used again after the others.
    pub fn found_all(&mut self, torn: &[u32]) {
        let frames = 0..self.frames.len() as u32;
        let first = frames.filter(|frame| !torn.contains(frame));
        for frame in first.chain(torn.iter().copied()) {
            if self.frames[frame as usize].usage == FrameUse::Free {
                self.free.push_back(frame);
            }
        }
    }

    /// Takes the units of a piece that the restart scan found; false if something else lies there.
    pub fn claim(&mut self, piece: Piece) -> bool {
        let Some(frame) = self.frames.get_mut(piece.frame as usize) else {
            return false;
        };
        match frame.usage {
            FrameUse::Free => frame.usage = FrameUse::Shared,
            FrameUse::Shared | FrameUse::Bad => {}
            FrameUse::Used | FrameUse::Draining | FrameUse::Prewriting => return false,
        }
        if !self.shared.is_free(piece) {
            return false;
        }
        self.shared.take(piece);
        if self.frames[piece.frame as usize].usage == FrameUse::Bad {
            self.shared.latch_bad(piece.frame);
        }
        true
    }

    pub fn frame_mut(&mut self, frame: u32) -> &mut Frame {
        &mut self.frames[frame as usize]
    }

    /// A free frame that may still be created counts, unless the disk is full.
    pub fn free_count(&self) -> usize {
        if self.failed {
            return 0;
        }
        if self.growth_retry_at.is_some() {
            return self.free.len();
        }
        let creatable = self.frames_max.saturating_sub(self.frames.len());
        self.free.len() + usize::from(self.prewriting.is_some()) + creatable
    }

    pub fn count(&self, usage: FrameUse) -> usize {
        self.frames
            .iter()
            .filter(|frame| frame.usage == usage)
            .count()
    }

    pub fn created(&self) -> usize {
        self.frames.len()
    }

    /// A frame that is ready.
    fn allocate_ready(&mut self) -> Option<u32> {
        if self.failed {
            return None;
        }
        let frame = self.free.pop_front()?;
        let entry = self.frame_mut(frame);
        assert!(
            entry.usage == FrameUse::Free && entry.pins == 0,
            "a free frame is unused"
        );
        entry.usage = FrameUse::Used;
        Some(frame)
    }

    /// A frame for a new replica: a ready one, or the one that is being pre-written, or one at the
    /// end of the file; the latter two cost more to flush. Only the I/O thread may write to it:
    /// it also writes the zeros, so the two cannot cross.
    pub fn allocate(&mut self) -> Option<u32> {
        if let Some(frame) = self.allocate_ready() {
            return Some(frame);
        }
        if self.growth_retry_at.is_some() {
            return None;
        }
        if let Some(frame) = self.prewriting.take() {
            self.frame_mut(frame).usage = FrameUse::Used;
            return Some(frame);
        }
        self.allocate_at_end()
    }

    /// A frame for a thread that writes beside the I/O thread: never the one that is being
    /// pre-written, whose zeros may be on their way to the disk.
    fn allocate_apart(&mut self) -> Option<u32> {
        self.allocate_ready().or_else(|| self.allocate_at_end())
    }

    /// Units for an image. A fresh frame is begun only if `spared` others stay free. For a thread
    /// that writes beside the I/O thread, see `allocate_apart`.
    pub fn allocate_extent(&mut self, units: u32, spared: usize) -> Option<Extent> {
        if self.failed {
            return None;
        }
        let extent = match self.shared.fit(units) {
            Some(extent) => extent,
            None if self.free_count() <= spared => return None,
            None => {
                let fresh = self.allocate_apart()?;
                self.frame_mut(fresh).usage = FrameUse::Shared;
                self.shared.fit_with(fresh, units)
            }
        };
        extent.pieces().for_each(|piece| self.shared.take(piece));
        Some(extent)
    }

    /// Nothing on disk names these units any more. A frame that is empty now is free: its newest
    /// slot says so, or was never written.
    pub fn release_extent(&mut self, extent: Extent) {
        for piece in extent.pieces() {
            let pinned = self.frame_mut(piece.frame).pins > 0;
            if self.shared.give_back(piece, pinned) {
                self.release_shared(piece.frame);
            }
        }
    }

    fn release_shared(&mut self, frame: u32) {
        self.shared.forget(frame);
        if self.frame_mut(frame).usage == FrameUse::Shared {
            self.set_empty(frame);
        }
    }

    /// Nothing on disk or in use names the frame any more.
    fn set_empty(&mut self, frame: u32) {
        if self.frames[frame as usize].retired {
            self.frame_mut(frame).usage = FrameUse::Bad;
        } else {
            self.frame_mut(frame).usage = FrameUse::Free;
            self.free.push_back(frame);
        }
    }

    fn allocate_at_end(&mut self) -> Option<u32> {
        if self.failed || self.frames.len() >= self.frames_max || self.growth_retry_at.is_some() {
            return None;
        }
        self.frames.push(Frame::new(FrameUse::Used));
        Some(self.frames.len() as u32 - 1)
    }

    /// The next frame to pre-write, if the stock is low.
    pub fn start_prewrite(&mut self, now: Instant) -> Option<u32> {
        if !self.wants_growth() || self.growth_retry_at.is_some_and(|at| now < at) {
            return None;
        }
        self.frames.push(Frame::new(FrameUse::Prewriting));
        self.prewriting = Some(self.frames.len() as u32 - 1);
        self.prewriting
    }

    fn wants_growth(&self) -> bool {
        !self.failed && self.free.len() < READY_MIN && self.frames.len() < self.frames_max
    }

    /// The disk is full: frames that may still be created do not count until one was.
    pub fn pause_growth(&mut self, now: Instant) {
        self.growth_retry_at = Some(now + GROWTH_RETRY);
    }

    /// When to try again, if more frames are wanted.
    pub fn growth_retry_at(&self) -> Option<Instant> {
        self.growth_retry_at.filter(|_| self.wants_growth())
    }

    /// False once a replica has taken the frame as it is.
    pub fn is_prewriting(&self, frame: u32) -> bool {
        self.prewriting == Some(frame)
    }

    /// The frame is zero, or could not be written: then growth pauses.
    pub fn finish_prewrite(&mut self, frame: u32, written: bool, now: Instant) {
        if !self.is_prewriting(frame) {
            return;
        }
        self.prewriting = None;
        assert!(
            self.frame_mut(frame).usage == FrameUse::Prewriting,
            "prewrite in progress"
        );
        if written {
            self.growth_retry_at = None;
            self.frame_mut(frame).usage = FrameUse::Free;
            self.free.push_back(frame);
            return;
        }
        self.pause_growth(now);
        if frame as usize + 1 == self.frames.len() {
            self.frames.pop();
        } else {
            self.frame_mut(frame).usage = FrameUse::Bad;
        }
    }

    /// The slot and sequence of the next slot write.
    pub fn next_slot(&mut self, frame: u32) -> (usize, u64) {
        let entry = self.frame_mut(frame);
        assert!(
            matches!(entry.usage, FrameUse::Used | FrameUse::Shared),
            "only used frames are written"
        );
        entry.sequence += 1;
        (SLOTS - 1 - entry.newest_slot, entry.sequence)
    }

    /// The free slot is durable.
    pub fn release(&mut self, frame: u32) {
        let entry = self.frame_mut(frame);
        assert!(entry.usage == FrameUse::Used, "released once");
        if entry.pins == 0 {
            self.set_empty(frame);
        } else {
            entry.usage = FrameUse::Draining;
        }
    }

    /// The disk failed under it.
    pub fn latch_bad(&mut self, frame: u32) {
        self.frame_mut(frame).usage = FrameUse::Bad;
        self.shared.latch_bad(frame);
    }

    /// A reader starts; the frame's contents stay until `unpin`.
    pub fn pin(&mut self, frame: u32) {
        self.frame_mut(frame).pins += 1;
    }

    pub fn unpin(&mut self, frame: u32) {
        let entry = self.frame_mut(frame);
        assert!(entry.pins > 0, "pins and unpins are paired");
        entry.pins -= 1;
        if entry.pins == 0 && entry.usage == FrameUse::Draining {
            self.set_empty(frame);
        } else if entry.pins == 0 && self.shared.contains(frame) && self.shared.unpinned(frame) {
            self.release_shared(frame);
        }
    }
}

//! Compaction: empties a block of memory into another; the segments whose entries lie there keep
//! their ids, and their replicas keep what they have.
//!
//! Rule: a block is filled from its start with runs of whole seglets, each of one segment. Every
//! segment keeps its header, at the beginning of its first piece.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cleanable;
use super::policy::{Candidate, choose_block, expected_live_bytes};
use super::relocation::{Live, Order, Survey, prefetch_entries, stretch};
use crate::entry::{SEGLET_BYTES, SEGMENT_BYTES};
use crate::master::arena::Extent;
use crate::master::objects::Objects;
use crate::master::segment::{Piece, SEGMENT_HEADER_BYTES, Segment};

/// The block that is being filled.
#[derive(Default)]
pub struct Filler {
    block: Option<usize>,
    filled: usize,
    /// Taken before it is needed.
    next: Option<usize>,
}

/// What emptying a block came to.
#[derive(Default)]
pub struct Compacted {
    /// Bytes moved.
    pub bytes_copied: u64,
    /// Bytes of memory that they take now.
    pub bytes_taken: u64,
}

/// A run that entries are moved to.
struct Run {
    extent: Arc<Extent>,
    used: usize,
}

impl Filler {
    /// Takes the block without which none can be emptied: what is alive in one fits into the rest
    /// of one and a whole other. Before memory is so short that there is none: then nothing would
    /// ever become free again.
    pub fn prepare(&mut self, objects: &Objects) {
        if self.next.is_none() {
            self.next = objects.arena.begin_filling(objects.reserve.cleaner).ok();
        }
    }

    /// Empties the block where least is alive; None if none pays or there is no block to fill.
    pub fn compact_a_block(
        &mut self,
        objects: &Objects,
        survey: &Survey<'_>,
        durable: u64,
        live_share_max: f64,
    ) -> Option<Compacted> {
        self.prepare(objects);
        self.next?;
        let segments = cleanable(objects, durable);
        let chosen = self.choose(objects, &segments, live_share_max)?;
        let mut compacted = Compacted::default();
        for segment in &segments {
            let within = |piece: &Piece| piece.extent.offset / SEGMENT_BYTES == chosen;
            if segment.pieces().any(|piece| within(&piece)) {
                self.compact_segment(objects, survey, segment, chosen, &mut compacted);
            }
        }
        Some(compacted)
    }

    /// The block with least alive among those that hold nothing but these segments.
    fn choose(
        &self,
        objects: &Objects,
        segments: &[Arc<Segment>],
        live_share_max: f64,
    ) -> Option<usize> {
        #[derive(Default)]
        struct Weight {
            live: u64,
            claimed: usize,
        }
        let mut weights: BTreeMap<usize, Weight> = BTreeMap::new();
        let (released, count) = (objects.released(), objects.segment_count());
        for segment in segments {
            let whole = segment.live_bytes();
            let gone = released.saturating_sub(segment.released_before());
            let expected = expected_live_bytes(whole, segment.tombstone_bytes(), gone, count);
            let share = expected as f64 / whole.max(1) as f64;
            for piece in segment.pieces() {
                let Extent {
                    offset, capacity, ..
                } = *piece.extent;
                let dead = piece.extent.dead_bytes();
                let live = (piece.bytes as u64).saturating_sub(dead) as f64 * share;
                let weight = weights.entry(offset / SEGMENT_BYTES).or_default();
                weight.live += (live as u64).next_multiple_of(SEGLET_BYTES as u64);
                weight.claimed += capacity;
            }
        }
        let filling = self.block.map(|offset| offset / SEGMENT_BYTES);
        let candidates: Vec<Candidate> = weights
            .iter()
            .filter(|(block, weight)| {
                Some(**block) != filling && objects.arena.claimed_bytes(**block) == weight.claimed
            })
            .map(|(block, weight)| Candidate {
                index: *block,
                live_bytes: weight.live,
                age: 0,
            })
            .collect();
        choose_block(&candidates, live_share_max)
    }

    fn compact_segment(
        &mut self,
        objects: &Objects,
        survey: &Survey<'_>,
        segment: &Arc<Segment>,
        block: usize,
        compacted: &mut Compacted,
    ) {
        let mut pieces = Vec::new();
        let mut dropped = 0;
        for (number, piece) in segment.pieces().enumerate() {
            if piece.extent.offset / SEGMENT_BYTES != block {
                pieces.push(piece);
                continue;
            }
            let (live, tombstone_bytes) = survey.collect(segment.id, &piece);
            dropped += tombstone_bytes;
            let header = (number == 0).then_some(&piece);
            let all = self.move_piece(objects, survey, segment.id, header, &live, &mut pieces);
            if !all {
                // Out of memory: what is left in it stays where it is.
                pieces.push(piece);
            }
        }
        let moved = |piece: &&Piece| piece.extent.offset / SEGMENT_BYTES != block;
        let before: usize = segment
            .pieces()
            .filter(|one| moved(&one))
            .map(|one| one.bytes)
            .sum();
        let after: usize = pieces.iter().map(|piece| piece.bytes).sum();
        compacted.bytes_copied += (after - before) as u64;
        let taken: usize = pieces.iter().map(|piece| piece.extent.capacity).sum();
        let kept: usize = segment
            .pieces()
            .filter(|one| moved(&one))
            .map(|one| one.extent.capacity)
            .sum();
        compacted.bytes_taken += (taken - kept) as u64;
        let tombstones = segment.tombstone_bytes().saturating_sub(dropped);
        let left = segment.compacted(pieces, tombstones, objects.released());
        objects.replace_segment(Arc::new(left));
    }

    /// Moves what is alive in a piece to one run, or two if the block ends between; false if there
    /// was no memory for all of it.
    fn move_piece(
        &mut self,
        objects: &Objects,
        survey: &Survey<'_>,
        segment_id: u64,
        header: Option<&Piece>,
        entries: &[Live],
        pieces: &mut Vec<Piece>,
    ) -> bool {
        let mut rest = entries;
        let mut header = header;
        while header.is_some() || !rest.is_empty() {
            let header_bytes = if header.is_some() {
                SEGMENT_HEADER_BYTES
            } else {
                0
            };
            let wanted: usize = rest.iter().map(|live| live.bytes()).sum();
            let longest = rest.first().map_or(0, |live| live.bytes());
            let (wanted, least) = (header_bytes + wanted, header_bytes + longest);
            let Some(mut run) = self.run(objects, segment_id, wanted, least) else {
                return false;
            };
            if let Some(piece) = header.take() {
                run.copy_header(objects, piece);
            }
            let count = run.take_in(objects, survey, rest);
            rest = &rest[count..];
            pieces.push(Piece {
                bytes: run.used,
                extent: run.extent,
            });
        }
        true
    }

    /// Seglets for `wanted` bytes, or as many as the block has left if they take `least` bytes.
    fn run(
        &mut self,
        objects: &Objects,
        segment_id: u64,
        wanted: usize,
        least: usize,
    ) -> Option<Run> {
        let left = self.block.map_or(0, |_| SEGMENT_BYTES - self.filled);
        if left < least {
            let fresh = self.next.take();
            let fresh =
                fresh.or_else(|| objects.arena.begin_filling(objects.reserve.cleaner).ok())?;
            if let Some(full) = self.block.replace(fresh) {
                objects.arena.end_filling(full);
            }
            self.filled = 0;
        }
        let block = self.block.expect("taken above");
        let capacity = wanted
            .next_multiple_of(SEGLET_BYTES)
            .min(SEGMENT_BYTES - self.filled);
        let offset = block + self.filled;
        self.filled += capacity;
        let extent = objects.arena.claim(offset, capacity, segment_id, None);
        Some(Run {
            extent: Arc::new(extent),
            used: 0,
        })
    }
}

impl Run {
    /// Where the next entry goes.
    fn end(&self) -> usize {
        self.extent.offset + self.used
    }

    fn copy_header(&mut self, objects: &Objects, piece: &Piece) {
        // SAFETY: the piece keeps its extent; a segment begins with its header.
        let header = unsafe {
            objects
                .arena
                .published(piece.extent.offset, SEGMENT_HEADER_BYTES)
        };
        // SAFETY: the run belongs to the cleaner; nothing behind `used` is published.
        let out = unsafe { objects.arena.unpublished(self.end(), SEGMENT_HEADER_BYTES) };
        out.copy_from_slice(header);
        self.used = SEGMENT_HEADER_BYTES;
    }

    /// Moves entries as long as they fit; returns how many.
    fn take_in(&mut self, objects: &Objects, survey: &Survey<'_>, entries: &[Live]) -> usize {
        let mut taken = 0;
        loop {
            let rest = &entries[taken..];
            let (count, bytes) = stretch(rest, self.extent.capacity - self.used);
            if count == 0 {
                return taken;
            }
            prefetch_entries(objects, &rest[count..]);
            // SAFETY: the run belongs to the cleaner; nothing behind `used` is published.
            let out = unsafe { objects.arena.unpublished(self.end(), bytes) };
            self.used += survey
                .relocate(&rest[..count], Order::Any, self.end(), out)
                .bytes;
            taken += count;
        }
    }
}

//! Leaves out of a recovery segment what is dead on arrival, before it is adopted.
//!
//! A piece that is adopted keeps its length, however little of it is alive. Of a log of mostly dead
//! versions that would fill the memory of a master that has plenty for what lives, so a recovery
//! whose side segments hold much that is dead sifts what comes next.
//!
//! Rule: an entry is left out only if the table has a newer one of its key, or the piece itself.
//! Nothing of it is missed: versions in the table only rise while a recovery runs, and the one that
//! is there has raised the safe version. Whatever else may be wrong with the piece is left in, for
//! its adoption to refuse it.

use std::cmp::Reverse;
use std::sync::Arc;

use super::super::objects::Objects;
use super::super::tablets::Tablet;
use crate::entry::{EntryIterator, EntryType, EntryView, PieceChecksum, SEGMENT_BYTES, detach};
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

/// Side segments may hold this share of their live bytes, and of a segment, dead.
const DEAD_SHARE: u64 = 4;
/// Less than this share of a piece is not worth the copy of the rest.
const DROPPED_SHARE: usize = 8;
/// Entries between the fetch of a bucket and its use; an epoch is pinned for as many.
const AHEAD: usize = 32;

/// What is left of a recovery segment.
pub struct Sifted {
    /// A recovery segment of its own.
    pub bytes: Vec<u8>,
    /// Its checksum.
    pub checksum: u32,
    /// Objects and tombstones that were left out.
    pub dropped: u64,
}

/// Whether so much of the side segments is dead that pieces are to be sifted.
pub fn is_worth_it(side_bytes: u64, live_bytes: u64) -> bool {
    side_bytes.saturating_sub(live_bytes) > (live_bytes + SEGMENT_BYTES as u64) / DEAD_SHARE
}

/// An entry that counts for its key.
struct Candidate<'b> {
    hash: u64,
    entry: EntryView<'b>,
    offset: usize,
    dead: bool,
}

impl Candidate<'_> {
    fn is_tombstone(&self) -> bool {
        self.entry.entry_type() == EntryType::Tombstone
    }

    /// Of two entries of a key the greater wins: a tombstone kills the object of its own version.
    fn rank(&self) -> (u64, bool) {
        (self.entry.version(), self.is_tombstone())
    }
}

/// What is left of a piece; None if that is nearly all. `participant` is this thread's.
///
/// # Errors
/// `ChecksumMismatch` if the piece is not what was certified.
pub fn sift(
    objects: &Objects,
    tablets: &[Arc<Tablet>],
    participant: usize,
    bytes: &[u8],
    checksum: u32,
) -> Result<Option<Sifted>, Status> {
    let mut candidates = verified(tablets, bytes, checksum)?;
    look_up(objects, participant, &mut candidates);
    contest(&mut candidates);
    let dead = candidates.iter().filter(|candidate| candidate.dead);
    let (mut dropped, mut dropped_bytes) = (0, 0);
    for candidate in dead {
        dropped += 1;
        dropped_bytes += candidate.entry.total_bytes();
    }
    if dropped_bytes < bytes.len() / DROPPED_SHARE {
        return Ok(None);
    }
    let mut rest = Vec::with_capacity(bytes.len() - dropped_bytes);
    let mut from = 0;
    candidates.sort_unstable_by_key(|candidate| candidate.offset);
    for candidate in candidates.iter().filter(|candidate| candidate.dead) {
        rest.extend_from_slice(&bytes[from..candidate.offset]);
        from = candidate.offset + candidate.entry.total_bytes();
    }
    rest.extend_from_slice(&bytes[from..]);
    let checksum = detach_all(&mut rest)?;
    Ok(Some(Sifted {
        bytes: rest,
        checksum,
        dropped,
    }))
}

/// All objects and tombstones of these tablets, in order, in a piece without a fault.
fn verified<'b>(
    tablets: &[Arc<Tablet>],
    bytes: &'b [u8],
    checksum: u32,
) -> Result<Vec<Candidate<'b>>, Status> {
    let mut candidates = Vec::new();
    let mut sum = PieceChecksum::default();
    let mut more = false;
    for item in EntryIterator::new(bytes) {
        let (offset, entry) = item?;
        entry.verify()?;
        let (used, end) = (offset + entry.bytes().len(), offset + entry.total_bytes());
        if bytes
            .get(used..end)
            .is_none_or(|padding| padding.iter().any(|byte| *byte != 0))
        {
            return Err(Status::ChecksumMismatch);
        }
        sum.add(entry.checksum());
        more = entry.more();
        let counts = matches!(entry.entry_type(), EntryType::Object | EntryType::Tombstone);
        let hash = key_hash(entry.table_id(), entry.key());
        let within = |tablet: &Arc<Tablet>| tablet.range.contains(entry.table_id(), slot(hash));
        if counts && tablets.iter().any(within) {
            candidates.push(Candidate {
                hash,
                entry,
                offset,
                dead: false,
            });
        }
    }
    if more || sum.finish() != checksum {
        return Err(Status::ChecksumMismatch);
    }
    Ok(candidates)
}

/// Finds those that the table has something newer for, or the same.
fn look_up(objects: &Objects, participant: usize, candidates: &mut [Candidate<'_>]) {
    for batch in candidates.chunks_mut(AHEAD) {
        for candidate in batch.iter() {
            objects.table.prefetch_bucket(candidate.hash);
        }
        let _pin = objects.pin_epoch(participant);
        for candidate in batch {
            let Candidate { hash, entry, .. } = candidate;
            let found = objects.find(*hash, entry.table_id(), entry.key());
            candidate.dead = found.is_some_and(|present| {
                candidate.rank() <= (present.entry.version(), !present.is_object())
            });
        }
    }
}

/// Of the entries of one key that are left the greatest stays.
fn contest(candidates: &mut [Candidate<'_>]) {
    candidates.sort_unstable_by_key(|one| (one.dead, one.hash, Reverse(one.rank()), one.offset));
    let living = candidates.partition_point(|candidate| !candidate.dead);
    for same_hash in candidates[..living].chunk_by_mut(|one, other| one.hash == other.hash) {
        // One key, but for chance.
        let mut winners: Vec<EntryView<'_>> = Vec::new();
        for candidate in same_hash {
            let entry = candidate.entry;
            candidate.dead = winners
                .iter()
                .any(|winner| winner.table_id() == entry.table_id() && winner.key() == entry.key());
            if !candidate.dead {
                winners.push(entry);
            }
        }
    }
}

/// Neighbours in an atomic append may be gone: each entry stands for itself. The new checksum.
fn detach_all(bytes: &mut [u8]) -> Result<u32, Status> {
    let mut at = 0;
    while at < bytes.len() {
        let entry = EntryView::parse(&bytes[at..])?;
        let (used, total_bytes) = (entry.bytes().len(), entry.total_bytes());
        if entry.is_attached() {
            detach(&mut bytes[at..at + used]);
        }
        at += total_bytes;
    }
    PieceChecksum::of(bytes)
}

//! The side of a migration that gives a tablet away: what it holds, in pieces that the new owner
//! adopts like those of a recovery (`docs/migration.md`).
//!
//! Rules: what is alive when it starts is found in the hash table (`scan`), what changes later in
//! the heads from the mark on (`delta`); any piece may come in any order and any number of times,
//! since the newest version wins there. The cleaner leaves segments from the mark on alone, so that
//! no tombstone goes before it was sent; the mark follows what was asked for last. Pieces are made
//! on threads of the pool: the serving lock is held for the marks only. After `release` the tablet
//! serves nothing until `end`: only the coordinator knows whose it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::hash_table::prefetch;
use super::segment::Segment;
use super::tablets::{Service, SlotRange, Tablet};
use super::{Master, REPLAY_PARTICIPANT};
use crate::entry::{
    EntryHeader, EntryIterator, EntryType, EntryView, PieceChecksum, SEGMENT_BYTES, detach,
    entry_bytes, write_entry,
};
use crate::status::Status;

/// Bytes in front of a piece: {u32 length, u32 checksum, 3 × u64: next, next offset, bytes left}.
pub const MIGRATION_HEADER_BYTES: usize = 32;
/// No more is added to a piece that has reached this length.
const PIECE_BYTES: usize = 512 << 10;
/// Buckets that are looked at under one pin.
const SCAN_BATCH: usize = 64;
/// Most buckets, and most bytes of log, that are searched for one piece.
const SCAN_BUCKETS_MAX: usize = 64 << 10;
const DELTA_BYTES_MAX: usize = 8 << 20;
/// `held_from` when nothing is held.
pub const NOTHING_HELD: u64 = u64::MAX;

/// A place in the heads of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// A head.
    pub segment_id: u64,
    /// Bytes of it that were looked at.
    pub offset: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Copying,
    /// Writes are refused: nothing is appended for the tablet from this log position on.
    Frozen(u64),
    /// Reads too.
    Released(u64),
    Ended,
}

/// See the file's head.
pub struct Migration {
    master: Arc<Master>,
    tablet: Arc<Tablet>,
    /// Where the first delta starts.
    pub mark: Cursor,
    phase: Mutex<Phase>,
}

struct Piece {
    bytes: Vec<u8>,
    checksum: PieceChecksum,
}

impl Piece {
    fn new() -> Self {
        Self {
            bytes: vec![0; MIGRATION_HEADER_BYTES],
            checksum: PieceChecksum::default(),
        }
    }

    fn full(&self) -> bool {
        self.bytes.len() >= PIECE_BYTES
    }

    /// As an entry that belongs to no longer append and names no segment of this log.
    fn push(&mut self, entry: &EntryView<'_>) {
        let start = self.bytes.len();
        let used = start + entry.bytes().len();
        self.bytes.extend_from_slice(entry.bytes());
        if entry.is_attached() {
            detach(&mut self.bytes[start..used]);
        }
        self.bytes.resize(start + entry.total_bytes(), 0);
        self.seal(start);
    }

    fn push_safe_version(&mut self, version: u64, timestamp: u32) {
        let header = EntryHeader {
            entry_type: EntryType::SafeVersion,
            flags: 0,
            timestamp,
            table_id: 0,
            version,
        };
        let start = self.bytes.len();
        self.bytes.resize(start + entry_bytes(0, 0, 0), 0);
        write_entry(&mut self.bytes[start..], &header, &[], &[], &[]);
        self.seal(start);
    }

    fn seal(&mut self, start: usize) {
        let entry =
            EntryView::parse(&self.bytes[start..]).expect("an entry that was copied parses");
        self.checksum.add(entry.checksum());
    }

    fn finish(mut self, next: u64, next_offset: usize, left: u64) -> Vec<u8> {
        let length = (self.bytes.len() - MIGRATION_HEADER_BYTES) as u32;
        self.bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.bytes[4..8].copy_from_slice(&self.checksum.finish().to_le_bytes());
        self.bytes[8..16].copy_from_slice(&next.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&(next_offset as u64).to_le_bytes());
        self.bytes[24..32].copy_from_slice(&left.to_le_bytes());
        self.bytes
    }
}

impl Migration {
    /// Marks the log's end.
    pub(super) fn start(master: &Arc<Master>, range: &SlotRange) -> Result<Self, Status> {
        let serving = master.serving()?;
        let tablet = match serving.tablets.exact(range)? {
            Some(tablet) if tablet.writable() => Arc::clone(tablet),
            Some(_) => return Err(Status::Retry),
            None => return Err(Status::UnknownTablet),
        };
        let head = serving.log.head().ok_or(Status::UnknownTablet)?;
        let held = &master.objects.held_from;
        let held =
            held.compare_exchange(NOTHING_HELD, head.id, Ordering::AcqRel, Ordering::Acquire);
        if held.is_err() {
            return Err(Status::Retry);
        }
        tablet.set_moving(true);
        Ok(Self {
            master: Arc::clone(master),
            tablet,
            mark: Cursor {
                segment_id: head.id,
                offset: head.appended(),
            },
            phase: Mutex::new(Phase::Copying),
        })
    }

    /// Buckets that `scan` goes through.
    pub fn buckets(&self) -> usize {
        self.master.objects.table.buckets()
    }

    /// Runs `work` on a thread of the pool.
    ///
    /// # Errors
    /// `Retry` if too much waits already; `done` is dropped uncalled.
    pub fn later<W, D>(self: &Arc<Self>, work: W, done: D) -> Result<(), Status>
    where
        W: FnOnce(&Self, usize) -> Result<Vec<u8>, Status> + Send + 'static,
        D: FnOnce(Result<Vec<u8>, Status>) + Send + 'static,
    {
        let migration = Arc::clone(self);
        self.master.pool.submit(Box::new(move |thread| {
            let piece = work(&migration, thread);
            drop(migration);
            done(piece);
        }))
    }

    fn wanted(&self) -> Result<(), Status> {
        let ended = *self.phase.lock() == Phase::Ended || self.master.is_closed();
        if ended {
            Err(Status::RecoveryUnknown)
        } else {
            Ok(())
        }
    }

    /// Live objects of the tablet in the buckets `[from, end)`, or some of the first; the header
    /// says where to go on. `thread` is below the number of replay threads.
    ///
    /// # Errors
    /// `RecoveryUnknown` once ended.
    pub fn scan(&self, thread: usize, from: usize, end: usize) -> Result<Vec<u8>, Status> {
        let objects = &self.master.objects;
        let end = end.min(self.buckets());
        let last = end.min(from.saturating_add(SCAN_BUCKETS_MAX));
        let mut piece = Piece::new();
        let mut offsets = Vec::new();
        let mut next = from;
        while next < last && !piece.full() {
            self.wanted()?;
            let _pin = objects.pin_epoch(REPLAY_PARTICIPANT + thread);
            let behind = last.min(next + SCAN_BATCH);
            offsets.clear();
            for index in next..behind {
                objects.table.walk(index, |offset| {
                    prefetch(objects.arena.pointer(offset));
                    offsets.push(offset);
                });
            }
            for offset in &offsets {
                // SAFETY: a slot referred to it since the pin, and it is complete since then.
                let entry = unsafe { objects.arena.entry(*offset) };
                if entry.entry_type() == EntryType::Object && self.tablet.range.holds(&entry) {
                    piece.push(&entry);
                }
            }
            next = behind;
        }
        Ok(piece.finish(next as u64, 0, (end - next.min(end)) as u64))
    }

    /// What was appended for the tablet behind `from`, or some of it. Nothing before `from` is
    /// asked for again: the cleaner may have it. What is left in the header is 0 when writes are
    /// refused and all was sent.
    ///
    /// # Errors
    /// `InvalidArgument` for a place that is not in the log, `RecoveryUnknown` once ended.
    pub fn delta(&self, from: Cursor) -> Result<Vec<u8>, Status> {
        let objects = &self.master.objects;
        self.hold_from(from.segment_id)?;
        let mut piece = Piece::new();
        let mut at = from;
        let mut searched = 0;
        // Before the entries are: what it allows is not sent yet at worst.
        piece.push_safe_version(objects.safe_version(), self.master.timestamp());
        while searched < DELTA_BYTES_MAX && !piece.full() {
            let segment = objects.segment(at.segment_id)?;
            // Closed first: then its end does not move.
            let closed = segment.closed();
            let behind = self.copy_from(&segment, at.offset, &mut piece)?;
            searched += behind - at.offset;
            at.offset = behind;
            if behind < segment.appended() {
                continue;
            }
            let next = if closed {
                self.head_after(at.segment_id)?
            } else {
                None
            };
            match next {
                Some(segment_id) => {
                    at = Cursor {
                        segment_id,
                        offset: 0,
                    };
                }
                None => break,
            }
        }
        let left = self.left_behind(at)?;
        Ok(piece.finish(at.segment_id, at.offset, left))
    }

    fn hold_from(&self, segment_id: u64) -> Result<(), Status> {
        // Kept meanwhile: whoever has ended holds nothing any more.
        let phase = self.phase.lock();
        if *phase == Phase::Ended || self.master.is_closed() {
            return Err(Status::RecoveryUnknown);
        }
        let held = &self.master.objects.held_from;
        if segment_id < held.load(Ordering::Acquire) {
            return Err(Status::InvalidArgument);
        }
        held.store(segment_id, Ordering::Release);
        Ok(())
    }

    /// Copies the tablet's entries behind `from` until the piece is full; says how far it came.
    fn copy_from(
        &self,
        segment: &Segment,
        from: usize,
        piece: &mut Piece,
    ) -> Result<usize, Status> {
        let end = segment.appended();
        if from > end || segment.capacity() != SEGMENT_BYTES {
            return Err(Status::InvalidArgument);
        }
        // SAFETY: the caller holds the segment, which is whole, and these bytes are published.
        let bytes = unsafe {
            self.master
                .objects
                .arena
                .published(segment.offset + from, end - from)
        };
        for item in EntryIterator::new(bytes) {
            let (at, entry) = item?;
            if piece.full() {
                return Ok(from + at);
            }
            let kind = entry.entry_type();
            if matches!(kind, EntryType::Object | EntryType::Tombstone)
                && self.tablet.range.holds(&entry)
            {
                piece.push(&entry);
            }
        }
        Ok(end)
    }

    fn head_after(&self, segment_id: u64) -> Result<Option<u64>, Status> {
        let serving = self.master.serving()?;
        Ok(serving.log.heads_after(segment_id).first().copied())
    }

    /// Bytes of log behind a place that may hold more; not 0 before writes are refused.
    fn left_behind(&self, at: Cursor) -> Result<u64, Status> {
        let serving = self.master.serving()?;
        let position = self.master.objects.segment(at.segment_id)?.position + at.offset as u64;
        match *self.phase.lock() {
            Phase::Copying => Ok((serving.log.appended_position() - position).max(1)),
            Phase::Frozen(end) | Phase::Released(end) => Ok(end.saturating_sub(position)),
            Phase::Ended => Err(Status::RecoveryUnknown),
        }
    }

    /// Refuses writes from now on; reads go on. Idempotent.
    ///
    /// # Errors
    /// `RecoveryUnknown` once ended.
    pub fn freeze(&self) -> Result<(), Status> {
        let serving = self.master.serving()?;
        let mut phase = self.phase.lock();
        match *phase {
            Phase::Copying => {
                self.tablet.set_service(Service::ReadsOnly);
                *phase = Phase::Frozen(serving.log.appended_position());
                Ok(())
            }
            Phase::Frozen(_) | Phase::Released(_) => Ok(()),
            Phase::Ended => Err(Status::RecoveryUnknown),
        }
    }

    /// What clients were answered and have not acknowledged, some clients at a time; the header
    /// says behind which client to go on, and how many are left. Only what is durable goes: the
    /// target says it again at once, and if this master dies nobody else has the rest.
    ///
    /// # Errors
    /// `InvalidArgument` before `freeze`: a write might still be executed. `Retry` as long as one
    /// of the tablet is not durable.
    pub fn results(&self, after_client: u64) -> Result<Vec<u8>, Status> {
        let serving = self.master.serving()?;
        let (Phase::Frozen(end) | Phase::Released(end)) = *self.phase.lock() else {
            return Err(Status::InvalidArgument);
        };
        let durable = serving.durable;
        if durable < end {
            return Err(Status::Retry);
        }
        let mut piece = Piece::new();
        let (last, left) = serving
            .results
            .export(after_client, durable, &mut piece.bytes);
        Ok(piece.finish(last, 0, left as u64))
    }

    /// Serves nothing of the tablet until `end`. Idempotent.
    ///
    /// # Errors
    /// `InvalidArgument` before `freeze`, `RecoveryUnknown` once ended.
    pub fn release(&self) -> Result<(), Status> {
        let _serving = self.master.serving()?;
        let mut phase = self.phase.lock();
        match *phase {
            Phase::Copying => Err(Status::InvalidArgument),
            Phase::Frozen(end) | Phase::Released(end) => {
                self.tablet.set_service(Service::Leaving);
                *phase = Phase::Released(end);
                // The target has all of it. Whose the tablet is may take long to be known.
                let held = &self.master.objects.held_from;
                held.store(NOTHING_HELD, Ordering::Release);
                self.master.cleaner.wake();
                Ok(())
            }
            Phase::Ended => Err(Status::RecoveryUnknown),
        }
    }

    /// The tablet is served again if it is still this master's, and the cleaner goes on. Nothing
    /// more is copied. Idempotent.
    ///
    /// # Errors
    /// `InvalidArgument` once the master is closed.
    pub fn end(&self) -> Result<(), Status> {
        let _serving = self.master.serving()?;
        let mut phase = self.phase.lock();
        if *phase != Phase::Ended {
            *phase = Phase::Ended;
            self.tablet.set_service(Service::Full);
            self.tablet.set_moving(false);
            let held = &self.master.objects.held_from;
            held.store(NOTHING_HELD, Ordering::Release);
            self.master.cleaner.wake();
        }
        Ok(())
    }
}

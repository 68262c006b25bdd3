//! A segment in memory: its place in the arena, its published end, its certificates.
//!
//! Rules: `opening_bytes <= certified <= appended <= SEGMENT_BYTES`; `appended` moves only over
//! whole atomic appends and only by the segment's single appender; bytes below it never change.
//! Each byte is summed once; marks at least `MARK_BYTES` apart let a replica that starts over get
//! certified pieces without summing again.
//!
//! A segment is born in one block. Compaction makes another `Segment` of the same id, whose bytes
//! lie in several pieces; who still holds the old one keeps the old bytes. Memory goes back when
//! the last holder of an extent is gone: `Objects` holds back those that readers may still see.

use std::sync::Arc;

use super::arena::{Arena, Extent};
use crate::crc32c;
use crate::entry::{
    EntryHeader, EntryIterator, EntryType, FLAG_MORE, SEGMENT_BYTES, entry_bytes, write_entry,
};
use crate::status::Status;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

const MARK_BYTES: usize = 256 << 10;
/// Bytes of the entry that each segment begins with.
pub const SEGMENT_HEADER_BYTES: usize = entry_bytes(0, 16, 0);

/// What a segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentKind {
    /// A head of the log, now or once.
    Log = 0,
    /// Replayed entries.
    Side = 1,
}

/// The checksum of the bytes [0, end).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// End of an atomic append.
    pub end: usize,
    /// CRC-32C of everything before it.
    pub checksum: u32,
}

/// One entry of an atomic append.
#[derive(Clone, Copy)]
pub struct Append<'a> {
    /// Its header; `flags` are set by the segment.
    pub header: EntryHeader,
    /// Segments that may hold dead versions of its key.
    pub prior: &'a [u64],
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl Append<'_> {
    /// Bytes that it will occupy.
    #[inline]
    pub fn bytes(&self) -> usize {
        entry_bytes(self.key.len(), self.value.len(), self.prior.len())
    }
}

/// Consecutive bytes of a segment.
#[derive(Clone)]
pub struct Piece {
    /// Where they lie.
    pub extent: Arc<Extent>,
    /// Published bytes of a compacted segment; of any other, `appended` says it.
    pub bytes: usize,
}

/// A segment of the log or of a side log.
pub struct Segment {
    arena: Arc<Arena>,
    /// Never reused.
    pub id: u64,
    /// First byte in the arena.
    pub offset: usize,
    /// Log position of the first byte; 0 for side segments.
    pub position: u64,
    pieces: Vec<Piece>,
    appended: AtomicUsize,
    closed: AtomicBool,
    opening_bytes: AtomicUsize,
    /// Ascending; the last one is the certified end.
    marks: Mutex<Vec<Certificate>>,
    /// Its entries belong to the log, and nobody but the cleaner will take them out of the table.
    cleanable: AtomicBool,
    /// Blocks that had been taken when it was opened: tells its age.
    born: u64,
    /// Bytes of tombstones, dead or not.
    tombstone_bytes: AtomicU64,
    /// Segments that had left the log when its tombstones were last known to be needed.
    released_before: AtomicU64,
}

impl Segment {
    /// Takes memory for a segment and writes its header.
    ///
    /// # Errors
    /// `OutOfMemory` if fewer than `keep_free` blocks would remain.
    pub fn open(
        arena: &Arc<Arena>,
        id: u64,
        log_id: u64,
        position: Option<u64>,
        keep_free: usize,
        timestamp: u32,
    ) -> Result<Self, Status> {
        let extent = Arc::new(arena.allocate(keep_free, id, position)?);
        let segment = Self {
            arena: Arc::clone(arena),
            id,
            offset: extent.offset,
            position: position.unwrap_or(0),
            pieces: vec![Piece { extent, bytes: 0 }],
            appended: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            opening_bytes: AtomicUsize::new(0),
            marks: Mutex::new(Vec::new()),
            cleanable: AtomicBool::new(false),
            born: arena.taken_blocks(),
            tombstone_bytes: AtomicU64::new(0),
            released_before: AtomicU64::new(0),
        };
        let kind = if position.is_some() {
            SegmentKind::Log
        } else {
            SegmentKind::Side
        };
        let mut value = [0u8; 16];
        value[..4].copy_from_slice(&(SEGMENT_BYTES as u32).to_le_bytes());
        value[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
        let header = EntryHeader {
            entry_type: EntryType::SegmentHeader,
            flags: 0,
            timestamp,
            table_id: log_id,
            version: id,
        };
        segment.append(&[Append {
            header,
            prior: &[],
            key: &[],
            value: &value,
        }]);
        if kind == SegmentKind::Side {
            // Others may see it at once; a head's opening goes on with three more entries.
            segment.end_opening();
        }
        Ok(segment)
    }

    /// What compaction has left of this closed segment. The first piece begins with the segment's
    /// header, which is all of its opening now.
    pub fn compacted(&self, pieces: Vec<Piece>, tombstone_bytes: u64, released: u64) -> Self {
        assert!(self.closed(), "only a closed segment is compacted");
        let first = pieces.first().expect("a segment keeps its header");
        let appended = pieces.iter().map(|piece| piece.bytes).sum();
        Self {
            arena: Arc::clone(&self.arena),
            id: self.id,
            offset: first.extent.offset,
            position: self.position,
            appended: AtomicUsize::new(appended),
            closed: AtomicBool::new(true),
            opening_bytes: AtomicUsize::new(SEGMENT_HEADER_BYTES),
            marks: Mutex::new(Vec::new()),
            cleanable: AtomicBool::new(self.cleanable()),
            born: self.born,
            tombstone_bytes: AtomicU64::new(tombstone_bytes),
            released_before: AtomicU64::new(released),
            pieces,
        }
    }

    /// Whether the cleaner may take it, as far as the log is concerned.
    pub fn cleanable(&self) -> bool {
        self.cleanable.load(Ordering::Acquire)
    }

    /// Lets the cleaner take it, or keeps the cleaner away.
    pub fn set_cleanable(&self, cleanable: bool) {
        self.cleanable.store(cleanable, Ordering::Release);
    }

    /// See the field.
    pub fn born(&self) -> u64 {
        self.born
    }

    /// Bytes of tombstones, dead or not.
    pub fn tombstone_bytes(&self) -> u64 {
        self.tombstone_bytes.load(Ordering::Relaxed)
    }

    /// Counts a tombstone that was appended; `released` segments had left the log by then.
    pub fn count_tombstone(&self, bytes: usize, released: u64) {
        self.tombstone_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.released_before.store(released, Ordering::Relaxed);
    }

    /// See the field.
    pub fn released_before(&self) -> u64 {
        self.released_before.load(Ordering::Relaxed)
    }

    /// Bytes of its seglets.
    pub fn capacity(&self) -> usize {
        self.pieces.iter().map(|piece| piece.extent.capacity).sum()
    }

    /// Bytes of entries that nobody knows to be dead.
    pub fn live_bytes(&self) -> u64 {
        let dead: u64 = self.pieces.iter().map(|one| one.extent.dead_bytes()).sum();
        (self.appended() as u64).saturating_sub(dead)
    }

    /// Where its bytes lie, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let whole = self.pieces.len() == 1;
        self.pieces.iter().map(move |piece| Piece {
            extent: Arc::clone(&piece.extent),
            bytes: if whole { self.appended() } else { piece.bytes },
        })
    }

    /// Arena offset of the byte at `from`, and how many published bytes follow it there.
    ///
    /// # Errors
    /// `InvalidArgument` beyond what was appended.
    pub fn locate(&self, from: usize) -> Result<(usize, usize), Status> {
        let mut start = 0;
        for piece in self.pieces() {
            if from < start + piece.bytes {
                return Ok((
                    piece.extent.offset + from - start,
                    start + piece.bytes - from,
                ));
            }
            start += piece.bytes;
        }
        Err(Status::InvalidArgument)
    }

    /// Whether a piece other than the first begins at `at`.
    fn begins_piece(&self, at: usize) -> bool {
        let mut start = 0;
        self.pieces().any(|piece| {
            let begins = start == at && start > 0;
            start += piece.bytes;
            begins
        })
    }

    /// The published bytes from `from` to the end of the piece that they lie in.
    ///
    /// # Safety
    /// The segment is not freed while the result is in use.
    unsafe fn contiguous(&self, from: usize) -> &[u8] {
        match self.locate(from) {
            // SAFETY: below `appended`; not freed (caller's promise).
            Ok((offset, length)) => unsafe { self.arena.published(offset, length) },
            Err(_) => &[],
        }
    }

    /// A copy of the published bytes.
    pub fn copy(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.appended());
        for piece in self.pieces() {
            // SAFETY: the piece keeps its extent, and its bytes are published.
            bytes.extend_from_slice(unsafe {
                self.arena.published(piece.extent.offset, piece.bytes)
            });
        }
        bytes
    }

    /// Declares what was appended so far the opening.
    pub fn end_opening(&self) {
        self.opening_bytes.store(self.appended(), Ordering::Relaxed);
    }

    /// Bytes of the opening.
    pub fn opening_bytes(&self) -> usize {
        self.opening_bytes.load(Ordering::Relaxed)
    }

    /// Published bytes.
    #[inline]
    pub fn appended(&self) -> usize {
        self.appended.load(Ordering::Acquire)
    }

    /// Whether nothing will be appended any more.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Nothing is appended from now on.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether `bytes` more fit.
    #[inline]
    pub fn fits(&self, bytes: usize) -> bool {
        !self.closed() && self.appended() + bytes <= SEGMENT_BYTES
    }

    /// Bytes behind the published ones.
    #[inline]
    pub fn free_bytes(&self) -> usize {
        SEGMENT_BYTES - self.appended()
    }

    /// Writes all entries as one atomic append behind the published bytes and returns the arena
    /// offset of the first. Nobody reads them before a slot refers to them or `publish`; until then
    /// the next `prepare` overwrites them.
    ///
    /// # Panics
    /// If they do not fit, or the segment is closed: the appender has asked before.
    pub fn prepare(&self, entries: &[Append<'_>]) -> usize {
        let total: usize = entries.iter().map(Append::bytes).sum();
        assert!(
            self.fits(total),
            "an atomic append fits into an open segment"
        );
        let start = self.appended();
        // SAFETY: [appended, …) belongs to the single appender.
        let out = unsafe { self.arena.unpublished(self.offset + start, total) };
        let mut at = 0;
        for (index, entry) in entries.iter().enumerate() {
            let flags = if index + 1 < entries.len() {
                FLAG_MORE
            } else {
                0
            };
            let header = EntryHeader {
                flags,
                ..entry.header
            };
            at += write_entry(&mut out[at..], &header, entry.prior, entry.key, entry.value);
        }
        self.offset + start
    }

    /// Publishes the next `bytes`, which were prepared.
    pub fn publish(&self, bytes: usize) {
        let end = self.appended() + bytes;
        assert!(end <= SEGMENT_BYTES, "what was prepared fits");
        self.appended.store(end, Ordering::Release);
    }

    /// Appends all entries as one atomic append and returns the arena offset of the first.
    ///
    /// # Panics
    /// See `prepare`.
    pub fn append(&self, entries: &[Append<'_>]) -> usize {
        let offset = self.prepare(entries);
        self.publish(entries.iter().map(Append::bytes).sum());
        offset
    }

    /// Lets `write` fill up to `bytes` bytes behind the published end, told where in the arena they
    /// lie, and publishes as many as it says: 0 leaves no trace. Returns what it said.
    ///
    /// # Panics
    /// If they do not fit, or the segment is closed: the appender has asked before.
    pub fn append_if(&self, bytes: usize, write: impl FnOnce(usize, &mut [u8]) -> usize) -> usize {
        assert!(self.fits(bytes), "an append fits into an open segment");
        let start = self.appended();
        // SAFETY: [appended, …) belongs to the single appender.
        let out = unsafe { self.arena.unpublished(self.offset + start, bytes) };
        let used = write(self.offset + start, out);
        assert!(used <= bytes, "no more is published than was asked for");
        self.appended.store(start + used, Ordering::Release);
        used
    }

    /// The next piece to replicate after `from`: ends at an atomic append, at most `bytes_max`
    /// further unless the first one is longer; from 0 it is the opening.
    ///
    /// # Errors
    /// `InvalidArgument` if `from` was never certified.
    pub fn chunk(&self, from: usize, bytes_max: usize) -> Result<Certificate, Status> {
        let mut marks = self.marks.lock();
        if marks.is_empty() {
            let end = self.opening_bytes();
            assert!(end > 0, "a visible segment has its opening");
            // SAFETY: this segment is alive, hence not freed.
            let checksum = crc32c::crc32c(&unsafe { self.contiguous(0) }[..end]);
            marks.push(Certificate { end, checksum });
        }
        let opening = marks[0];
        if from == 0 {
            return Ok(opening);
        }
        let certified = *marks.last().expect("the opening is certified");
        if from > certified.end || from < opening.end {
            return Err(Status::InvalidArgument);
        }
        if from < certified.end {
            let (_, follow) = self.locate(from)?;
            let limit = from + follow.min(bytes_max);
            let beyond = marks.partition_point(|mark| mark.end <= from);
            let within = marks.partition_point(|mark| mark.end <= limit);
            return Ok(marks[beyond.max(within.saturating_sub(1))]);
        }
        let next = self.certify(certified, bytes_max);
        // The newest mark may move on while it is close to its predecessor; the opening stays, and
        // so does the end of each piece: no chunk reaches across.
        let count = marks.len();
        let close = count >= 2 && next.end - marks[count - 2].end < MARK_BYTES;
        if close && !self.begins_piece(certified.end) {
            marks[count - 1] = next;
        } else if next.end > certified.end {
            marks.push(next);
        }
        Ok(next)
    }

    fn certify(&self, certified: Certificate, bytes_max: usize) -> Certificate {
        // SAFETY: this segment is alive, hence not freed.
        let fresh = unsafe { self.contiguous(certified.end) };
        let mut end = 0;
        for item in EntryIterator::new(fresh) {
            let (at, entry) = item.expect("published entries parse");
            let behind = at + entry.total_bytes();
            if behind > bytes_max && end > 0 {
                break;
            }
            if !entry.more() {
                end = behind;
            }
        }
        let checksum = crc32c::extend(certified.checksum, &fresh[..end]);
        Certificate {
            end: certified.end + end,
            checksum,
        }
    }
}

//! A segment in memory: its place in the arena, its published end, its certificates.
//!
//! Rules: `opening_bytes <= certified <= appended <= SEGMENT_BYTES`; `appended` moves only over
//! whole atomic appends and only by the segment's single appender; bytes below it never change.
//! Each byte is summed once; marks at least `MARK_BYTES` apart let a replica that starts over get
//! certified pieces without summing again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::arena::{Arena, SEGMENT_SEGLETS};
use crate::crc32c;
use crate::entry::{
    EntryHeader, EntryIterator, EntryType, FLAG_MORE, SEGMENT_BYTES, entry_bytes, write_entry,
};
use crate::status::Status;

const MARK_BYTES: usize = 256 << 10;

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

/// A segment of the log or of a side log.
pub struct Segment {
    arena: Arc<Arena>,
    /// Never reused.
    pub id: u64,
    /// First byte in the arena.
    pub offset: usize,
    /// Log position of the first byte; 0 for side segments.
    pub position: u64,
    appended: AtomicUsize,
    closed: AtomicBool,
    opening_bytes: AtomicUsize,
    /// Ascending; the last one is the certified end.
    marks: Mutex<Vec<Certificate>>,
}

impl Segment {
    /// Takes memory for a segment and writes its header.
    ///
    /// # Errors
    /// `OutOfMemory` if fewer than `keep_free` seglets would remain.
    pub fn open(
        arena: &Arc<Arena>,
        id: u64,
        log_id: u64,
        position: Option<u64>,
        keep_free: usize,
        timestamp: u32,
    ) -> Result<Self, Status> {
        let offset = arena.allocate(SEGMENT_SEGLETS, keep_free, id, position)?;
        let segment = Self {
            arena: Arc::clone(arena),
            id,
            offset,
            position: position.unwrap_or(0),
            appended: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            opening_bytes: AtomicUsize::new(0),
            marks: Mutex::new(Vec::new()),
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

    /// The published bytes.
    ///
    /// # Safety
    /// The segment is not freed while the result is in use.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: below `appended`; not freed (caller's promise).
        unsafe { self.arena.published(self.offset, self.appended()) }
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
            let checksum = crc32c::crc32c(&unsafe { self.bytes() }[..end]);
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
            let beyond = marks.partition_point(|mark| mark.end <= from);
            let within = marks.partition_point(|mark| mark.end <= from.saturating_add(bytes_max));
            return Ok(marks[beyond.max(within.saturating_sub(1))]);
        }
        let next = self.certify(certified, bytes_max);
        // The newest mark may move on while it is close to its predecessor; the opening stays.
        let count = marks.len();
        if count >= 2 && next.end - marks[count - 2].end < MARK_BYTES {
            marks[count - 1] = next;
        } else if next.end > certified.end {
            marks.push(next);
        }
        Ok(next)
    }

    fn certify(&self, certified: Certificate, bytes_max: usize) -> Certificate {
        // SAFETY: this segment is alive, hence not freed.
        let bytes = unsafe { self.bytes() };
        let fresh = &bytes[certified.end..];
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

    /// Gives the memory back.
    ///
    /// # Safety
    /// Nothing refers into the segment any more.
    pub unsafe fn free(&self) {
        self.arena.release(self.offset, SEGMENT_SEGLETS);
    }
}

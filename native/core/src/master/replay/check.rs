//! Pass one of replay: looks at every entry of a piece and notes what pass two has to do.
//!
//! Rule: nothing that others see changes, so that a piece with any fault leaves no trace. Entries
//! are looked at as soon as they are whole in the room, while their bytes are in the cache.

use std::sync::Arc;

use super::ReplayWorker;
use crate::crc32c::crc32c_each;
use crate::entry::head::EntryHead;
use crate::entry::{EntryType, EntryView, PieceChecksum, VALUE_BYTES_MAX, VERSION_MAX, detach};
use crate::key_hash::{TOGETHER as HASHED_TOGETHER, key_hashes, slot};
use crate::little_endian::u64_at;
use crate::master::tablets::Tablet;
use crate::status::Status;

/// Entries that are verified before they are hashed.
const BATCH: usize = 32;
/// Where a batch ends, so that it stays in the first-level cache.
const BATCH_BYTES: usize = 8 << 10;
const TOMBSTONE: u32 = 1 << 31;

/// An entry that pass two puts into the table.
#[derive(Clone, Copy, Default)]
pub struct Parsed {
    /// Of its key.
    pub hash: u64,
    offset: u32,
    tablet_and_type: u32,
}

impl Parsed {
    /// Its place in the room.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset as usize
    }
    /// Index of its tablet.
    #[inline]
    pub fn tablet(&self) -> usize {
        (self.tablet_and_type & !TOMBSTONE) as usize
    }
    /// Else it is an object.
    #[inline]
    pub fn is_tombstone(&self) -> bool {
        self.tablet_and_type & TOMBSTONE != 0
    }
}

/// An entry and where it begins.
#[derive(Clone, Copy, Default)]
struct Found {
    at: usize,
    head: EntryHead,
}

/// Entries that are looked at together; one is used for many batches, since making it costs.
#[derive(Default)]
struct Batch {
    found: [Found; BATCH],
    stored: [u32; BATCH],
    checksums: [u32; BATCH],
}

/// Finds the next entries that are whole, by lengths that may yet prove wrong, and gives what the
/// checksum of each covers. Where one is not whole, [`Check::finish`] finds that the piece has not
/// come to its end.
struct Walk<'r, 'b> {
    room: &'r [u8],
    found: std::slice::IterMut<'b, Found>,
    stored: std::slice::IterMut<'b, u32>,
    at: usize,
    stop: usize,
    /// Bits that are set behind the entries, where none may be.
    padding: u64,
}

impl<'r> Iterator for Walk<'r, '_> {
    type Item = &'r [u8];

    #[inline(always)]
    fn next(&mut self) -> Option<&'r [u8]> {
        if self.at >= self.stop {
            return None;
        }
        let rest = self.room.get(self.at..)?;
        let head = EntryHead::of(rest.first_chunk()?);
        let total_bytes = head.total_bytes();
        let entry = rest.get(..total_bytes)?;
        *self.found.next()? = Found { at: self.at, head };
        *self.stored.next()? = head.checksum();
        // Of what the last word holds, that behind the entry; nothing if it ends there.
        let used_bits = 63 - 8 * (total_bytes - head.used_bytes());
        self.padding |= u64_at(entry, total_bytes - 8) >> used_bits >> 1;
        self.at += total_bytes;
        Some(&entry[size_of::<u32>()..head.covered_end()])
    }
}

/// What a piece without a fault is to the master.
pub struct Checked {
    /// No lower version may be allocated.
    pub safe_version: u64,
    /// Bytes of tombstones and of entries that pass two leaves alone: nobody needs them any more
    /// once the recovery is over.
    pub dead_bytes: usize,
}

/// See the file's head.
pub struct Check<'a> {
    tablets: &'a [Arc<Tablet>],
    parsed: &'a mut Vec<Parsed>,
    sums: &'a mut [(i64, i64)],
    /// Where the next entry begins.
    at: usize,
    /// The last entry belongs together with the next.
    more: bool,
    tablet: usize,
    checked: Checked,
    checksum: PieceChecksum,
}

impl<'a> Check<'a> {
    /// Of a piece of these tablets, which are sorted.
    pub fn new(tablets: &'a [Arc<Tablet>], worker: &'a mut ReplayWorker) -> Self {
        worker.parsed.clear();
        worker.sums.clear();
        worker.sums.resize(tablets.len(), (0, 0));
        Self {
            tablets,
            parsed: &mut worker.parsed,
            sums: &mut worker.sums,
            at: 0,
            more: false,
            tablet: 0,
            checked: Checked {
                safe_version: 0,
                dead_bytes: 0,
            },
            checksum: PieceChecksum::default(),
        }
    }

    /// Looks at the entries that are whole in the first `end` bytes of the room.
    ///
    /// # Errors
    /// `ChecksumMismatch`, `InvalidArgument` (entries of other tablets or types).
    pub fn advance(&mut self, room: &mut [u8], end: usize) -> Result<(), Status> {
        let mut batch = Batch::default();
        loop {
            let start = self.at;
            let count = self.verify(&room[..end], &mut batch)?;
            let Some(last) = count.checked_sub(1) else {
                return Ok(());
            };
            self.more = batch.found[last].head.more();
            let mut attached = false;
            for group in batch.found[..count].chunks(HASHED_TOGETHER) {
                attached |= self.note(room, group)?;
            }
            if attached {
                detach_all(&mut room[start..self.at]);
            }
        }
    }

    /// Finds the next entries and compares their checksums; says how many they are. Apart from
    /// `note`, since sums of neighbours overlap, but not across a hash.
    #[inline]
    fn verify(&mut self, room: &[u8], batch: &mut Batch) -> Result<usize, Status> {
        let mut walk = Walk {
            room,
            found: batch.found.iter_mut(),
            stored: batch.stored.iter_mut(),
            at: self.at,
            stop: self.at + BATCH_BYTES,
            padding: 0,
        };
        let count = crc32c_each(&mut walk, &mut batch.checksums);
        let Walk { at, padding, .. } = walk;
        self.at = at;
        let checksums = &batch.checksums[..count];
        if *checksums != batch.stored[..count] || padding != 0 {
            return Err(Status::ChecksumMismatch);
        }
        self.checksum.add_all(checksums);
        Ok(count)
    }

    /// Notes a few entries for pass two; says whether some of them name segments or belong to
    /// longer appends.
    #[inline]
    fn note(&mut self, room: &[u8], group: &[Found]) -> Result<bool, Status> {
        let mut keys = [(0, &[][..]); HASHED_TOGETHER];
        for (key, Found { at, head }) in keys.iter_mut().zip(group) {
            let bytes = &room[at + head.key_start()..at + head.value_start()];
            *key = (head.table_id, bytes);
        }
        let mut hashes = [0; HASHED_TOGETHER];
        key_hashes(&keys[..group.len()], &mut hashes[..group.len()]);
        if let Ok(group) = group.try_into()
            && self.note_alike(group, &hashes)
        {
            return Ok(false);
        }
        self.note_each(group, &hashes)
    }

    /// Notes a whole group of objects of the present tablet without flags, as most are: looks at
    /// all of them without branches. Else it says false and has done nothing.
    #[inline]
    fn note_alike(
        &mut self,
        group: &[Found; HASHED_TOGETHER],
        hashes: &[u64; HASHED_TOGETHER],
    ) -> bool {
        let Some(range) = self.tablets.get(self.tablet).map(|tablet| &tablet.range) else {
            return false;
        };
        let (mut alike, mut version_max) = (true, 0);
        for (Found { head, .. }, hash) in group.iter().zip(hashes) {
            alike &= head.is_plain_object() & (head.value_length() <= VALUE_BYTES_MAX);
            alike &= (head.table_id == range.table_id)
                & (range.start_slot <= slot(*hash))
                & (slot(*hash) <= range.end_slot);
            version_max = version_max.max(head.version);
        }
        if !alike || version_max > VERSION_MAX {
            return false;
        }
        let tablet = self.tablet as u32;
        let noted: [Parsed; HASHED_TOGETHER] = std::array::from_fn(|index| Parsed {
            hash: hashes[index],
            offset: group[index].at as u32,
            tablet_and_type: tablet,
        });
        self.parsed.extend_from_slice(&noted);
        self.raise(version_max + 1);
        let last = &group[HASHED_TOGETHER - 1];
        let sum = &mut self.sums[self.tablet];
        sum.0 += HASHED_TOGETHER as i64;
        sum.1 += (last.at + last.head.total_bytes() - group[0].at) as i64;
        true
    }

    fn note_each(
        &mut self,
        group: &[Found],
        hashes: &[u64; HASHED_TOGETHER],
    ) -> Result<bool, Status> {
        let mut attached = false;
        for (Found { at, head }, hash) in group.iter().zip(hashes) {
            attached |= head.is_attached();
            if head.has_unknown_flags() {
                return Err(Status::ChecksumMismatch);
            }
            // Else a version that follows would begin again at 0.
            if head.version > VERSION_MAX {
                return Err(Status::InvalidArgument);
            }
            let tombstone = match head.entry_type() {
                Some(EntryType::Object) if head.value_length() <= VALUE_BYTES_MAX => 0,
                Some(EntryType::Tombstone) if head.value_length() == 0 => TOMBSTONE,
                Some(kind @ (EntryType::SafeVersion | EntryType::Padding)) => {
                    if kind == EntryType::SafeVersion {
                        self.raise(head.version);
                    }
                    self.checked.dead_bytes += head.total_bytes();
                    continue;
                }
                Some(_) => return Err(Status::InvalidArgument),
                None => return Err(Status::ChecksumMismatch),
            };
            self.raise(head.version + 1);
            let tablet = self.find_tablet(head.table_id, slot(*hash))?;
            if tombstone == 0 {
                let sum = &mut self.sums[tablet];
                sum.0 += 1;
                sum.1 += head.total_bytes() as i64;
            } else {
                self.checked.dead_bytes += head.total_bytes();
            }
            self.parsed.push(Parsed {
                hash: *hash,
                offset: *at as u32,
                tablet_and_type: tablet as u32 | tombstone,
            });
        }
        Ok(attached)
    }

    #[inline]
    fn raise(&mut self, safe_version: u64) {
        self.checked.safe_version = self.checked.safe_version.max(safe_version);
    }

    /// Neighbours are often of one tablet.
    #[inline]
    fn find_tablet(&mut self, table_id: u64, slot: u32) -> Result<usize, Status> {
        let holds = |index: usize| {
            let tablet = self.tablets.get(index);
            tablet.is_some_and(|tablet| tablet.range.contains(table_id, slot))
        };
        if holds(self.tablet) {
            return Ok(self.tablet);
        }
        let behind = self.tablets.partition_point(|tablet| {
            (tablet.range.table_id, tablet.range.start_slot) <= (table_id, slot)
        });
        let index = behind.checked_sub(1).filter(|index| holds(*index));
        self.tablet = index.ok_or(Status::InvalidArgument)?;
        Ok(self.tablet)
    }

    /// What the piece is, as a whole.
    ///
    /// # Errors
    /// `ChecksumMismatch` if it is not made of exactly the entries that were certified.
    pub fn finish(self, length: usize, checksum: u32) -> Result<Checked, Status> {
        if self.at != length || self.more || self.checksum.finish() != checksum {
            return Err(Status::ChecksumMismatch);
        }
        Ok(self.checked)
    }
}

/// See [`detach`].
#[cold]
fn detach_all(entries: &mut [u8]) {
    let mut at = 0;
    while at < entries.len() {
        let entry = EntryView::parse(&entries[at..]).expect("entries that were verified parse");
        let (used, total_bytes) = (entry.bytes().len(), entry.total_bytes());
        if entry.is_attached() {
            detach(&mut entries[at..at + used]);
        }
        at += total_bytes;
    }
}

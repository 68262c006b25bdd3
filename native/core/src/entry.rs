//! Log entries: the 32-byte header of `docs/formats.md` §2, written and read.
//!
//! Rule: nothing of an entry is used before its lengths are checked against the bytes at hand and
//! its checksum against its contents. Everything that parses log bytes goes through
//! [`EntryView::parse`] or [`EntryIterator`]; replay, which has millions to check, does what they
//! do with [`head::EntryHead`].

pub mod head;

use crate::crc32c::{crc32c, extend};
use crate::little_endian::{u32_at, u64_at};
use crate::status::Status;

/// Bytes of a segment.
pub const SEGMENT_BYTES: usize = 8 << 20;
/// Bytes of a seglet, the unit in which the arena hands out memory.
pub const SEGLET_BYTES: usize = 64 << 10;
/// Bytes of an entry header.
pub const HEADER_BYTES: usize = 32;
/// Longest key.
pub const KEY_BYTES_MAX: usize = 65_535;
/// Highest version that a recovery accepts: nobody ever gets there.
pub const VERSION_MAX: u64 = 1 << 62;
/// Longest value of an object.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// `flags`: the next entry belongs to the same atomic append.
pub const FLAG_MORE: u8 = 1;
/// Most prior segments that one entry names: what bits 4 – 7 of `flags` can count.
pub const PRIOR_MAX: usize = 15;

const PRIOR_SHIFT: u32 = 4;
const FLAGS_UNKNOWN: u8 = 0b1110;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryType {
    /// First entry of each segment.
    SegmentHeader = 1,
    /// A key's value.
    Object = 2,
    /// The death of a key's objects up to its version.
    Tombstone = 3,
    /// The segments that make up the log.
    LogDigest = 4,
    /// The master's safe version.
    SafeVersion = 5,
    /// Bytes and records of each tablet.
    TableStats = 6,
    /// Bytes without meaning: all readers skip them.
    Padding = 8,
    /// What the master says of itself: its tablets, its cluster.
    Note = 9,
}

impl EntryType {
    #[inline(always)]
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::SegmentHeader,
            2 => Self::Object,
            3 => Self::Tombstone,
            4 => Self::LogDigest,
            5 => Self::SafeVersion,
            6 => Self::TableStats,
            8 => Self::Padding,
            9 => Self::Note,
            _ => return None,
        })
    }
}

/// The fields of an entry's header except its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryHeader {
    /// What the entry is.
    pub entry_type: EntryType,
    /// `FLAG_MORE` or 0; the number of prior segments is added when it is written.
    pub flags: u8,
    /// Seconds since 1970.
    pub timestamp: u32,
    /// Table id, or log id in a segment header.
    pub table_id: u64,
    /// Version, or segment id in a segment header.
    pub version: u64,
}

/// Bytes that an entry occupies, padding included.
#[inline]
pub const fn entry_bytes(key_length: usize, value_length: usize, prior_count: usize) -> usize {
    (HEADER_BYTES + prior_count * 8 + key_length + value_length + 7) & !7
}

/// Writes an entry to the start of `out` and returns its length with padding. `prior` are the
/// segments that may still hold older versions of the key.
///
/// # Panics
/// If `out` is shorter than [`entry_bytes`] or a length exceeds its field: the caller has reserved
/// the room and checked the limits.
#[inline]
pub fn write_entry(
    out: &mut [u8],
    header: &EntryHeader,
    prior: &[u64],
    key: &[u8],
    value: &[u8],
) -> usize {
    let total = entry_bytes(key.len(), value.len(), prior.len());
    let key_start = HEADER_BYTES + prior.len() * 8;
    let value_start = key_start + key.len();
    let used = value_start + value.len();
    let out = &mut out[..total];
    assert!(key.len() <= KEY_BYTES_MAX, "key length exceeds its field");
    assert!(
        prior.len() <= PRIOR_MAX,
        "prior segments exceed their field"
    );
    out[4] = header.entry_type as u8;
    out[5] = header.flags | (prior.len() as u8) << PRIOR_SHIFT;
    out[6..8].copy_from_slice(&(key.len() as u16).to_le_bytes());
    out[8..12].copy_from_slice(&(value.len() as u32).to_le_bytes());
    out[12..16].copy_from_slice(&header.timestamp.to_le_bytes());
    out[16..24].copy_from_slice(&header.table_id.to_le_bytes());
    out[24..32].copy_from_slice(&header.version.to_le_bytes());
    for (place, id) in out[HEADER_BYTES..key_start].chunks_exact_mut(8).zip(prior) {
        place.copy_from_slice(&id.to_le_bytes());
    }
    out[key_start..value_start].copy_from_slice(key);
    out[value_start..used].copy_from_slice(value);
    out[used..].fill(0);
    seal(&mut out[..used]);
    total
}

/// What the checksum of an entry covers: all behind it, but of padding the header only.
#[inline]
fn covered(entry: &[u8]) -> &[u8] {
    if entry[4] == EntryType::Padding as u8 {
        &entry[4..HEADER_BYTES]
    } else {
        &entry[4..]
    }
}

#[inline]
fn seal(entry: &mut [u8]) {
    let checksum = crc32c(covered(entry));
    entry[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes padding of an entry whose header this is; it keeps its length.
pub fn neutralise(header: &mut [u8]) {
    header[4] = EntryType::Padding as u8;
    header[5] &= !FLAG_MORE;
    seal(header);
}

/// Lets an entry, given without padding, name no segment and belong to no longer atomic append; it
/// keeps its length.
pub fn detach(entry: &mut [u8]) {
    let key_start = HEADER_BYTES + usize::from(entry[5] >> PRIOR_SHIFT) * 8;
    entry[HEADER_BYTES..key_start].fill(0);
    entry[5] &= !FLAG_MORE;
    seal(entry);
}

/// The checksum of a recovery segment: CRC-32C over the checksums of its entries, in order. These
/// cover the bytes; it covers that none is missing, added or moved.
#[derive(Clone, Debug)]
pub struct PieceChecksum {
    sum: u32,
    words: [u8; PIECE_BLOCK_BYTES],
    used: usize,
}

const PIECE_BLOCK_BYTES: usize = 256;

impl Default for PieceChecksum {
    fn default() -> Self {
        Self {
            sum: 0,
            words: [0; PIECE_BLOCK_BYTES],
            used: 0,
        }
    }
}

impl PieceChecksum {
    /// Adds the next entry by its own checksum.
    #[inline]
    pub fn add(&mut self, entry_checksum: u32) {
        self.words[self.used..self.used + 4].copy_from_slice(&entry_checksum.to_le_bytes());
        self.used += 4;
        if self.used == PIECE_BLOCK_BYTES {
            self.sum = extend(self.sum, &self.words);
            self.used = 0;
        }
    }

    /// Adds the next entries by their own checksums.
    #[inline]
    pub fn add_all(&mut self, entry_checksums: &[u32]) {
        self.sum = self.finish();
        self.used = 0;
        for checksums in entry_checksums.chunks(PIECE_BLOCK_BYTES / 4) {
            for (place, checksum) in self.words.as_chunks_mut().0.iter_mut().zip(checksums) {
                *place = checksum.to_le_bytes();
            }
            self.sum = extend(self.sum, &self.words[..checksums.len() * 4]);
        }
    }

    /// The checksum.
    pub fn finish(&self) -> u32 {
        extend(self.sum, &self.words[..self.used])
    }

    /// That of all entries of `bytes`.
    ///
    /// # Errors
    /// `ChecksumMismatch` if they do not parse.
    pub fn of(bytes: &[u8]) -> Result<u32, Status> {
        let mut checksum = Self::default();
        for item in EntryIterator::new(bytes) {
            checksum.add(item?.1.checksum());
        }
        Ok(checksum.finish())
    }
}

/// An entry within some log bytes. Its lengths are checked; its checksum only after
/// [`EntryView::verify`].
#[derive(Clone, Copy, Debug)]
pub struct EntryView<'a> {
    bytes: &'a [u8],
    key_start: usize,
    value_start: usize,
    entry_type: EntryType,
}

impl<'a> EntryView<'a> {
    /// The entry that starts at the first byte of `bytes`.
    ///
    /// # Errors
    /// `ChecksumMismatch` if the header is cut off, its type or flags are unknown, or its lengths
    /// reach beyond `bytes`.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Status> {
        if bytes.len() < HEADER_BYTES {
            return Err(Status::ChecksumMismatch);
        }
        let entry_type = EntryType::from_u8(bytes[4]).ok_or(Status::ChecksumMismatch)?;
        let key_start = HEADER_BYTES + usize::from(bytes[5] >> PRIOR_SHIFT) * 8;
        let value_start = key_start + usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let value_length = u32_at(bytes, 8) as usize;
        let used = value_start + value_length;
        if bytes[5] & FLAGS_UNKNOWN != 0 || value_length > SEGMENT_BYTES || used > bytes.len() {
            return Err(Status::ChecksumMismatch);
        }
        Ok(Self {
            bytes: &bytes[..used],
            key_start,
            value_start,
            entry_type,
        })
    }

    /// Length without padding of the entry whose header `header` is, for one that was checked
    /// before.
    #[inline]
    pub fn length(header: &[u8]) -> usize {
        let prior_bytes = usize::from(header[5] >> PRIOR_SHIFT) * 8;
        let key_length = usize::from(u16::from_le_bytes([header[6], header[7]]));
        HEADER_BYTES + prior_bytes + key_length + u32_at(header, 8) as usize
    }

    /// Compares the stored checksum with the contents.
    ///
    /// # Errors
    /// `ChecksumMismatch`.
    #[inline]
    pub fn verify(&self) -> Result<(), Status> {
        if crc32c(self.covered()) == self.checksum() {
            Ok(())
        } else {
            Err(Status::ChecksumMismatch)
        }
    }

    /// The stored checksum.
    #[inline]
    pub fn checksum(&self) -> u32 {
        u32_at(self.bytes, 0)
    }
    /// What the checksum covers.
    #[inline]
    pub fn covered(&self) -> &'a [u8] {
        covered(self.bytes)
    }
    /// What the entry is.
    #[inline]
    pub fn entry_type(&self) -> EntryType {
        self.entry_type
    }
    /// Whether the next entry belongs to the same atomic append.
    #[inline]
    pub fn more(&self) -> bool {
        self.bytes[5] & FLAG_MORE != 0
    }
    /// Whether it names segments or belongs to a longer atomic append: see [`detach`].
    #[inline]
    pub fn is_attached(&self) -> bool {
        self.bytes[5] != 0
    }
    /// Seconds since 1970.
    #[inline]
    pub fn timestamp(&self) -> u32 {
        u32_at(self.bytes, 12)
    }
    /// Table id, or log id in a segment header.
    #[inline]
    pub fn table_id(&self) -> u64 {
        u64_at(self.bytes, 16)
    }
    /// Version, or segment id in a segment header.
    #[inline]
    pub fn version(&self) -> u64 {
        u64_at(self.bytes, 24)
    }
    /// How many prior segments it names.
    #[inline]
    pub fn prior_count(&self) -> usize {
        (self.key_start - HEADER_BYTES) / 8
    }
    /// The segments that may hold older, dead versions of the key; 0 stands for none.
    #[inline]
    pub fn prior(&self) -> impl Iterator<Item = u64> + use<'a> {
        let ids = &self.bytes[HEADER_BYTES..self.key_start];
        ids.chunks_exact(8).map(|id| u64_at(id, 0))
    }
    /// The key.
    #[inline]
    pub fn key(&self) -> &'a [u8] {
        &self.bytes[self.key_start..self.value_start]
    }
    /// The value.
    #[inline]
    pub fn value(&self) -> &'a [u8] {
        &self.bytes[self.value_start..]
    }
    /// Everything but the padding.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// Bytes to the next entry.
    #[inline]
    pub fn total_bytes(&self) -> usize {
        (self.bytes.len() + 7) & !7
    }
}

/// Walks the entries of a segment or recovery segment: yields (offset, entry), ends at the end of
/// the bytes or after the first error.
pub struct EntryIterator<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> EntryIterator<'a> {
    /// All entries of `bytes`, which end where their certificate ends.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Where the next entry begins.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl<'a> Iterator for EntryIterator<'a> {
    type Item = Result<(usize, EntryView<'a>), Status>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let at = self.offset;
        match EntryView::parse(&self.bytes[at..]) {
            Ok(entry) => {
                self.offset = at + entry.total_bytes();
                Some(Ok((at, entry)))
            }
            Err(status) => {
                self.offset = self.bytes.len();
                Some(Err(status))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(entry_type: EntryType) -> EntryHeader {
        EntryHeader {
            entry_type,
            flags: 0,
            timestamp: 7,
            table_id: 3,
            version: 9,
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut out = vec![0xffu8; 4096];
        let first = write_entry(&mut out, &header(EntryType::Object), &[], b"key", b"value");
        let rest = &mut out[first..];
        let prior: Vec<u64> = (1..=PRIOR_MAX as u64).collect();
        let second = write_entry(rest, &header(EntryType::Tombstone), &prior, b"key", b"");
        let entries: Vec<_> = EntryIterator::new(&out[..first + second])
            .map(|item| item.expect("parses"))
            .collect();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].0, first);
        let (_, object) = entries[0];
        object.verify().expect("checksum");
        assert_eq!((object.key(), object.value()), (&b"key"[..], &b"value"[..]));
        assert_eq!(
            (object.table_id(), object.version(), object.timestamp()),
            (3, 9, 7)
        );
        assert_eq!(object.prior_count(), 0);
        let (_, tombstone) = entries[1];
        tombstone.verify().expect("checksum");
        assert_eq!(tombstone.prior_count(), PRIOR_MAX);
        assert_eq!(tombstone.prior().collect::<Vec<_>>(), prior);
        assert_eq!(
            (tombstone.key(), tombstone.value()),
            (&b"key"[..], &b""[..])
        );
        assert_eq!(tombstone.total_bytes(), entry_bytes(3, 0, PRIOR_MAX));
    }

    #[test]
    fn entries_are_detached_and_neutralised_in_place() {
        let mut out = vec![0u8; 128];
        let more = EntryHeader {
            flags: FLAG_MORE,
            ..header(EntryType::Object)
        };
        let total = write_entry(&mut out, &more, &[5, 6], b"key", b"value");
        let used = EntryView::parse(&out).expect("parses").bytes().len();
        detach(&mut out[..used]);
        let entry = EntryView::parse(&out).expect("parses");
        entry.verify().expect("sealed again");
        assert!(!entry.more());
        assert_eq!(entry.prior().collect::<Vec<_>>(), [0, 0]);
        assert_eq!((entry.key(), entry.value()), (&b"key"[..], &b"value"[..]));
        neutralise(&mut out[..HEADER_BYTES]);
        let entry = EntryView::parse(&out).expect("parses");
        entry.verify().expect("sealed again");
        assert_eq!(entry.entry_type(), EntryType::Padding);
        assert_eq!(entry.total_bytes(), total);
    }

    #[test]
    fn a_piece_is_the_sequence_of_its_entries() {
        let mut out = vec![0u8; 8192];
        let mut ends = vec![0];
        for number in 0..100u8 {
            let start = ends[ends.len() - 1];
            let rest = &mut out[start..];
            ends.push(start + write_entry(rest, &header(EntryType::Object), &[], &[number], b""));
        }
        let sum = |bytes: &[u8]| PieceChecksum::of(bytes).expect("parses");
        let words: Vec<u8> = ends[..100]
            .iter()
            .flat_map(|&at| out[at..at + 4].to_vec())
            .collect();
        assert_eq!(sum(&out[..ends[100]]), crc32c(&words));
        assert_ne!(sum(&out[..ends[100]]), sum(&out[..ends[99]]));
        assert_ne!(sum(&out[..ends[100]]), sum(&out[ends[1]..ends[100]]));
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let mut out = vec![0u8; 64];
        let total = write_entry(&mut out, &header(EntryType::Object), &[5], b"key", b"value");
        let used = HEADER_BYTES + 16;
        assert_eq!(total, 48);
        for bit in 0..used * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            let found = EntryView::parse(&out[..total]).and_then(|entry| entry.verify());
            assert!(found.is_err(), "bit {bit}");
            out[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

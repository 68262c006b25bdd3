//! The header of an entry in a few words, for whoever goes over very many of them.
//!
//! Rule: it says what the header says; nothing of it is checked. Whoever takes it from a log checks
//! the lengths against the bytes at hand, the checksum, the type and the flags, as
//! [`super::EntryView::parse`] does.

use super::{EntryType, FLAG_MORE, FLAGS_UNKNOWN, HEADER_BYTES, PRIOR_SHIFT};
use crate::little_endian::{u32_at, u64_at};

/// See the file's head.
#[derive(Clone, Copy, Debug, Default)]
pub struct EntryHead {
    /// Checksum, type, flags, length of the key.
    first: u64,
    value_length: u32,
    /// Table id, or log id in a segment header.
    pub table_id: u64,
    /// Version, or segment id in a segment header.
    pub version: u64,
}

impl EntryHead {
    /// What this header says.
    #[inline(always)]
    pub fn of(header: &[u8; HEADER_BYTES]) -> Self {
        Self {
            first: u64_at(header, 0),
            value_length: u32_at(header, 8),
            table_id: u64_at(header, 16),
            version: u64_at(header, 24),
        }
    }

    /// The stored checksum.
    #[inline(always)]
    pub fn checksum(&self) -> u32 {
        self.first as u32
    }
    /// What the entry is, if that is known.
    #[inline(always)]
    pub fn entry_type(&self) -> Option<EntryType> {
        EntryType::from_u8(self.type_byte())
    }
    #[inline(always)]
    fn type_byte(&self) -> u8 {
        (self.first >> 32) as u8
    }
    #[inline(always)]
    fn flags(&self) -> u8 {
        (self.first >> 40) as u8
    }
    /// An object without flags.
    #[inline(always)]
    pub fn is_plain_object(&self) -> bool {
        (self.first >> 32) as u16 == EntryType::Object as u16
    }
    /// Whether it has flags that nobody knows.
    #[inline(always)]
    pub fn has_unknown_flags(&self) -> bool {
        self.flags() & FLAGS_UNKNOWN != 0
    }
    /// See [`super::EntryView::more`].
    #[inline(always)]
    pub fn more(&self) -> bool {
        self.flags() & FLAG_MORE != 0
    }
    /// See [`super::EntryView::is_attached`].
    #[inline(always)]
    pub fn is_attached(&self) -> bool {
        self.flags() != 0
    }
    /// Where in the entry its key begins.
    #[inline(always)]
    pub fn key_start(&self) -> usize {
        HEADER_BYTES + usize::from(self.flags() >> PRIOR_SHIFT) * 8
    }
    /// Where in the entry its value begins.
    #[inline(always)]
    pub fn value_start(&self) -> usize {
        self.key_start() + (self.first >> 48) as usize
    }
    /// Bytes of the value.
    #[inline(always)]
    pub fn value_length(&self) -> usize {
        self.value_length as usize
    }
    /// Bytes without padding.
    #[inline(always)]
    pub fn used_bytes(&self) -> usize {
        self.value_start() + self.value_length()
    }
    /// Bytes to the next entry.
    #[inline(always)]
    pub fn total_bytes(&self) -> usize {
        (self.used_bytes() + 7) & !7
    }
    /// Where in the entry that ends which the checksum covers.
    #[inline(always)]
    pub fn covered_end(&self) -> usize {
        if self.type_byte() == EntryType::Padding as u8 {
            HEADER_BYTES
        } else {
            self.used_bytes()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{EntryHeader, EntryView, PRIOR_MAX, neutralise, write_entry};
    use super::*;

    fn assert_same(bytes: &[u8]) {
        let view = EntryView::parse(bytes).expect("parses");
        let header = bytes.first_chunk().expect("there is a header");
        let head = EntryHead::of(header);
        assert_eq!(head.checksum(), view.checksum());
        assert_eq!(head.entry_type(), Some(view.entry_type()));
        assert_eq!(
            (head.more(), head.has_unknown_flags()),
            (view.more(), false)
        );
        assert_eq!(head.is_attached(), view.is_attached());
        let plain = view.entry_type() == EntryType::Object && !view.is_attached();
        assert_eq!(head.is_plain_object(), plain);
        assert_eq!(&bytes[head.key_start()..head.value_start()], view.key());
        assert_eq!(&bytes[head.value_start()..head.used_bytes()], view.value());
        assert_eq!(head.value_length(), view.value().len());
        assert_eq!(head.total_bytes(), view.total_bytes());
        assert_eq!(&bytes[4..head.covered_end()], view.covered());
        assert_eq!(
            (head.table_id, head.version),
            (view.table_id(), view.version())
        );
    }

    #[test]
    fn says_what_the_view_says() {
        let mut out = vec![0u8; 4096];
        for entry_type in [
            EntryType::Object,
            EntryType::Tombstone,
            EntryType::SafeVersion,
        ] {
            for prior in [0, 1, PRIOR_MAX] {
                for (key, value, flags) in [(0, 0, 0), (24, 100, FLAG_MORE), (300, 1, 0)] {
                    let header = EntryHeader {
                        entry_type,
                        flags,
                        timestamp: 7,
                        table_id: u64::MAX - 1,
                        version: 1 << 61,
                    };
                    let prior = vec![5; prior];
                    write_entry(&mut out, &header, &prior, &vec![1; key], &vec![2; value]);
                    assert_same(&out);
                    neutralise(&mut out[..HEADER_BYTES]);
                    assert_same(&out);
                }
            }
        }
        out[5] |= FLAGS_UNKNOWN & FLAGS_UNKNOWN.wrapping_neg();
        out[4] = 7;
        let head = EntryHead::of(out.first_chunk().expect("there is a header"));
        assert!(head.has_unknown_flags() && head.entry_type().is_none());
    }
}

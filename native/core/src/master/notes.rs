//! Notes: what a log says of its master beside objects, key by key (`docs/formats.md` §2). What
//! they mean is their writer's business.
//!
//! Rule: all of them fit into the opening of a head with room to spare, so that each head repeats
//! them and none below is needed to know them.

use std::collections::BTreeMap;

use super::segment::Append;
use crate::entry::{EntryHeader, EntryType, SEGMENT_BYTES, VALUE_BYTES_MAX, entry_bytes};
use crate::status::Status;

/// Longest key.
pub const NOTE_KEY_BYTES_MAX: usize = 1024;
/// Bytes of all entries: half of a head. The rest of its opening is far shorter.
pub const NOTES_BYTES_MAX: usize = SEGMENT_BYTES / 2;

/// The notes of a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notes {
    by_key: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of their entries.
    bytes: usize,
}

impl Notes {
    /// Whether a note would be news. An empty value means that there is none.
    ///
    /// # Errors
    /// `InvalidArgument` for a key or a value that is none, `OutOfMemory` if all would be too long.
    pub fn changes(&self, key: &[u8], value: &[u8]) -> Result<bool, Status> {
        if key.is_empty() || key.len() > NOTE_KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(Status::InvalidArgument);
        }
        let present = self.by_key.get(key).map_or(&[][..], |value| value);
        if present == value {
            return Ok(false);
        }
        let rest = self.bytes - kept_bytes(key, present);
        if rest + kept_bytes(key, value) > NOTES_BYTES_MAX {
            return Err(Status::OutOfMemory);
        }
        Ok(true)
    }

    /// Takes over a note that `changes` has allowed.
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        let former = if value.is_empty() {
            self.by_key.remove(key)
        } else {
            self.by_key.insert(key.to_vec(), value.to_vec())
        };
        self.bytes += kept_bytes(key, value);
        self.bytes -= kept_bytes(key, &former.unwrap_or_default());
    }

    /// All, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.by_key
            .iter()
            .map(|(key, value)| (&key[..], &value[..]))
    }
}

fn kept_bytes(key: &[u8], value: &[u8]) -> usize {
    if value.is_empty() {
        0
    } else {
        entry_bytes(key.len(), value.len(), 0)
    }
}

/// The entry that says that `key` is `value`.
pub fn note_entry<'a>(key: &'a [u8], value: &'a [u8], timestamp: u32) -> Append<'a> {
    Append {
        header: EntryHeader {
            entry_type: EntryType::Note,
            flags: 0,
            timestamp,
            table_id: 0,
            version: 0,
        },
        prior: &[],
        key,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_together_have_a_limit() {
        let mut notes = Notes::default();
        let long = vec![1; VALUE_BYTES_MAX - 64];
        let set = |notes: &mut Notes, key: &[u8], value: &[u8]| {
            let changes = notes.changes(key, value)?;
            notes.set(key, value);
            Ok::<bool, Status>(changes)
        };
        for key in 0..4u8 {
            assert_eq!(set(&mut notes, &[key], &long), Ok(true));
        }
        assert_eq!(notes.changes(b"x", &long), Err(Status::OutOfMemory));
        assert_eq!(notes.changes(&[0], &long), Ok(false));
        assert_eq!(set(&mut notes, &[0], b""), Ok(true));
        assert_eq!(set(&mut notes, &[0], b""), Ok(false));
        assert_eq!(set(&mut notes, b"x", &long), Ok(true));
        assert_eq!(notes.iter().count(), 4);
        for key in [&[][..], &[0; NOTE_KEY_BYTES_MAX + 1]] {
            assert_eq!(notes.changes(key, b"v"), Err(Status::InvalidArgument));
        }
        for key in [&[1][..], &[2], &[3], b"x"] {
            notes.set(key, b"");
        }
        assert_eq!((notes.bytes, notes.iter().count()), (0, 0));
    }
}

//! The segments that an entry names because they may hold dead versions of its key.
//!
//! Rule (`docs/formats.md` §2): for each dead version of a key in a segment of the log, the newest
//! entry of the key, or an explicit tombstone in the log, names that segment. Hence whoever writes
//! the next entry of a key carries the names on, adds the segment of the version that dies now, and
//! drops those that are not in memory any more.

use crate::entry::{EntryView, PRIOR_MAX};

/// At most `PRIOR_MAX` segments of earlier versions, and that of the version that dies now.
#[derive(Clone, Copy, Debug, Default)]
pub struct PriorSegments {
    ids: [u64; PRIOR_MAX + 1],
    count: usize,
}

impl PriorSegments {
    /// What the entry after `dead`, which lies in `segment_id`, has to name.
    pub fn after(dead: &EntryView<'_>, segment_id: u64, present: impl Fn(u64) -> bool) -> Self {
        let mut prior = Self::default();
        for id in dead.prior() {
            if id != segment_id && present(id) {
                prior.push(id);
            }
        }
        prior.push(segment_id);
        prior
    }

    fn push(&mut self, id: u64) {
        self.ids[self.count] = id;
        self.count += 1;
    }

    /// What an explicit tombstone of the version that dies now has to name, and what the next entry
    /// does: all, if they fit; else only the segment of the version that dies now.
    pub fn split(&self) -> (&[u64], &[u64]) {
        if self.count > PRIOR_MAX {
            self.ids.split_at(PRIOR_MAX)
        } else {
            (&[], &self.ids[..self.count])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryHeader, EntryType, write_entry};

    fn after(prior: &[u64], segment_id: u64, gone: u64) -> PriorSegments {
        let mut bytes = [0; 256];
        let header = EntryHeader {
            entry_type: EntryType::Object,
            flags: 0,
            timestamp: 0,
            table_id: 1,
            version: 1,
        };
        write_entry(&mut bytes, &header, prior, b"key", b"");
        let entry = EntryView::parse(&bytes).expect("parses");
        PriorSegments::after(&entry, segment_id, |id| id != gone && id != 0)
    }

    #[test]
    fn names_are_carried_on_pruned_and_handed_to_a_tombstone_when_there_are_too_many() {
        let none: &[u64] = &[];
        assert_eq!(PriorSegments::default().split(), (none, none));
        assert_eq!(after(&[], 7, 9).split(), (none, &[7][..]));
        assert_eq!(after(&[9, 7, 0, 5], 7, 9).split(), (none, &[5, 7][..]));
        let full: Vec<u64> = (1..=PRIOR_MAX as u64).collect();
        let next = after(&full, 15, 99);
        assert_eq!(next.split().1.len(), PRIOR_MAX);
        let over = after(&full, 16, 99);
        assert_eq!(over.split(), (&full[..], &[16][..]));
        assert_eq!(after(&full, 16, 3).split().0, none);
    }
}

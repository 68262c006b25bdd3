//! Checks all structures of a master against each other, for tests and for a doubtful process.
//!
//! Rule: changes nothing and trusts nothing: every entry is parsed and its checksum compared. The
//! serving lock is held and the cleaner waits meanwhile; no replay may be running, since the table
//! refers to what a replay publishes later.
//!
//! What holds: each slot refers to one published entry of its hash in a segment that is in memory,
//! and no key has two; it belongs to a tablet, or to a range that is being erased; a tablet counts
//! its objects, no more and no less; no segment counts more dead bytes than it has; free blocks
//! belong to nobody; chains end; the newest head tells the notes that are in force; and the
//! invariant of `docs/formats.md` §2, that every dead version of a key is named by the key's newest
//! entry or by a tombstone.

mod violation;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

pub use self::violation::Violation;
use super::Master;
use super::execute::Serving;
use super::log::Reserve;
use super::notes::Notes;
use super::objects::Objects;
use super::segment::Segment;
use super::tablets::SlotRange;
use crate::entry::{EntryIterator, EntryType, EntryView, SEGLET_BYTES};
use crate::key_hash::{key_hash, slot};

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries that the table refers to.
    pub entries: u64,
    /// Objects among them.
    pub objects: u64,
    /// Segments in memory.
    pub segments: u64,
    /// Dead versions that something guards.
    pub dead_versions: u64,
}

type Key = (u64, Vec<u8>);

struct Dead {
    segment_id: u64,
    version: u64,
    offset: usize,
}

struct Verification<'a> {
    objects: &'a Objects,
    serving: &'a Serving,
    /// Segments that a recovery would read once the passes under way have ended.
    log: BTreeSet<u64>,
    segments: BTreeMap<u64, Arc<Segment>>,
    /// What the table refers to and no segment has shown yet: by offset, where it belongs.
    referred: HashMap<usize, (usize, u64)>,
    /// Keys that the table has.
    keys: HashSet<Key>,
    /// By first key of their tablet: records and bytes.
    counts: HashMap<(u64, u32), (u64, u64)>,
    /// Dead versions that the newest entry of their key does not name.
    unnamed: HashMap<Key, Vec<Dead>>,
    /// As the newest head tells them.
    notes: Notes,
    result: Verified,
}

impl Master {
    /// Checks everything; see the file's head. Takes as long as reading all log memory.
    ///
    /// # Errors
    /// The first violation found.
    pub fn verify(&self) -> Result<Verified, Violation> {
        let _turn = self.cleaner.turn.lock();
        let serving = self.serving().map_err(Violation::Unavailable)?;
        let passes = &self.cleaner.passes;
        let mut log: BTreeSet<u64> = serving.log.segments().collect();
        log.extend(passes.survivors());
        for id in passes.cleaned() {
            log.remove(&id);
        }
        let segments = self.objects.all_segments();
        let mut verification = Verification {
            objects: &self.objects,
            serving: &serving,
            log,
            segments: segments.into_iter().map(|one| (one.id, one)).collect(),
            referred: HashMap::new(),
            keys: HashSet::new(),
            counts: HashMap::new(),
            unnamed: HashMap::new(),
            notes: Notes::default(),
            result: Verified::default(),
        };
        verification.table()?;
        verification.all_segments()?;
        verification.notes()?;
        verification.dead_versions();
        verification.tombstones()?;
        verification.tablets()?;
        match self.objects.arena.wrong_block() {
            Some(block) => Err(Violation::Block { block }),
            None => Ok(verification.result),
        }
    }
}

impl Verification<'_> {
    fn table(&mut self) -> Result<(), Violation> {
        let table = &self.objects.table;
        let (mut found, mut twice) = (0, None);
        let walked = table.each(|place, offset| {
            found += 1;
            if self.referred.insert(offset, place).is_some() {
                twice = Some(offset);
            }
        });
        walked.map_err(|bucket| Violation::EndlessChain { bucket })?;
        if let Some(offset) = twice {
            return Err(Violation::KeyTwice { offset });
        }
        let counted = table.report().entries;
        if counted != found {
            return Err(Violation::TableCount { counted, found });
        }
        Ok(())
    }

    /// An entry whose bytes are sound and that the table refers to from `place`.
    fn referred(
        &mut self,
        place: (usize, u64),
        offset: usize,
        entry: &EntryView<'_>,
    ) -> Result<(), Violation> {
        if !matches!(entry.entry_type(), EntryType::Object | EntryType::Tombstone) {
            return Err(Violation::Dangling { offset });
        }
        let hash = key_hash(entry.table_id(), entry.key());
        if self.objects.table.place(hash) != place {
            return Err(Violation::WrongPlace { offset });
        }
        if !self.keys.insert((entry.table_id(), entry.key().to_vec())) {
            return Err(Violation::KeyTwice { offset });
        }
        self.count(offset, entry, slot(hash))
    }

    fn count(&mut self, offset: usize, entry: &EntryView<'_>, slot: u32) -> Result<(), Violation> {
        self.result.entries += 1;
        if entry.entry_type() != EntryType::Object {
            return Ok(());
        }
        self.result.objects += 1;
        let (tablets, table_id) = (&self.serving.tablets, entry.table_id());
        let Some(tablet) = tablets.find(table_id, slot) else {
            let key = SlotRange {
                table_id,
                start_slot: slot,
                end_slot: slot,
            };
            let leaving = tablets.erasing(&key).then_some(());
            return leaving.ok_or(Violation::WithoutTablet { offset });
        };
        let range = tablet.range;
        let sum = self
            .counts
            .entry((range.table_id, range.start_slot))
            .or_default();
        sum.0 += 1;
        sum.1 += entry.total_bytes() as u64;
        Ok(())
    }

    fn all_segments(&mut self) -> Result<(), Violation> {
        for segment in self.segments.values().cloned().collect::<Vec<_>>() {
            self.segment(&segment)?;
            self.result.segments += 1;
        }
        if let Some(offset) = self.referred.keys().next() {
            return Err(Violation::Dangling { offset: *offset });
        }
        Ok(())
    }

    fn segment(&mut self, segment: &Segment) -> Result<(), Violation> {
        let segment_id = segment.id;
        for (number, piece) in segment.pieces().enumerate() {
            let (start, capacity) = (piece.extent.offset, piece.extent.capacity);
            for offset in (start..start + capacity).step_by(SEGLET_BYTES) {
                let owner = self.objects.arena.segment_id(offset);
                if owner != segment_id {
                    return Err(Violation::WrongOwner {
                        segment_id,
                        owner,
                        offset,
                    });
                }
            }
            // SAFETY: the piece keeps its extent, and its bytes are published.
            let bytes = unsafe { self.objects.arena.published(start, piece.bytes) };
            let found = self.entries(segment, start, bytes, number == 0)?;
            let counted = piece.extent.dead_bytes();
            if counted > found {
                return Err(Violation::DeadBytes {
                    segment_id,
                    counted,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Looks at the entries of a piece; returns the bytes of those that are dead.
    fn entries(
        &mut self,
        segment: &Segment,
        start: usize,
        bytes: &[u8],
        first_piece: bool,
    ) -> Result<u64, Violation> {
        let segment_id = segment.id;
        let (mut dead_bytes, mut more) = (0, false);
        for (index, item) in EntryIterator::new(bytes).enumerate() {
            let damaged = |offset| Violation::Damaged { segment_id, offset };
            let (at, entry) = item.map_err(|_| damaged(start))?;
            let offset = start + at;
            let kind = entry.entry_type();
            let opens = first_piece && index == 0;
            let header = kind == EntryType::SegmentHeader;
            if entry.verify().is_err() || header != opens {
                return Err(damaged(offset));
            }
            if header && (entry.table_id(), entry.version()) != (self.objects.log_id, segment_id) {
                return Err(damaged(offset));
            }
            more = entry.more();
            if let Some(place) = self.referred.remove(&offset) {
                self.referred(place, offset, &entry)?;
                continue;
            }
            match kind {
                EntryType::Object | EntryType::Padding | EntryType::SafeVersion => {
                    dead_bytes += entry.total_bytes() as u64;
                }
                // Adopted: it names no segment of this log.
                EntryType::Tombstone if entry.prior().all(|id| id == 0) => {
                    dead_bytes += entry.total_bytes() as u64;
                }
                EntryType::LogDigest => self.digest(segment_id, &entry)?,
                EntryType::Note => self.note(segment_id, &entry),
                _ => {}
            }
        }
        if more {
            return Err(Violation::Damaged {
                segment_id,
                offset: start + bytes.len(),
            });
        }
        Ok(dead_bytes)
    }

    /// Of the newest head, which repeats all that were.
    fn note(&mut self, segment_id: u64, entry: &EntryView<'_>) {
        if self.serving.log.head().map(|head| head.id) == Some(segment_id) {
            self.notes.set(entry.key(), entry.value());
        }
    }

    /// The newest head says what the log is believed to say.
    fn notes(&self) -> Result<(), Violation> {
        let head = self.serving.log.head().map(|head| head.id);
        match head.filter(|_| self.notes != *self.serving.log.notes()) {
            Some(segment_id) => Err(Violation::Notes { segment_id }),
            None => Ok(()),
        }
    }

    fn digest(&self, segment_id: u64, entry: &EntryView<'_>) -> Result<(), Violation> {
        let newest = self.serving.log.head().map(|head| head.id);
        // Without backups cleaned segments leave at once, and no recovery starts from a digest.
        if newest != Some(segment_id) || self.objects.reserve == Reserve::ALONE {
            return Ok(());
        }
        let ids = entry.value().as_chunks::<8>().0.iter();
        for id in ids.map(|id| u64::from_le_bytes(*id)) {
            if !self.segments.contains_key(&id) {
                return Err(Violation::DigestBeyondMemory { segment_id: id });
            }
        }
        Ok(())
    }

    /// Looks at all objects again: which are dead, and what names their segments. The table refers
    /// to sound entries only, by now.
    fn dead_versions(&mut self) {
        let segments: Vec<_> = self
            .log
            .iter()
            .filter_map(|id| self.segments.get(id))
            .collect();
        for segment in segments.into_iter().cloned().collect::<Vec<_>>() {
            for piece in segment.pieces() {
                let start = piece.extent.offset;
                // SAFETY: the piece keeps its extent, and its bytes are published.
                let bytes = unsafe { self.objects.arena.published(start, piece.bytes) };
                for (at, entry) in EntryIterator::new(bytes).map_while(Result::ok) {
                    if entry.entry_type() == EntryType::Object {
                        self.object(segment.id, start + at, &entry);
                    }
                }
            }
        }
    }

    /// Notes a dead version unless the newest entry of its key names its segment.
    fn object(&mut self, segment_id: u64, offset: usize, entry: &EntryView<'_>) {
        let (table_id, key) = (entry.table_id(), entry.key());
        let hash = key_hash(table_id, key);
        let tablet = self.serving.tablets.find(table_id, slot(hash));
        let counts = tablet.is_some_and(|tablet| {
            // What is older than its tablet, or of no tablet, no recovery takes.
            tablet.owned() && tablet.ctime_segment_id() <= segment_id
        });
        let newest = self.objects.find(hash, table_id, key);
        if !counts
            || newest
                .as_ref()
                .is_some_and(|newest| newest.offset == offset)
        {
            return;
        }
        self.result.dead_versions += 1;
        let named = newest.is_some_and(|newest| {
            newest.entry.version() >= entry.version()
                && newest.entry.prior().any(|id| id == segment_id)
        });
        if !named {
            let dead = Dead {
                segment_id,
                version: entry.version(),
                offset,
            };
            let known = self.unnamed.entry((table_id, key.to_vec()));
            known.or_default().push(dead);
        }
    }

    /// Looks for tombstones of the log that name what is left.
    fn tombstones(&mut self) -> Result<(), Violation> {
        let in_log = self.log.iter().filter_map(|id| self.segments.get(id));
        for piece in in_log.flat_map(|segment| segment.pieces()) {
            if self.unnamed.is_empty() {
                return Ok(());
            }
            // SAFETY: the piece keeps its extent, and its bytes are published.
            let bytes = unsafe {
                self.objects
                    .arena
                    .published(piece.extent.offset, piece.bytes)
            };
            for (_, entry) in EntryIterator::new(bytes).map_while(Result::ok) {
                if entry.entry_type() != EntryType::Tombstone {
                    continue;
                }
                let key = (entry.table_id(), entry.key().to_vec());
                let Some(dead) = self.unnamed.get_mut(&key) else {
                    continue;
                };
                dead.retain(|one| {
                    one.version > entry.version() || entry.prior().all(|id| id != one.segment_id)
                });
                if dead.is_empty() {
                    self.unnamed.remove(&key);
                }
            }
        }
        match self.unnamed.values().flatten().next() {
            Some(dead) => Err(Violation::Unguarded {
                segment_id: dead.segment_id,
                version: dead.version,
                offset: dead.offset,
            }),
            None => Ok(()),
        }
    }

    fn tablets(&self) -> Result<(), Violation> {
        for tablet in self.serving.tablets.iter() {
            let first = (tablet.range.table_id, tablet.range.start_slot);
            let found = self.counts.get(&first).copied().unwrap_or_default();
            let counted = (tablet.records(), tablet.bytes());
            if counted != found {
                return Err(Violation::TabletCount {
                    table_id: tablet.range.table_id,
                    counted,
                    found,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::EntryHeader;
    use crate::master::MasterOptions;
    use crate::master::segment::Append;

    const KEY: &[u8] = b"key";

    /// A master with two objects, one of them overwritten and one removed.
    fn used() -> Arc<Master> {
        let options = MasterOptions {
            server_id: 5,
            memory_bytes: 64 << 20,
            replay_threads: 1,
            replicated: false,
            disk_expansion_factor: 1.0,
        };
        let master = Master::new(options).expect("a master");
        let range = SlotRange {
            table_id: 1,
            start_slot: 0,
            end_slot: u32::MAX,
        };
        master.take_tablet(range).expect("taken");
        for (rpc_id, kind, key) in [(1, 2, KEY), (2, 2, KEY), (3, 2, b"no2"), (4, 3, b"no2")] {
            let mut body = vec![0; 24];
            body[16] = 1;
            body.extend([kind, 0, 3, 0, 0, 0, 0, 0]);
            for field in [1u64, rpc_id, 0] {
                body.extend(field.to_le_bytes());
            }
            body.extend(key);
            body.resize(body.len().next_multiple_of(8), 0);
            master.execute(&body, &mut [0; 64], 0).expect("sound");
        }
        master
            .set_durable(master.appended_position().expect("open"))
            .expect("appended");
        master
    }

    /// Place of the newest entry of `KEY`.
    fn place(master: &Master) -> (u64, usize) {
        let hash = key_hash(1, KEY);
        let found = master.objects.find(hash, 1, KEY).expect("there");
        (hash, found.offset)
    }

    #[test]
    fn what_is_sound_passes() {
        let verified = used().verify().expect("sound");
        let Verified {
            entries,
            objects,
            segments,
            dead_versions,
        } = verified;
        assert_eq!((entries, objects, segments, dead_versions), (1, 1, 1, 2));
    }

    #[test]
    fn what_the_table_refers_to_is_checked() {
        let master = used();
        let (hash, offset) = place(&master);
        master.objects.table.insert(hash, offset + 8).expect("room");
        assert!(matches!(master.verify(), Err(Violation::Dangling { .. })));
        let master = used();
        let table = &master.objects.table;
        table.insert(key_hash(1, b"other"), offset).expect("room");
        assert_eq!(master.verify(), Err(Violation::KeyTwice { offset }));
        assert!(table.erase(hash, offset));
        assert_eq!(master.verify(), Err(Violation::WrongPlace { offset }));
        let master = used();
        master.objects.table.count_inserted(1);
        let count = Violation::TableCount {
            counted: 2,
            found: 1,
        };
        assert_eq!(master.verify(), Err(count));
        let master = used();
        assert!(master.objects.table.erase(hash, offset));
        assert!(matches!(
            master.verify(),
            Err(Violation::Unguarded { version: 1 | 2, .. })
        ));
    }

    #[test]
    fn counts_and_bytes_are_checked() {
        let master = used();
        let (_, offset) = place(&master);
        let tablet = Arc::clone(master.serving.lock().tablets.iter().next().expect("one"));
        tablet.count(0, 8);
        assert!(matches!(
            master.verify(),
            Err(Violation::TabletCount { table_id: 1, .. })
        ));
        tablet.count(0, -8);
        master.objects.arena.count_dead(offset, 1 << 20);
        assert!(matches!(
            master.verify(),
            Err(Violation::DeadBytes { segment_id: 1, .. })
        ));
        let master = used();
        // SAFETY: nobody else uses this master.
        let bytes = unsafe { master.objects.arena.unpublished(offset, 40) };
        bytes[36] ^= 1;
        assert!(matches!(
            master.verify(),
            Err(Violation::Damaged { .. } | Violation::WrongPlace { .. })
        ));
    }

    #[test]
    fn a_version_that_could_come_back_is_found() {
        let master = used();
        let (hash, offset) = place(&master);
        let header = EntryHeader {
            entry_type: EntryType::Object,
            flags: 0,
            timestamp: 0,
            table_id: 1,
            version: 9,
        };
        let newer = Append {
            header,
            prior: &[],
            key: KEY,
            value: b"",
        };
        let head = Arc::clone(master.serving.lock().log.head().expect("open"));
        let fresh = head.append(&[newer]);
        assert!(master.objects.table.relocate(hash, offset, fresh));
        assert!(matches!(
            master.verify(),
            Err(Violation::Unguarded { segment_id: 1, .. })
        ));
    }
}

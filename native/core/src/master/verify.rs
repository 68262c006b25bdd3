//! Checks all structures of a master against each other, for tests and for a doubtful process.
//!
//! Rule: changes nothing and trusts nothing: every entry is parsed and its checksum compared. The
//! serving lock is held and the cleaner waits meanwhile; no replay may be running, since the table
//! refers to what a replay publishes later.
//!
//! What holds: each slot refers to one published entry of its hash in a segment that is in memory,
//! and no key has two; a tablet counts its objects, no more and no less; no segment counts more
//! dead bytes than it has; free blocks belong to nobody; chains end; and the invariant of
//! `docs/formats.md` §2, that every dead version of a key is named by the key's newest entry or by
//! a tombstone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use thiserror::Error;

use super::Master;
use super::execute::Serving;
use super::objects::Objects;
use super::segment::Segment;
use crate::entry::{EntryIterator, EntryType, EntryView, SEGLET_BYTES};
use crate::key_hash::{key_hash, slot};
use crate::status::Status;

/// The first thing that does not hold. Offsets are those of the arena.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Violation {
    /// Nothing can be said: closed, or the cleaner has failed.
    #[error("the master does not answer: {0}")]
    Unavailable(Status),
    /// A chain of buckets does not end.
    #[error("the chain of bucket {bucket} does not end")]
    EndlessChain {
        /// Its first.
        bucket: usize,
    },
    /// The table counts more or fewer entries than it has.
    #[error("the table counts {counted} entries and has {found}")]
    TableCount {
        /// What it says.
        counted: u64,
        /// What there are.
        found: u64,
    },
    /// A slot refers to what is no published entry of a segment in memory.
    #[error("a slot refers to {offset}, where no entry begins")]
    Dangling {
        /// Where.
        offset: usize,
    },
    /// A slot refers to an entry of another hash.
    #[error("a slot refers to {offset}, whose key belongs elsewhere")]
    WrongPlace {
        /// Where.
        offset: usize,
    },
    /// A key has two slots.
    #[error("the key of the entry at {offset} is in the table twice")]
    KeyTwice {
        /// The second one.
        offset: usize,
    },
    /// An object is served that no tablet counts.
    #[error("the object at {offset} belongs to no tablet")]
    WithoutTablet {
        /// Where.
        offset: usize,
    },
    /// Bytes of a segment are not what was written.
    #[error("segment {segment_id} is damaged at {offset}")]
    Damaged {
        /// Which.
        segment_id: u64,
        /// Where.
        offset: usize,
    },
    /// The memory of a segment is marked as another's.
    #[error("seglet {offset} belongs to segment {owner}, not to {segment_id}")]
    WrongOwner {
        /// Who should.
        segment_id: u64,
        /// Who does; 0: nobody.
        owner: u64,
        /// Where.
        offset: usize,
    },
    /// A segment counts more dead bytes than it has.
    #[error("segment {segment_id} counts {counted} dead bytes of {found}")]
    DeadBytes {
        /// Which.
        segment_id: u64,
        /// What it says.
        counted: u64,
        /// What there are.
        found: u64,
    },
    /// A tablet counts other objects than there are.
    #[error(
        "a tablet of table {table_id} counts {counted:?} records and bytes, there are {found:?}"
    )]
    TabletCount {
        /// Its table.
        table_id: u64,
        /// What it says: records, bytes.
        counted: (u64, u64),
        /// What there are.
        found: (u64, u64),
    },
    /// A dead version could come back.
    #[error("nothing names segment {segment_id} for the dead version {version} at {offset}")]
    Unguarded {
        /// Where it lies.
        segment_id: u64,
        /// Its version.
        version: u64,
        /// Its place.
        offset: usize,
    },
    /// The newest head names a segment that is gone.
    #[error("the newest digest names segment {segment_id}, which is gone")]
    DigestBeyondMemory {
        /// Which.
        segment_id: u64,
    },
    /// A block is free and used, or counted wrongly.
    #[error("block {block} is free and used, or counted wrongly")]
    Block {
        /// Its number.
        block: usize,
    },
}

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
    /// By offset: what the table refers to and no segment has shown yet.
    referred: HashSet<usize>,
    /// By first key of their tablet: records and bytes.
    counts: HashMap<(u64, u32), (u64, u64)>,
    /// Dead versions that the newest entry of their key does not name.
    unnamed: HashMap<Key, Vec<Dead>>,
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
            referred: HashSet::new(),
            counts: HashMap::new(),
            unnamed: HashMap::new(),
            result: Verified::default(),
        };
        verification.table()?;
        verification.all_segments()?;
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
        let mut places = Vec::new();
        table
            .each(|place, offset| places.push((place, offset)))
            .map_err(|bucket| Violation::EndlessChain { bucket })?;
        let counted = table.report().entries;
        let found = places.len() as u64;
        if counted != found {
            return Err(Violation::TableCount { counted, found });
        }
        let mut keys: HashSet<Key> = HashSet::with_capacity(places.len());
        for (place, offset) in places {
            let owner = self.objects.arena.segment_id(offset);
            if !self.segments.contains_key(&owner) || !self.referred.insert(offset) {
                return Err(Violation::Dangling { offset });
            }
            // SAFETY: the offset comes from a slot; the serving lock's pin keeps its segment.
            let entry = unsafe { self.objects.arena.entry(offset) };
            let hash = key_hash(entry.table_id(), entry.key());
            if table.place(hash) != place {
                return Err(Violation::WrongPlace { offset });
            }
            if !keys.insert((entry.table_id(), entry.key().to_vec())) {
                return Err(Violation::KeyTwice { offset });
            }
            self.count(offset, &entry, slot(hash))?;
        }
        Ok(())
    }

    fn count(&mut self, offset: usize, entry: &EntryView<'_>, slot: u32) -> Result<(), Violation> {
        self.result.entries += 1;
        if entry.entry_type() != EntryType::Object {
            return Ok(());
        }
        self.result.objects += 1;
        let tablet = self.serving.tablets.find(entry.table_id(), slot);
        let range = tablet.ok_or(Violation::WithoutTablet { offset })?.range;
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
        if let Some(offset) = self.referred.iter().next() {
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
            let counted = self.objects.arena.dead_bytes_of(start, capacity);
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
            let referred = self.referred.remove(&offset);
            match kind {
                EntryType::Object if !referred => {
                    dead_bytes += entry.total_bytes() as u64;
                    self.dead_version(segment_id, offset, &entry);
                }
                EntryType::Padding => dead_bytes += entry.total_bytes() as u64,
                EntryType::LogDigest => self.digest(segment_id, &entry)?,
                _ if referred && kind != EntryType::Object && kind != EntryType::Tombstone => {
                    return Err(Violation::Dangling { offset });
                }
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

    fn digest(&self, segment_id: u64, entry: &EntryView<'_>) -> Result<(), Violation> {
        let newest = self.serving.log.head().map(|head| head.id);
        if newest != Some(segment_id) {
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

    /// Notes a dead version unless the newest entry of its key names its segment.
    fn dead_version(&mut self, segment_id: u64, offset: usize, entry: &EntryView<'_>) {
        let (table_id, key) = (entry.table_id(), entry.key());
        let hash = key_hash(table_id, key);
        let tablet = self.serving.tablets.find(table_id, slot(hash));
        let counts = tablet.is_some_and(|tablet| {
            // What is older than its tablet, or of no tablet, no recovery takes.
            tablet.ready() && tablet.ctime_segment_id() <= segment_id
        });
        if !counts || !self.log.contains(&segment_id) {
            return;
        }
        self.result.dead_versions += 1;
        let newest = self.objects.find(hash, table_id, key);
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

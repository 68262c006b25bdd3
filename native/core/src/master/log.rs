//! The log: one open head at a time, rolled over when an atomic append does not fit.
//!
//! Rules: a head begins with SEGMENT_HEADER, LOG_DIGEST, TABLE_STATS, SAFE_VERSION and all notes,
//! so that a head alone tells them; its digest names every segment of the log, itself included.
//! Side segments enter the log only through the digest of the head that is opened next. The last
//! blocks of memory are a reserve: one for a head that must be opened (with backups), two for
//! survivors of the cleaner, one for removes. Writes take a block only beyond the reserve, and only
//! while so little is alive that the cleaner can make room for the tombstones of all of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::notes::{Notes, note_entry};
use super::objects::Objects;
use super::segment::{Append, Segment};
use super::tablets::Tablets;
use crate::entry::{EntryHeader, EntryType};
use crate::status::Status;

/// Blocks that side segments leave alone.
pub const RESERVE_BLOCKS: usize = 4;

/// The end of the last head that writes may have is for small messages: while the cleaner makes
/// room, who writes much waits for it, and who writes little does not wait for him.
const SMALL_WRITES_BYTES: usize = 128 << 10;

/// Who leaves how many blocks alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserve {
    /// Writes.
    pub writes: usize,
    /// Removes.
    pub removes: usize,
    /// The cleaner.
    pub cleaner: usize,
}

impl Reserve {
    /// For a log on backups.
    pub const REPLICATED: Self = Self {
        writes: RESERVE_BLOCKS,
        removes: RESERVE_BLOCKS - 1,
        cleaner: 1,
    };
    /// Without backups no pass needs a head to come into force: the blocks of the cleaner are the
    /// last ones.
    pub const ALONE: Self = Self {
        writes: RESERVE_BLOCKS - 1,
        removes: RESERVE_BLOCKS - 2,
        cleaner: 0,
    };

    fn of(&self, purpose: Purpose) -> usize {
        match purpose {
            Purpose::Write | Purpose::BulkWrite => self.writes,
            Purpose::Remove => self.removes,
            Purpose::Head => 0,
        }
    }
}

/// Why memory is asked for; decides how much of the reserve may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// A write: leaves the reserve alone.
    #[default]
    Write,
    /// One of a large message: also leaves the end of a head alone when memory is short.
    BulkWrite,
    /// A remove: may take one block of the reserve.
    Remove,
    /// A head that must be opened: may take all.
    Head,
}

/// The log of a master.
#[derive(Default)]
pub struct Log {
    head: Option<Arc<Segment>>,
    /// Ids of all heads, ascending.
    heads: Vec<u64>,
    /// Ids of all segments of the log, side segments included.
    segments: BTreeSet<u64>,
    notes: Notes,
}

impl Log {
    /// Writes all entries as one atomic append behind the log's end, rolling over if need be;
    /// returns the arena offset of the first. They belong to the log once `publish` is called.
    ///
    /// # Errors
    /// `OutOfMemory`; then nothing was written.
    #[inline]
    pub fn prepare(
        &mut self,
        objects: &Objects,
        tablets: &Tablets,
        entries: &[Append<'_>],
        purpose: Purpose,
    ) -> Result<usize, Status> {
        if let Some(head) = self.head_for(objects, entries, purpose) {
            return Ok(head.prepare(entries));
        }
        if matches!(purpose, Purpose::Write | Purpose::BulkWrite)
            && objects.overfull(tablets.iter().map(|one| one.bytes()).sum())
        {
            objects.set_full(true);
            return Err(Status::OutOfMemory);
        }
        let timestamp = entries.first().map_or(0, |entry| entry.header.timestamp);
        Ok(self
            .roll(objects, tablets, purpose, timestamp)?
            .prepare(entries))
    }

    /// The head, if `prepare` would not roll over.
    #[inline]
    fn head_for(
        &self,
        objects: &Objects,
        entries: &[Append<'_>],
        purpose: Purpose,
    ) -> Option<&Arc<Segment>> {
        let total = entries.iter().map(Append::bytes).sum();
        let head = self.head.as_ref().filter(|head| head.fits(total))?;
        // Of two blocks that are left the cleaner may take one.
        let kept = purpose == Purpose::BulkWrite
            && head.free_bytes() < SMALL_WRITES_BYTES + total
            && !objects.can_open(objects.reserve.writes + 1);
        (!kept).then_some(head)
    }

    /// Whether `prepare` would not roll over.
    #[inline]
    pub fn has_room(&self, objects: &Objects, entries: &[Append<'_>], purpose: Purpose) -> bool {
        self.head_for(objects, entries, purpose).is_some()
    }

    /// Publishes what the last `prepare` wrote.
    pub fn publish(&self, objects: &Objects, entries: &[Append<'_>]) {
        let head = self.head.as_ref().expect("a prepared append has its head");
        head.publish(entries.iter().map(Append::bytes).sum());
        for entry in entries {
            if entry.header.entry_type == EntryType::Tombstone {
                head.count_tombstone(entry.bytes(), objects.released());
            }
        }
    }

    /// Opens the next head, then closes the present one.
    ///
    /// # Errors
    /// `OutOfMemory`; then nothing has changed.
    pub fn roll(
        &mut self,
        objects: &Objects,
        tablets: &Tablets,
        purpose: Purpose,
        timestamp: u32,
    ) -> Result<Arc<Segment>, Status> {
        let position = Some(self.appended_position());
        let head = objects.open_segment(position, objects.reserve.of(purpose), timestamp)?;
        assert!(
            self.segments.last() < Some(&head.id),
            "a head is younger than the log"
        );
        self.segments.insert(head.id);
        self.heads.push(head.id);
        self.write_opening(&head, objects, tablets, timestamp);
        if let Some(previous) = self.head.replace(Arc::clone(&head)) {
            previous.close();
            previous.set_cleanable(true);
        }
        Ok(head)
    }

    fn write_opening(&self, head: &Segment, objects: &Objects, tablets: &Tablets, timestamp: u32) {
        let digest: Vec<u8> = self
            .segments
            .iter()
            .flat_map(|id| id.to_le_bytes())
            .collect();
        let mut stats = Vec::new();
        for tablet in tablets.iter() {
            stats.extend_from_slice(&tablet.range.table_id.to_le_bytes());
            stats.extend_from_slice(&tablet.range.start_slot.to_le_bytes());
            stats.extend_from_slice(&tablet.range.end_slot.to_le_bytes());
            stats.extend_from_slice(&tablet.bytes().to_le_bytes());
            stats.extend_from_slice(&tablet.records().to_le_bytes());
        }
        for (entry_type, version, value) in [
            (EntryType::LogDigest, 0, &digest[..]),
            (EntryType::TableStats, 0, &stats[..]),
            (EntryType::SafeVersion, objects.safe_version(), &[]),
        ] {
            let header = EntryHeader {
                entry_type,
                flags: 0,
                timestamp,
                table_id: 0,
                version,
            };
            head.append(&[Append {
                header,
                prior: &[],
                key: &[],
                value,
            }]);
        }
        for (key, value) in self.notes.iter() {
            head.append(&[note_entry(key, value, timestamp)]);
        }
        head.end_opening();
    }

    /// Replaces a note, in the head if there is one.
    ///
    /// # Errors
    /// `InvalidArgument`, `OutOfMemory`; then nothing has changed.
    pub fn note(
        &mut self,
        objects: &Objects,
        tablets: &Tablets,
        key: &[u8],
        value: &[u8],
        timestamp: u32,
    ) -> Result<(), Status> {
        if !self.notes.changes(key, value)? {
            return Ok(());
        }
        if self.head.is_some() {
            let entries = [note_entry(key, value, timestamp)];
            self.prepare(objects, tablets, &entries, Purpose::Head)?;
            self.publish(objects, &entries);
        }
        self.notes.set(key, value);
        Ok(())
    }

    /// Side segments become part of the log with the next head.
    pub fn add(&mut self, ids: &[u64]) {
        self.segments.extend(ids);
    }

    /// Segments are not part of the log any more from the next head on.
    pub fn remove(&mut self, ids: &[u64]) {
        for id in ids {
            self.segments.remove(id);
        }
        self.heads.retain(|id| !ids.contains(id));
    }

    /// Position after the newest append.
    #[inline]
    pub fn appended_position(&self) -> u64 {
        self.head
            .as_ref()
            .map_or(0, |head| head.position + head.appended() as u64)
    }

    /// The present head.
    pub fn head(&self) -> Option<&Arc<Segment>> {
        self.head.as_ref()
    }

    /// The present head, if nothing was appended behind its opening.
    pub fn unused_head(&self) -> Option<&Arc<Segment>> {
        let head = self.head.as_ref();
        head.filter(|head| head.appended() == head.opening_bytes())
    }

    /// Heads opened after segment `id`, ascending.
    pub fn heads_after(&self, id: u64) -> &[u64] {
        &self.heads[self.heads.partition_point(|head| *head <= id)..]
    }

    /// The notes in force.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// All segments, ascending.
    pub fn segments(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().copied()
    }
}

//! The tablets of a master: which keys it owns, whether it serves them, what they weigh.
//!
//! Rule: ranges never overlap; sorted by (table, first slot). Counters are relaxed atomics, since
//! replay adds to them from its threads; each entry is counted where its slot is published.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use crate::status::Status;

/// Most tablets of one master; their statistics must fit into the opening of a head.
pub const TABLETS_MAX: usize = 16_384;

/// A range of slots of a table, both ends inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotRange {
    /// From 1.
    pub table_id: u64,
    /// First slot.
    pub start_slot: u32,
    /// Last slot.
    pub end_slot: u32,
}

impl SlotRange {
    /// Whether the slot of a table lies within.
    #[inline]
    pub fn contains(&self, table_id: u64, slot: u32) -> bool {
        self.table_id == table_id && self.start_slot <= slot && slot <= self.end_slot
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.table_id == other.table_id
            && self.start_slot <= other.end_slot
            && other.start_slot <= self.end_slot
    }
}

/// A tablet that this master owns or is about to own.
#[derive(Debug)]
pub struct Tablet {
    /// Its keys.
    pub range: SlotRange,
    ready: AtomicBool,
    /// Entries in older segments are those of an earlier ownership and do not count.
    ctime_segment_id: AtomicU64,
    bytes: AtomicI64,
    records: AtomicI64,
}

impl Tablet {
    /// A tablet without objects that is owned from a segment on.
    pub fn new(range: SlotRange, ready: bool, ctime_segment_id: u64) -> Arc<Self> {
        Arc::new(Self {
            range,
            ready: AtomicBool::new(ready),
            ctime_segment_id: AtomicU64::new(ctime_segment_id),
            bytes: AtomicI64::new(0),
            records: AtomicI64::new(0),
        })
    }

    /// First segment that can hold entries that count.
    pub fn ctime_segment_id(&self) -> u64 {
        self.ctime_segment_id.load(Ordering::Acquire)
    }

    /// It is owned from this segment on.
    pub fn set_ctime_segment_id(&self, id: u64) {
        self.ctime_segment_id.store(id, Ordering::Release);
    }

    /// Whether requests are served.
    #[inline]
    pub fn ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Requests are served from now on.
    pub fn make_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// Adds to the live objects and their entries' bytes.
    #[inline]
    pub fn count(&self, records: i64, bytes: i64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Live objects.
    pub fn records(&self) -> u64 {
        u64::try_from(self.records.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Bytes of the entries of live objects.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.bytes.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// All tablets of a master.
#[derive(Default)]
pub struct Tablets {
    sorted: Vec<Arc<Tablet>>,
}

impl Tablets {
    /// The tablet of a key, ready or not.
    #[inline]
    pub fn find(&self, table_id: u64, slot: u32) -> Option<&Arc<Tablet>> {
        let place = self.place(table_id, slot, 0)?;
        Some(&self.sorted[place])
    }

    /// Place of the tablet of a key, which stays until a tablet is inserted or removed. `guess` is
    /// looked at first: the operations of a message are often about one tablet.
    #[inline]
    pub fn place(&self, table_id: u64, slot: u32, guess: usize) -> Option<usize> {
        let guessed = self.sorted.get(guess);
        if guessed.is_some_and(|tablet| tablet.range.contains(table_id, slot)) {
            return Some(guess);
        }
        let key = (table_id, slot);
        let behind = self
            .sorted
            .partition_point(|tablet| (tablet.range.table_id, tablet.range.start_slot) <= key);
        let place = behind.checked_sub(1)?;
        self.sorted[place]
            .range
            .contains(table_id, slot)
            .then_some(place)
    }

    /// The tablet at a place.
    #[inline]
    pub fn at(&self, place: usize) -> &Tablet {
        &self.sorted[place]
    }

    /// The tablet with exactly this range.
    ///
    /// # Errors
    /// `InvalidArgument` if another tablet overlaps it or the range is none.
    pub fn exact(&self, range: &SlotRange) -> Result<Option<&Arc<Tablet>>, Status> {
        if range.table_id == 0 || range.start_slot > range.end_slot {
            return Err(Status::InvalidArgument);
        }
        match self
            .sorted
            .iter()
            .find(|tablet| tablet.range.overlaps(range))
        {
            Some(tablet) if tablet.range == *range => Ok(Some(tablet)),
            Some(_) => Err(Status::InvalidArgument),
            None => Ok(None),
        }
    }

    /// Adds a tablet that overlaps none.
    ///
    /// # Errors
    /// `InvalidArgument` on an overlap, `OutOfMemory` if there are too many.
    pub fn insert(&mut self, tablet: Arc<Tablet>) -> Result<(), Status> {
        if self.exact(&tablet.range)?.is_some() {
            return Err(Status::InvalidArgument);
        }
        if self.sorted.len() >= TABLETS_MAX {
            return Err(Status::OutOfMemory);
        }
        let at = self
            .sorted
            .partition_point(|other| other.range < tablet.range);
        self.sorted.insert(at, tablet);
        Ok(())
    }

    /// Takes a tablet out.
    pub fn remove(&mut self, range: &SlotRange) {
        self.sorted.retain(|tablet| tablet.range != *range);
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Tablet>> {
        self.sorted.iter()
    }
}

/// What the operations of a message have changed in the counters of one tablet at a time. Others
/// count too, so that each addition waits for the stores before it: it pays to add once.
#[derive(Default)]
pub struct Tally {
    place: usize,
    records: i64,
    bytes: i64,
}

impl Tally {
    /// Where the tablet of an operation is; the one before is the guess.
    #[inline]
    pub fn place(&self, tablets: &Tablets, table_id: u64, slot: u32) -> Option<usize> {
        tablets.place(table_id, slot, self.place)
    }

    /// Adds to the live objects and their entries' bytes of the tablet at `place`.
    #[inline]
    pub fn count(&mut self, tablets: &Tablets, place: usize, records: i64, bytes: i64) {
        if place != self.place {
            self.flush(tablets);
            self.place = place;
        }
        self.records += records;
        self.bytes += bytes;
    }

    /// Tells the tablet. Before anybody reads the counters of a whole message, and before tablets
    /// come or go.
    #[inline]
    pub fn flush(&mut self, tablets: &Tablets) {
        let (records, bytes) = (self.records, self.bytes);
        if (records, bytes) != (0, 0) {
            tablets.sorted[self.place].count(records, bytes);
            (self.records, self.bytes) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(table_id: u64, start_slot: u32, end_slot: u32) -> SlotRange {
        SlotRange {
            table_id,
            start_slot,
            end_slot,
        }
    }

    #[test]
    fn finds_the_tablet_of_each_slot_and_refuses_overlaps() {
        let mut tablets = Tablets::default();
        for (table, start, end) in [(2, 0, 9), (1, 10, 19), (1, 30, u32::MAX)] {
            tablets
                .insert(Tablet::new(range(table, start, end), true, 0))
                .expect("inserted");
        }
        for (table, slot, found) in [
            (1, 9, false),
            (1, 10, true),
            (1, 19, true),
            (1, 20, false),
            (1, u32::MAX, true),
            (2, 0, true),
            (2, 10, false),
            (3, 0, false),
        ] {
            assert_eq!(tablets.find(table, slot).is_some(), found, "{table} {slot}");
        }
        let overlap = tablets.insert(Tablet::new(range(1, 19, 25), true, 0));
        assert_eq!(overlap, Err(Status::InvalidArgument));
        assert!(tablets.exact(&range(1, 10, 19)).expect("fits").is_some());
        tablets.remove(&range(1, 10, 19));
        assert!(tablets.find(1, 15).is_none());
    }
}

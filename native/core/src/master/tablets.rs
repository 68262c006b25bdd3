//! The tablets of a master: which keys it owns, whether it serves them, what they weigh.
//!
//! Rule: ranges never overlap; sorted by (table, first slot). Counters are relaxed atomics, since
//! replay adds to them from its threads; each entry is counted where its slot is published.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::entry::EntryView;
use crate::key_hash::{key_hash, slot};
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

    /// Whether the key of an entry lies within.
    pub fn holds(&self, entry: &EntryView<'_>) -> bool {
        let table_id = entry.table_id();
        table_id == self.table_id && self.contains(table_id, slot(key_hash(table_id, entry.key())))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.table_id == other.table_id
            && self.start_slot <= other.end_slot
            && other.start_slot <= self.end_slot
    }
}

/// What a master does about requests for a tablet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Service {
    /// Nothing: it is being recovered or is on its way here.
    Coming = 0,
    /// Reads and writes.
    Full = 1,
    /// Reads; writes are told to come again in a moment.
    ReadsOnly = 2,
    /// Nothing: it is about to belong to somebody else.
    Leaving = 3,
}

/// A tablet that this master owns or is about to own.
#[derive(Debug)]
pub struct Tablet {
    /// Its keys.
    pub range: SlotRange,
    service: AtomicU8,
    /// A migration gives it away: it stays the tablet that it is.
    moving: AtomicBool,
    /// Entries in older segments are those of an earlier ownership and do not count.
    ctime_segment_id: AtomicU64,
    /// Segments below may hold entries of an earlier ownership; 0: there was none.
    stale_below: AtomicU64,
    bytes: AtomicI64,
    records: AtomicI64,
    /// Whether there is a `lower`: looked at with each change.
    splitting: AtomicBool,
    lower: Mutex<Option<Arc<LowerHalf>>>,
}

/// What is known of the lower half of a tablet that is being cut.
#[derive(Debug)]
pub struct LowerHalf {
    /// The first slot that is not of it.
    end: u32,
    /// Buckets below are counted.
    counted: AtomicUsize,
    bytes: AtomicI64,
    records: AtomicI64,
}

impl LowerHalf {
    /// Everything below `end`; nothing is counted yet.
    pub fn new(end: u32) -> Self {
        Self {
            end,
            counted: AtomicUsize::new(0),
            bytes: AtomicI64::new(0),
            records: AtomicI64::new(0),
        }
    }

    /// Whether a slot of the tablet is of it.
    pub fn holds(&self, slot: u32) -> bool {
        slot < self.end
    }

    /// The buckets below `end` are counted now; the last of them had these. Under the serving lock.
    pub fn counted(&self, end: usize, records: i64, bytes: i64) {
        self.add(records, bytes);
        self.counted.store(end, Ordering::Relaxed);
    }

    fn add(&self, records: i64, bytes: i64) {
        self.records.fetch_add(records, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Tablet {
    /// A tablet without objects that is owned from a segment on.
    pub fn new(range: SlotRange, service: Service, ctime_segment_id: u64) -> Arc<Self> {
        Arc::new(Self {
            range,
            service: AtomicU8::new(service as u8),
            moving: AtomicBool::new(false),
            ctime_segment_id: AtomicU64::new(ctime_segment_id),
            stale_below: AtomicU64::new(0),
            bytes: AtomicI64::new(0),
            records: AtomicI64::new(0),
            splitting: AtomicBool::new(false),
            lower: Mutex::new(None),
        })
    }

    /// Whether it may be cut at present.
    pub fn divisible(&self) -> bool {
        self.writable() && !self.moving.load(Ordering::Acquire)
    }

    /// Whether it is being cut.
    pub fn splitting(&self) -> bool {
        self.splitting.load(Ordering::Relaxed)
    }

    /// It is being cut from now on, or not any more. Under the serving lock.
    pub fn set_lower(&self, lower: Option<Arc<LowerHalf>>) {
        self.splitting.store(lower.is_some(), Ordering::Relaxed);
        *self.lower.lock() = lower;
    }

    /// What changes in a bucket that was counted for the lower half: besides `count`.
    #[inline]
    pub fn count_half(&self, slot: u32, bucket: usize, records: i64, bytes: i64) {
        if self.splitting() {
            let lower = self.lower.lock();
            let lower = lower.as_ref().filter(|lower| lower.holds(slot));
            if let Some(lower) = lower
                && bucket < lower.counted.load(Ordering::Relaxed)
            {
                lower.add(records, bytes);
            }
        }
    }

    /// First segment that can hold entries that count.
    pub fn ctime_segment_id(&self) -> u64 {
        self.ctime_segment_id.load(Ordering::Acquire)
    }

    /// It is owned from this segment on.
    pub fn set_ctime_segment_id(&self, id: u64) {
        self.ctime_segment_id.store(id, Ordering::Release);
    }

    /// Whether reads are served.
    #[inline]
    pub fn ready(&self) -> bool {
        let service = self.service.load(Ordering::Acquire);
        service == Service::Full as u8 || service == Service::ReadsOnly as u8
    }

    /// Whether writes are served.
    #[inline]
    pub fn writable(&self) -> bool {
        self.service.load(Ordering::Acquire) == Service::Full as u8
    }

    /// Whether it is this master's as far as this master knows.
    pub fn owned(&self) -> bool {
        self.service.load(Ordering::Acquire) != Service::Coming as u8
    }

    /// Requests are served like this from now on.
    pub fn set_service(&self, service: Service) {
        self.service.store(service as u8, Ordering::Release);
    }

    /// Whether a migration gives it away.
    pub fn set_moving(&self, moving: bool) {
        self.moving.store(moving, Ordering::Release);
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
    /// Tables of which the log may hold entries that are nobody's any more, with the id below
    /// which their segments lie.
    given_up: BTreeMap<u64, u64>,
    /// Nobody's, but the hash table may still refer to entries of theirs.
    erasing: Vec<SlotRange>,
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

    /// The tablets that make up a range, in order.
    ///
    /// # Errors
    /// `InvalidArgument` if one reaches beyond it, or they leave a gap.
    pub fn parts(&self, range: &SlotRange) -> Result<Vec<Arc<Tablet>>, Status> {
        let parts = self.within(range)?;
        let mut next = Some(range.start_slot);
        for part in &parts {
            if next != Some(part.range.start_slot) {
                return Err(Status::InvalidArgument);
            }
            next = part.range.end_slot.checked_add(1);
        }
        let ends = parts.last().map(|last| last.range.end_slot);
        if ends != Some(range.end_slot) {
            return Err(Status::InvalidArgument);
        }
        Ok(parts)
    }

    /// The tablets inside a range, in order.
    ///
    /// # Errors
    /// `InvalidArgument` if one reaches beyond it, or it is none.
    pub fn within(&self, range: &SlotRange) -> Result<Vec<Arc<Tablet>>, Status> {
        if range.table_id == 0 || range.start_slot > range.end_slot {
            return Err(Status::InvalidArgument);
        }
        let overlapping = self.sorted.iter().filter(|one| one.range.overlaps(range));
        let inside = |one: &Arc<Tablet>| {
            let Tablet { range: part, .. } = **one;
            range.start_slot <= part.start_slot && part.end_slot <= range.end_slot
        };
        overlapping
            .map(|one| inside(one).then(|| Arc::clone(one)))
            .collect::<Option<_>>()
            .ok_or(Status::InvalidArgument)
    }

    /// The first segment whose entries would count if the tablets of a range were one: the oldest
    /// of theirs. `first_segment` is the lowest id in memory.
    ///
    /// # Errors
    /// `InvalidArgument` unless they make up the range, `Retry` if one is not served or is given
    /// away, or as long as older segments may hold entries that one had when it was this master's
    /// before.
    pub fn merged_ctime(&self, range: &SlotRange, first_segment: u64) -> Result<u64, Status> {
        let parts = self.parts(range)?;
        let oldest = parts.iter().map(|one| one.ctime_segment_id()).min();
        let oldest = oldest.ok_or(Status::InvalidArgument)?;
        let mergeable = |one: &Arc<Tablet>| {
            let stale_below = one.stale_below.load(Ordering::Relaxed);
            let counts_from = oldest.max(first_segment);
            let settled = one.writable() && !one.moving.load(Ordering::Acquire);
            settled && (one.ctime_segment_id() == oldest || stale_below <= counts_from)
        };
        if parts.iter().all(mergeable) {
            Ok(oldest)
        } else {
            Err(Status::Retry)
        }
    }

    /// Makes one tablet of those that make up a range; `ctime` is what `merged_ctime` says.
    ///
    /// # Errors
    /// `InvalidArgument` unless they make up the range.
    pub fn merge(&mut self, range: SlotRange, ctime: u64) -> Result<(), Status> {
        let parts = self.parts(&range)?;
        let merged = Tablet::new(range, Service::Full, ctime);
        for part in &parts {
            let count = |counter: &AtomicI64| counter.load(Ordering::Relaxed);
            merged.count(count(&part.records), count(&part.bytes));
            merged
                .stale_below
                .fetch_max(part.stale_below.load(Ordering::Relaxed), Ordering::Relaxed);
            self.remove(&part.range);
        }
        self.insert_sorted(merged);
        Ok(())
    }

    /// Makes two of a tablet; all of the lower half is counted.
    pub fn cut(&mut self, tablet: &Tablet, lower: &LowerHalf) {
        let value = |counter: &AtomicI64| counter.load(Ordering::Relaxed);
        let below = (value(&lower.records), value(&lower.bytes));
        let all = (value(&tablet.records), value(&tablet.bytes));
        let halves = [
            (tablet.range.start_slot, lower.end - 1, below),
            (
                lower.end,
                tablet.range.end_slot,
                (all.0 - below.0, all.1 - below.1),
            ),
        ];
        self.remove(&tablet.range);
        for (start_slot, end_slot, (records, bytes)) in halves {
            let range = SlotRange {
                table_id: tablet.range.table_id,
                start_slot,
                end_slot,
            };
            let half = Tablet::new(range, Service::Full, tablet.ctime_segment_id());
            half.count(records, bytes);
            half.stale_below.store(
                tablet.stale_below.load(Ordering::Relaxed),
                Ordering::Relaxed,
            );
            self.insert_sorted(half);
        }
    }

    /// The log keeps entries of a tablet of this table that is gone, in segments below this one.
    pub fn give_up(&mut self, table_id: u64, segment_id: u64) {
        self.given_up.insert(table_id, segment_id);
    }

    /// Segments below are not in memory any more.
    pub fn forget_given_up(&mut self, first_segment: u64) {
        self.given_up.retain(|_, below| *below > first_segment);
    }

    /// Entries of a range that is nobody's are being taken out of the table.
    pub fn begin_erasing(&mut self, range: SlotRange) {
        self.erasing.push(range);
    }

    /// None is left.
    pub fn end_erasing(&mut self, range: &SlotRange) {
        let place = self.erasing.iter().position(|erasing| erasing == range);
        self.erasing
            .swap_remove(place.expect("an erasure that ends has begun"));
    }

    /// Whether a part of a range is being erased.
    pub fn erasing(&self, range: &SlotRange) -> bool {
        self.erasing.iter().any(|erasing| erasing.overlaps(range))
    }

    /// Adds a tablet that overlaps none.
    ///
    /// # Errors
    /// `InvalidArgument` on an overlap, `Retry` while a part of it is being erased, `OutOfMemory`
    /// if there are too many.
    pub fn insert(&mut self, tablet: Arc<Tablet>) -> Result<(), Status> {
        if self.exact(&tablet.range)?.is_some() {
            return Err(Status::InvalidArgument);
        }
        if self.erasing(&tablet.range) {
            return Err(Status::Retry);
        }
        if self.sorted.len() >= TABLETS_MAX {
            return Err(Status::OutOfMemory);
        }
        let stale_below = self.given_up.get(&tablet.range.table_id);
        tablet
            .stale_below
            .store(stale_below.copied().unwrap_or(0), Ordering::Relaxed);
        self.insert_sorted(tablet);
        Ok(())
    }

    fn insert_sorted(&mut self, tablet: Arc<Tablet>) {
        let at = self
            .sorted
            .partition_point(|other| other.range < tablet.range);
        self.sorted.insert(at, tablet);
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
                .insert(Tablet::new(range(table, start, end), Service::Full, 0))
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
        let overlap = tablets.insert(Tablet::new(range(1, 19, 25), Service::Full, 0));
        assert_eq!(overlap, Err(Status::InvalidArgument));
        assert!(tablets.exact(&range(1, 10, 19)).expect("fits").is_some());
        tablets.remove(&range(1, 10, 19));
        assert!(tablets.find(1, 15).is_none());
    }
}

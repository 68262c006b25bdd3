//! The hash table: from a key hash to the arena offset of its newest entry. Lock-free.
//!
//! A bucket is one cache line of 8 slots: 16 bits of tag, a chain bit, 47 bits of reference
//! (offset / 8 + 1). When the last slot's chain bit is set, it names an overflow bucket instead.
//! Whether an entry found by tag has the wanted key is the caller's test.
//!
//! Every change of a slot is a compare-and-swap from the word that was seen, but for one: while no
//! replay runs, nobody else touches a vacant slot, and the serving thread just stores into it. Who
//! may do what at the same time:
//! - one *serving thread*, under the serving lock: `find` + [`Slot::replace`], `insert`, `erase`,
//!   `retain`, `begin_replay`, `end_replay`;
//! - one *cleaner thread*: `relocate`, `refers_to`;
//! - any number of *replay threads*, between `begin_replay` and `end_replay`: `find`, `upsert` of
//!   keys that nobody else inserts.
//!
//! An entry keeps its slot until it is erased, except that the last slot of a full bucket moves to
//! the first of a fresh overflow bucket: it is written there, then the chain word takes its place
//! by a swap from the word that was copied. So a walk along the chain never misses an entry that
//! stays in the table, and a swap on the old place fails.
//!
//! A key of a replay goes to the first empty slot of its chain. No slot becomes empty while a
//! replay runs: an erased one becomes a *grave*, which only the serving thread uses again, and no
//! overflow bucket is unlinked. Hence two threads cannot insert one key twice: the first empty slot
//! they see is the same, one wins it, and the other looks at it again. An unlinked bucket is reused
//! once no `relocate` can still be walking through it, so that no swap strays.

mod first_empty;
mod memory;
mod prefetch;
pub mod report;
mod scan;
mod sweep;
#[cfg(all(target_arch = "x86_64", not(loom)))]
mod wide;

use self::first_empty::first_empty;
use self::memory::Buckets;
pub use self::prefetch::prefetch;
use self::scan::{entries_with, vacant};
use crate::status::Status;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering, fence};

const SLOTS: usize = 8;
const LAST: usize = SLOTS - 1;
const CHAIN: u64 = 1 << 47;
const REFERENCE_MASK: u64 = CHAIN - 1;
const TAG_MASK: u64 = 0xffff << 48;
/// Once an entry: refers to nothing, but is not empty.
const GRAVE: u64 = 1 << 48;
/// Log bytes for each bucket: 4 – 5 of its slots are used when a log of 160-byte entries is full
/// to 90 %, and the table has 8 % of the log's size.
const LOG_BYTES_PER_BUCKET: usize = 800;

type Bucket = [AtomicU64; SLOTS];

struct Overflow {
    /// Never used so far: [next, end).
    next: usize,
    end: usize,
    free: Vec<usize>,
    /// Unlinked, but a `relocate` may still be walking there.
    unlinked: Vec<usize>,
}

/// See the file's head.
pub struct HashTable {
    memory: Buckets,
    buckets: usize,
    overflow: Mutex<Overflow>,
    /// Running replays; changed by the serving thread.
    replays: AtomicUsize,
    /// The cleaner is in `relocate`.
    relocating: AtomicBool,
    /// Replay threads add to it later than they insert.
    entries: AtomicI64,
}

/// A stretch of work of the cleaner.
pub struct Relocation<'a> {
    table: &'a HashTable,
}

/// A slot and the word that was seen in it.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    word: &'a AtomicU64,
    seen: u64,
}

impl Slot<'_> {
    /// Whether the slot is still as it was seen: then the entry seen is still that of its key.
    #[inline]
    pub fn unchanged(&self) -> bool {
        self.word.load(Ordering::Acquire) == self.seen
    }

    /// Lets the slot refer to the entry at `offset`, whose bytes are complete. False if the slot
    /// has changed since it was found: then the key must be looked up again.
    #[inline]
    #[must_use]
    pub fn replace(&self, offset: usize) -> bool {
        swap(
            self.word,
            self.seen,
            (self.seen & TAG_MASK) | encode(offset),
        )
    }
}

/// What `upsert` shall do about an entry with the same tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It belongs to another key.
    Other,
    /// It stays.
    Keep,
    /// The new one takes its place.
    Replace,
}

/// What `upsert` has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upserted {
    /// The key was not there.
    Inserted,
    /// The entry at this offset has lost its place.
    Replaced(usize),
    /// The entry at this offset has kept its place.
    Kept(usize),
}

#[inline(always)]
fn swap(word: &AtomicU64, seen: u64, new: u64) -> bool {
    word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

#[inline(always)]
fn tag(hash: u64) -> u64 {
    ((hash ^ (hash >> 32)) & 0xffff) << 48
}

#[inline(always)]
fn encode(offset: usize) -> u64 {
    assert!(offset.is_multiple_of(8), "entries are aligned");
    (offset as u64 >> 3) + 1
}

#[inline(always)]
fn decode(word: u64) -> usize {
    ((word & REFERENCE_MASK) as usize - 1) << 3
}

#[inline(always)]
fn is_entry(word: u64) -> bool {
    word & CHAIN == 0 && word & REFERENCE_MASK != 0
}

impl HashTable {
    /// A table for a log of `arena_bytes`, and twice as many overflow buckets, whose pages cost
    /// nothing until they are used.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(arena_bytes: usize) -> Result<Self, Status> {
        let buckets = (arena_bytes / LOG_BYTES_PER_BUCKET).max(1);
        Self::with_buckets(buckets, 2 * buckets)
    }

    fn with_buckets(buckets: usize, overflow: usize) -> Result<Self, Status> {
        assert!(
            buckets <= u32::MAX as usize,
            "32 bits of the hash choose the bucket"
        );
        let end = buckets + overflow;
        Ok(Self {
            memory: Buckets::reserve(end)?,
            buckets,
            overflow: Mutex::new(Overflow {
                next: buckets,
                end,
                free: Vec::new(),
                unlinked: Vec::new(),
            }),
            replays: AtomicUsize::new(0),
            relocating: AtomicBool::new(false),
            entries: AtomicI64::new(0),
        })
    }

    #[inline(always)]
    fn bucket(&self, index: usize) -> &Bucket {
        self.memory.get(index)
    }

    #[inline(always)]
    fn index(&self, hash: u64) -> usize {
        (((hash & 0xffff_ffff) * self.buckets as u64) >> 32) as usize
    }

    /// Fetches the bucket of a hash ahead of its use.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch(std::ptr::from_ref(self.bucket(self.index(hash))).cast());
    }

    /// Slot and offset of what may be the entry of this hash: one with its tag in the first bucket.
    /// A guess for whoever looks again.
    #[inline(always)]
    pub fn candidate(&self, hash: u64) -> Option<(Slot<'_>, usize)> {
        let (word, seen) = scan::tagged(self.bucket(self.index(hash)), tag(hash))?;
        Some((Slot { word, seen }, decode(seen)))
    }

    /// Slot and offset of the entry with this hash that `matches` accepts.
    #[inline]
    pub fn find(
        &self,
        hash: u64,
        mut matches: impl FnMut(usize) -> bool,
    ) -> Option<(Slot<'_>, usize)> {
        let tag = tag(hash);
        let mut index = self.index(hash);
        loop {
            let bucket = self.bucket(index);
            let (words, numbers) = entries_with(bucket, tag);
            for number in numbers {
                let (word, seen) = (&bucket[number], words[number]);
                if matches(decode(seen)) {
                    return Some((Slot { word, seen }, decode(seen)));
                }
            }
            if words[LAST] & CHAIN == 0 {
                return None;
            }
            index = (words[LAST] & REFERENCE_MASK) as usize;
        }
    }

    /// Whether the table refers to the entry at `offset`.
    #[inline]
    pub fn refers_to(&self, hash: u64, offset: usize) -> bool {
        self.slot_of(hash, offset).is_some()
    }

    /// The slot that refers to `offset`, without a guess at each: the whole word is known.
    #[inline]
    fn slot_of(&self, hash: u64, offset: usize) -> Option<Slot<'_>> {
        let seen = tag(hash) | encode(offset);
        let mut index = self.index(hash);
        loop {
            let bucket = self.bucket(index);
            let mut same = 0u32;
            for (number, word) in bucket.iter().enumerate() {
                same |= u32::from(word.load(Ordering::Acquire) == seen) << number;
            }
            if same != 0 {
                let word = &bucket[same.trailing_zeros() as usize];
                return Some(Slot { word, seen });
            }
            // Later than the words: what the chain has taken from here is found there.
            let last = bucket[LAST].load(Ordering::Acquire);
            if last & CHAIN == 0 {
                return None;
            }
            index = (last & REFERENCE_MASK) as usize;
        }
    }

    /// Lets the table refer to the copy of an entry instead of the entry; for the cleaner thread.
    /// False if the table does not refer to the entry any more.
    #[inline]
    pub fn relocate(&self, hash: u64, old_offset: usize, new_offset: usize) -> bool {
        self.begin_relocation()
            .relocate(hash, old_offset, new_offset)
    }

    /// For many entries; overflow buckets are not used again meanwhile.
    #[inline]
    pub fn begin_relocation(&self) -> Relocation<'_> {
        self.relocating.store(true, Ordering::Relaxed);
        // Pairs with the fence in `Overflow::reclaim`: either it sees this walk, or this walk sees
        // that the bucket is unlinked.
        fence(Ordering::SeqCst);
        Relocation { table: self }
    }

    /// Adds an entry whose key is not in the table; for the serving thread.
    ///
    /// # Errors
    /// `OutOfMemory` if the overflow buckets are used up.
    #[inline]
    pub fn insert(&self, hash: u64, offset: usize) -> Result<(), Status> {
        let new = tag(hash) | encode(offset);
        let mut index = self.index(hash);
        loop {
            let bucket = self.bucket(index);
            if let Some((word, seen)) = vacant(bucket) {
                if !self.replaying() {
                    // Only replay threads compete for it: no need to wait until the stores before
                    // this one, of an entry's bytes, are in the cache.
                    word.store(new, Ordering::Release);
                    let entries = self.entries.load(Ordering::Relaxed);
                    self.entries.store(entries + 1, Ordering::Relaxed);
                    return Ok(());
                }
                if swap(word, seen, new) {
                    self.count_inserted(1);
                    return Ok(());
                }
            } else {
                index = self.next_bucket(bucket)?;
            }
        }
    }

    /// Adds an entry or replaces the one of its key, as `decide` says about each entry with its
    /// tag; for replay threads, which add what they have inserted by `count_inserted`.
    ///
    /// # Errors
    /// `OutOfMemory` if the overflow buckets are used up.
    #[inline]
    pub fn upsert(
        &self,
        hash: u64,
        offset: usize,
        mut decide: impl FnMut(usize) -> Decision,
    ) -> Result<Upserted, Status> {
        let tag = tag(hash);
        let new = tag | encode(offset);
        let mut index = self.index(hash);
        if let Some(empty) = first_empty(self.bucket(index), tag)
            && swap(empty, 0, new)
        {
            return Ok(Upserted::Inserted);
        }
        loop {
            let bucket = self.bucket(index);
            let mut number = 0;
            while number < SLOTS {
                let word = &bucket[number];
                let seen = word.load(Ordering::Acquire);
                if number == LAST && seen & CHAIN != 0 {
                    break;
                }
                // A swap that fails looks at the same slot again.
                if seen == 0 {
                    if swap(word, seen, new) {
                        return Ok(Upserted::Inserted);
                    }
                } else if seen & TAG_MASK == tag && is_entry(seen) {
                    match decide(decode(seen)) {
                        Decision::Other => number += 1,
                        Decision::Keep => return Ok(Upserted::Kept(decode(seen))),
                        Decision::Replace => {
                            if swap(word, seen, new) {
                                return Ok(Upserted::Replaced(decode(seen)));
                            }
                        }
                    }
                } else {
                    number += 1;
                }
            }
            index = self.next_bucket(bucket)?;
        }
    }

    /// Counts entries that `upsert` has inserted.
    #[inline]
    pub fn count_inserted(&self, count: usize) {
        self.entries.fetch_add(count as i64, Ordering::Relaxed);
    }

    /// The bucket behind one without empty slots: the chain's next, or a fresh one.
    fn next_bucket(&self, bucket: &Bucket) -> Result<usize, Status> {
        let mut fresh = None;
        loop {
            let last = bucket[LAST].load(Ordering::Acquire);
            if last & CHAIN != 0 {
                if let Some(fresh) = fresh {
                    self.overflow.lock().free.push(fresh);
                }
                return Ok((last & REFERENCE_MASK) as usize);
            }
            let index = match fresh {
                Some(index) => index,
                None => self.take_overflow().ok_or(Status::OutOfMemory)?,
            };
            self.bucket(index)[0].store(last, Ordering::Relaxed);
            if swap(&bucket[LAST], last, CHAIN | index as u64) {
                return Ok(index);
            }
            fresh = Some(index);
        }
    }

    /// Takes the entry at `offset` out if it is (still) in the table; says whether. For the serving
    /// thread.
    pub fn erase(&self, hash: u64, offset: usize) -> bool {
        let wanted = tag(hash) | encode(offset);
        let mut previous = None;
        let mut index = self.index(hash);
        loop {
            let bucket = self.bucket(index);
            let mut found = bucket.iter();
            if let Some(word) = found.find(|word| word.load(Ordering::Relaxed) == wanted) {
                if !swap(word, wanted, self.vacated()) {
                    // Relocated, or moved on by the chain.
                    (index, previous) = (self.index(hash), None);
                    continue;
                }
                self.entries.fetch_sub(1, Ordering::Relaxed);
                if let Some(previous) = previous {
                    self.unlink_if_empty(previous, index);
                }
                return true;
            }
            let last = bucket[LAST].load(Ordering::Acquire);
            if last & CHAIN == 0 {
                return false;
            }
            previous = Some(index);
            index = (last & REFERENCE_MASK) as usize;
        }
    }

    /// Whether replay threads may insert; for the serving thread.
    #[inline]
    pub fn replaying(&self) -> bool {
        self.replays.load(Ordering::Relaxed) > 0
    }

    #[inline]
    fn vacated(&self) -> u64 {
        if self.replaying() { GRAVE } else { 0 }
    }

    fn unlink_if_empty(&self, previous: usize, index: usize) {
        if self.replaying() {
            return;
        }
        let vacant = |word: &AtomicU64| matches!(word.load(Ordering::Relaxed), 0 | GRAVE);
        if !self.bucket(index).iter().all(vacant) {
            return;
        }
        let unlinked = swap(&self.bucket(previous)[LAST], CHAIN | index as u64, 0);
        assert!(unlinked, "only the serving thread changes a chain word");
        let mut overflow = self.overflow.lock();
        overflow.unlinked.push(index);
        overflow.reclaim(&self.relocating);
    }

    fn take_overflow(&self) -> Option<usize> {
        let mut overflow = self.overflow.lock();
        overflow.reclaim(&self.relocating);
        if let Some(index) = overflow.free.pop() {
            for word in self.bucket(index) {
                word.store(0, Ordering::Relaxed);
            }
            return Some(index);
        }
        if overflow.next == overflow.end {
            return None;
        }
        overflow.next += 1;
        Some(overflow.next - 1)
    }

    /// A replay starts: see the file's head. For the serving thread.
    pub fn begin_replay(&self) {
        self.replays.fetch_add(1, Ordering::Relaxed);
    }

    /// A replay has ended: its threads do not come back.
    pub fn end_replay(&self) {
        let before = self.replays.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a replay that ends has begun");
    }

    /// Buckets, overflow buckets not counted.
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    /// Overflow buckets in use.
    pub fn overflow_buckets(&self) -> usize {
        let overflow = self.overflow.lock();
        overflow.next - self.buckets - overflow.free.len() - overflow.unlinked.len()
    }

    /// Bytes of the buckets that every key may hit first.
    pub fn bucket_bytes(&self) -> usize {
        self.buckets * size_of::<Bucket>()
    }

    /// See [`Mapping::populate`].
    pub fn populate(&self, offset: usize, bytes: usize) {
        self.memory.populate(offset, bytes);
    }

    /// Gives all pages back to the system; for a master that is closed.
    pub fn release_pages(&self) {
        self.memory.release_pages();
    }
}

impl Relocation<'_> {
    /// See `HashTable::relocate`.
    #[inline]
    pub fn relocate(&self, hash: u64, old_offset: usize, new_offset: usize) -> bool {
        loop {
            match self.table.slot_of(hash, old_offset) {
                None => return false,
                Some(slot) if slot.replace(new_offset) => return true,
                // Superseded, or moved on by the chain: look again.
                Some(_) => {}
            }
        }
    }
}

impl Drop for Relocation<'_> {
    fn drop(&mut self) {
        self.table.relocating.store(false, Ordering::Release);
    }
}

impl Overflow {
    /// Unlinked buckets may be used again if no `relocate` runs: a later one cannot get there.
    fn reclaim(&mut self, relocating: &AtomicBool) {
        fence(Ordering::SeqCst);
        if !relocating.load(Ordering::Acquire) {
            self.free.append(&mut self.unlinked);
        }
    }
}

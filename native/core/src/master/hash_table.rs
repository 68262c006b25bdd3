//! The hash table: from a key hash to the arena offset of its newest entry.
//!
//! A bucket is one cache line of 8 slots: 16 bits of tag, a chain bit, 47 bits of reference
//! (offset / 8 + 1; 0 is empty). When the last slot's chain bit is set, it names an overflow bucket
//! instead. Readers are lock-free; whoever changes a bucket holds its stripe's lock across lookup,
//! append and publication. A slot that holds a key's entry keeps its place until it is cleared or,
//! if it is the last of a full bucket, moves: to the overflow bucket first, then the chain is
//! published, so a reader finds it in one of the two. Whether an entry found by tag has the wanted
//! key is the caller's test; therefore a reader who strays into a reused overflow bucket only
//! compares keys in vain.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::mapping::Mapping;
use crate::status::Status;

const SLOTS: usize = 8;
const LAST: usize = SLOTS - 1;
const STRIPES: usize = 4096;
const CHAIN: u64 = 1 << 47;
const REFERENCE_MASK: u64 = CHAIN - 1;

type Bucket = [AtomicU64; SLOTS];

struct Overflow {
    /// Never used so far: [next, end).
    next: usize,
    end: usize,
    free: Vec<usize>,
}

/// See the file's head.
pub struct HashTable {
    memory: Mapping,
    buckets: usize,
    overflow_first: usize,
    overflow: Mutex<Overflow>,
    stripes: Box<[Mutex<()>]>,
}

/// A place in the table; changed only under the stripe's lock.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    word: &'a AtomicU64,
    tag: u64,
}

impl Slot<'_> {
    /// Publishes the entry at `offset`, whose bytes are complete.
    #[inline]
    pub fn publish(&self, offset: usize) {
        self.word
            .store(self.tag | encode(offset), Ordering::Release);
    }
}

#[inline(always)]
fn tag(hash: u64) -> u64 {
    ((hash >> 16 ^ hash >> 48) & 0xffff) << 48
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

/// Fetches a cache line ahead of its use.
#[inline(always)]
pub fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

impl HashTable {
    /// A table for a log of `arena_bytes`: at least one bucket per 640 bytes, and twice as many
    /// overflow buckets, whose pages cost nothing until they are used.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn new(arena_bytes: usize) -> Result<Self, Status> {
        Self::with_buckets((arena_bytes / 640).next_power_of_two(), None)
    }

    fn with_buckets(buckets: usize, overflow: Option<usize>) -> Result<Self, Status> {
        assert!(buckets.is_power_of_two(), "the mask needs a power of two");
        let end = buckets + overflow.unwrap_or(2 * buckets);
        Ok(Self {
            memory: Mapping::reserve(end * size_of::<Bucket>())?,
            buckets,
            overflow_first: buckets,
            overflow: Mutex::new(Overflow {
                next: buckets,
                end,
                free: Vec::new(),
            }),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
        })
    }

    #[inline(always)]
    fn bucket(&self, index: usize) -> &Bucket {
        // SAFETY: indices are masked or come from `overflow`, both below its `end`; the memory is
        // zeroed, aligned to 64 and only accessed as atomics.
        unsafe { &*self.memory.base().cast::<Bucket>().add(index) }
    }

    #[inline(always)]
    fn index(&self, hash: u64) -> usize {
        hash as usize & (self.buckets - 1)
    }

    /// Excludes all other changes of keys with this hash.
    #[inline]
    pub fn lock(&self, hash: u64) -> MutexGuard<'_, ()> {
        self.stripes[self.index(hash) & (STRIPES - 1)].lock()
    }

    /// Fetches the bucket of a hash ahead of its use.
    #[inline(always)]
    pub fn prefetch_bucket(&self, hash: u64) {
        prefetch(std::ptr::from_ref(self.bucket(self.index(hash))).cast());
    }

    /// Calls `each` with the offsets of the first bucket's entries that may have this hash.
    #[inline]
    pub fn candidates(&self, hash: u64, mut each: impl FnMut(usize)) {
        let wanted = tag(hash);
        for slot in self.bucket(self.index(hash)) {
            let word = slot.load(Ordering::Acquire);
            if word & !REFERENCE_MASK == wanted && word & REFERENCE_MASK != 0 {
                each(decode(word));
            }
        }
    }

    /// Offset of the entry with this hash that `matches` accepts.
    #[inline]
    pub fn lookup(&self, hash: u64, matches: impl FnMut(usize) -> bool) -> Option<usize> {
        self.find(hash, matches).map(|(_, offset)| offset)
    }

    /// The same with its slot, for a holder of the stripe's lock.
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
            let mut next = None;
            for (number, word) in bucket.iter().enumerate() {
                let value = word.load(Ordering::Acquire);
                if value & CHAIN != 0 && number == LAST {
                    next = Some((value & REFERENCE_MASK) as usize);
                } else if value & !REFERENCE_MASK == tag && value & REFERENCE_MASK != 0 {
                    let offset = decode(value);
                    if matches(offset) {
                        return Some((Slot { word, tag }, offset));
                    }
                }
            }
            index = next?;
        }
    }

    /// An empty slot for a hash that is not in the table; the caller holds the stripe's lock.
    ///
    /// # Errors
    /// `OutOfMemory` if the overflow buckets are used up.
    #[inline]
    pub fn empty_slot(&self, hash: u64) -> Result<Slot<'_>, Status> {
        let tag = tag(hash);
        let mut index = self.index(hash);
        loop {
            let bucket = self.bucket(index);
            for word in bucket {
                if word.load(Ordering::Relaxed) == 0 {
                    return Ok(Slot { word, tag });
                }
            }
            let last = bucket[LAST].load(Ordering::Relaxed);
            if last & CHAIN == 0 {
                index = self.take_overflow().ok_or(Status::OutOfMemory)?;
                self.bucket(index)[0].store(last, Ordering::Release);
                bucket[LAST].store(CHAIN | index as u64, Ordering::Release);
            } else {
                index = (last & REFERENCE_MASK) as usize;
            }
        }
    }

    /// Clears the slot of the entry at `offset` if it is (still) in the table; says whether. The
    /// caller holds the stripe's lock.
    pub fn erase(&self, hash: u64, offset: usize) -> bool {
        let wanted = tag(hash) | encode(offset);
        let mut previous = None;
        let mut index = self.index(hash);
        loop {
            let bucket = self.bucket(index);
            if let Some(word) = bucket
                .iter()
                .find(|word| word.load(Ordering::Relaxed) == wanted)
            {
                word.store(0, Ordering::Release);
                if let Some(previous) = previous {
                    self.unlink_if_empty(previous, index);
                }
                return true;
            }
            let last = bucket[LAST].load(Ordering::Relaxed);
            if last & CHAIN == 0 {
                return false;
            }
            previous = Some(index);
            index = (last & REFERENCE_MASK) as usize;
        }
    }

    fn unlink_if_empty(&self, previous: usize, index: usize) {
        if self
            .bucket(index)
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == 0)
        {
            self.bucket(previous)[LAST].store(0, Ordering::Release);
            self.overflow.lock().free.push(index);
        }
    }

    fn take_overflow(&self) -> Option<usize> {
        let mut overflow = self.overflow.lock();
        if let Some(index) = overflow.free.pop() {
            return Some(index);
        }
        if overflow.next == overflow.end {
            return None;
        }
        overflow.next += 1;
        Some(overflow.next - 1)
    }

    /// Clears all slots whose entry `dead` names, bucket by bucket under its stripe's lock.
    /// `ahead` sees each entry some buckets earlier, to fetch it.
    pub fn retain(&self, ahead: impl Fn(usize), dead: impl Fn(usize) -> bool) {
        const AHEAD: usize = 16;
        for index in 0..self.buckets {
            if index + AHEAD < self.buckets {
                for word in self.bucket(index + AHEAD) {
                    let value = word.load(Ordering::Relaxed);
                    if value != 0 && value & CHAIN == 0 {
                        ahead(decode(value));
                    }
                }
            }
            let _guard = self.stripes[index & (STRIPES - 1)].lock();
            self.retain_chain(index, &dead);
        }
    }

    fn retain_chain(&self, first: usize, dead: &impl Fn(usize) -> bool) {
        let (mut index, mut previous) = (first, None);
        loop {
            let bucket = self.bucket(index);
            for word in bucket {
                let value = word.load(Ordering::Relaxed);
                if value != 0 && value & CHAIN == 0 && dead(decode(value)) {
                    word.store(0, Ordering::Release);
                }
            }
            let last = bucket[LAST].load(Ordering::Relaxed);
            if last & CHAIN == 0 {
                if let Some(previous) = previous {
                    self.unlink_if_empty(previous, index);
                }
                return;
            }
            previous = Some(index);
            index = (last & REFERENCE_MASK) as usize;
        }
    }

    /// Buckets, overflow buckets not counted.
    pub fn buckets(&self) -> usize {
        self.buckets
    }

    /// Overflow buckets in use.
    pub fn overflow_buckets(&self) -> usize {
        let overflow = self.overflow.lock();
        overflow.next - self.overflow_first - overflow.free.len()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_grow_shrink_and_say_no() {
        let table = HashTable::with_buckets(2, Some(3)).expect("small table");
        let hash = |number: u64| number << 17; // all in bucket 0, tags differ
        // 7 + 7 + 7 slots before chains, and the last bucket's eighth.
        let room = 7 * 3 + 8;
        for number in 0..room {
            let slot = table.empty_slot(hash(number)).expect("room");
            slot.publish(number as usize * 8);
        }
        assert_eq!(table.overflow_buckets(), 3);
        assert_eq!(
            table.empty_slot(hash(room)).err(),
            Some(Status::OutOfMemory)
        );
        for number in 0..room {
            let found = table.lookup(hash(number), |offset| offset == number as usize * 8);
            assert_eq!(found, Some(number as usize * 8), "{number}");
        }
        for number in (0..room).rev() {
            assert!(table.erase(hash(number), number as usize * 8));
            assert!(!table.erase(hash(number), number as usize * 8));
        }
        assert_eq!(table.overflow_buckets(), 0);
    }

    #[test]
    fn retain_clears_what_is_named() {
        let table = HashTable::with_buckets(16, None).expect("small table");
        let hash = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for number in 0..200u64 {
            table
                .empty_slot(hash(number))
                .expect("room")
                .publish(number as usize * 8);
        }
        table.retain(|_| (), |offset| offset % 16 == 0);
        for number in 0..200u64 {
            let found = table.lookup(hash(number), |offset| offset == number as usize * 8);
            assert_eq!(found.is_some(), number % 2 == 1, "{number}");
        }
    }
}

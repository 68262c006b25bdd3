//! Fetches what the next operations of a message need while one is executed: their cache misses
//! overlap with each other and with work.
//!
//! Rule: what is found here is a guess, made before the operations in front of it are executed:
//! [`Planned::current`] looks the key up unless the slot is as it was. Entries stay where they are
//! while the message runs, since its thread is pinned (`epoch`).

use super::hash_table::{Slot, prefetch};
use super::message::{Operation, OperationKind};
use super::objects::{Current, Objects};
use crate::key_hash::key_hashes;

/// Operations that take each step together. A prefetch holds up what follows until its page is
/// translated; those that follow each other closely are translated at the same time.
const GROUP: usize = 16;
/// Operations on their way: a group is executed while the buckets of the next are fetched.
const RING: usize = 2 * GROUP;
const LINE_BYTES: usize = 64;
/// Header and a short key.
const ENTRY_BYTES_MIN: usize = 64;
/// Most bytes of an entry to fetch; the processor fetches what follows by itself.
const ENTRY_BYTES_MAX: usize = 1024;

/// Bytes of entries that are worth fetching.
#[derive(Clone, Copy, Debug, Default)]
pub struct FetchBytes {
    /// By reads: all of it.
    pub read: usize,
    /// By what replaces it: all before the value. The prior segments lie in front of the key.
    pub replace: usize,
}

/// An operation on its way.
#[derive(Clone, Copy)]
pub struct Planned<'a, 'o> {
    /// What to do.
    pub operation: Operation<'a>,
    /// Of its key.
    pub hash: u64,
    candidate: Option<(Slot<'o>, usize)>,
}

impl<'o> Planned<'_, 'o> {
    /// The newest entry of the key.
    #[inline(always)]
    pub fn current(&self, objects: &'o Objects) -> Option<Current<'o>> {
        let Operation { table_id, key, .. } = self.operation;
        if let Some((slot, offset)) = self.candidate
            && slot.unchanged()
            && let Some(entry) = objects.entry_of(offset, table_id, key)
        {
            return Some(Current {
                slot,
                offset,
                entry,
            });
        }
        objects.find(self.hash, table_id, key)
    }
}

/// The operations of a message on their way.
pub struct Pipeline<'a, 'o, I> {
    objects: &'o Objects,
    operations: I,
    ring: Vec<Planned<'a, 'o>>,
    /// Operations whose buckets were asked for.
    hashed: usize,
    /// Operations whose entries were asked for.
    located: usize,
    /// Operations handed out.
    taken: usize,
    fetch_bytes: FetchBytes,
}

impl<'a, 'o, I: Iterator<Item = Operation<'a>>> Pipeline<'a, 'o, I> {
    /// For a message of `count` operations that will probably want so much of their entries.
    /// Nothing is fetched before `next`.
    pub fn new(objects: &'o Objects, operations: I, count: usize, wanted: FetchBytes) -> Self {
        let bounded = |bytes: usize| bytes.clamp(ENTRY_BYTES_MIN, ENTRY_BYTES_MAX);
        Self {
            objects,
            operations,
            ring: Vec::with_capacity(count.min(RING)),
            hashed: 0,
            located: 0,
            taken: 0,
            fetch_bytes: FetchBytes {
                read: bounded(wanted.read),
                replace: bounded(wanted.replace),
            },
        }
    }

    /// The next operation to be executed.
    #[inline]
    pub fn next(&mut self) -> Option<&Planned<'a, 'o>> {
        if self.taken == self.located {
            self.advance();
            if self.taken == self.located {
                return None;
            }
        }
        self.taken += 1;
        Some(&self.ring[(self.taken - 1) % RING])
    }

    /// Fetches the entries of the next group and the buckets of the one behind. The first entries
    /// are used at once: to wait a group longer for them gained nothing.
    fn advance(&mut self) {
        if self.hashed == self.located {
            self.fetch_buckets();
        }
        self.fetch_entries();
        self.fetch_buckets();
    }

    fn fetch_buckets(&mut self) {
        let mut keys: [(u64, &[u8]); GROUP] = [(0, &[]); GROUP];
        let mut hashes = [0; GROUP];
        let mut count = 0;
        for (key, operation) in keys.iter_mut().zip(&mut self.operations) {
            *key = (operation.table_id, operation.key);
            let planned = Planned {
                operation,
                hash: 0,
                candidate: None,
            };
            match self.ring.get_mut((self.hashed + count) % RING) {
                Some(place) => *place = planned,
                None => self.ring.push(planned),
            }
            count += 1;
        }
        key_hashes(&keys[..count], &mut hashes[..count]);
        for hash in &hashes[..count] {
            self.objects.table.prefetch_bucket(*hash);
        }
        for hash in &hashes[..count] {
            self.ring[self.hashed % RING].hash = *hash;
            self.hashed += 1;
        }
    }

    fn fetch_entries(&mut self) {
        let mut starts = [(std::ptr::null::<u8>(), 0); GROUP];
        let mut count = 0;
        while self.located < self.hashed {
            let planned = &mut self.ring[self.located % RING];
            planned.candidate = self.objects.table.candidate(planned.hash);
            self.located += 1;
            if let Some((_, offset)) = planned.candidate {
                let bytes = match planned.operation.kind {
                    OperationKind::Read => self.fetch_bytes.read,
                    _ => self.fetch_bytes.replace,
                };
                // Where it lies in the log: what the answer waits for, what dies.
                self.objects.arena.prefetch_seglet(offset);
                let within = offset % LINE_BYTES;
                let start = self.objects.arena.pointer(offset - within);
                starts[count] = (start, (within + bytes).div_ceil(LINE_BYTES));
                count += 1;
            }
        }
        for (start, _) in &starts[..count] {
            prefetch(*start);
        }
        for (start, lines) in &starts[..count] {
            for line in 1..*lines {
                prefetch(start.wrapping_add(line * LINE_BYTES));
            }
        }
    }
}

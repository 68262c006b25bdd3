//! Looks up the operations of a message some at a time, so that their cache misses overlap.
//!
//! Rule: what is found here is a guess, made before the operations in front of it are executed:
//! [`Planned::current`] looks again unless the slot is as it was. Entries stay where they are while
//! the message runs, since its thread is pinned (`epoch`).

use super::hash_table::prefetch;
use super::message::{Operation, OperationKind};
use super::objects::{Current, Objects};
use crate::key_hash::key_hash;

/// Operations whose cache misses overlap.
const OPERATIONS: usize = 32;
const LINE_BYTES: usize = 64;
/// Lines of an entry that are fetched before anybody knows its length: header and key.
const LINES_FIRST: usize = 2;
/// Most lines that are fetched for a read; the processor fetches what follows by itself.
const LINES_MAX: usize = 16;

/// An operation that was looked up.
pub struct Planned<'a, 'o> {
    /// What to do.
    pub operation: Operation<'a>,
    /// Of its key.
    pub hash: u64,
    found: Option<Current<'o>>,
}

impl<'o> Planned<'_, 'o> {
    /// The newest entry of the key.
    #[inline]
    pub fn current(&self, objects: &'o Objects) -> Option<Current<'o>> {
        match self.found {
            Some(found) if found.slot.unchanged() => Some(found),
            _ => objects.find(self.hash, self.operation.table_id, self.operation.key),
        }
    }
}

/// Operations that are executed next.
pub struct Batch<'a, 'o> {
    planned: Vec<Planned<'a, 'o>>,
}

impl<'a, 'o> Batch<'a, 'o> {
    /// Room for the batches of a message of `count` operations.
    pub fn new(count: usize) -> Self {
        Self {
            planned: Vec::with_capacity(count.min(OPERATIONS)),
        }
    }

    /// Looks up the next operations; none at the end.
    #[inline]
    pub fn next(
        &mut self,
        objects: &'o Objects,
        operations: &mut impl Iterator<Item = Operation<'a>>,
    ) -> &[Planned<'a, 'o>] {
        self.planned.clear();
        for operation in operations.take(OPERATIONS) {
            let hash = key_hash(operation.table_id, operation.key);
            objects.table.prefetch_bucket(hash);
            self.planned.push(Planned {
                operation,
                hash,
                found: None,
            });
        }
        for planned in &self.planned {
            objects.table.candidates(planned.hash, |offset| {
                prefetch_lines(objects, offset, 0, LINES_FIRST);
            });
        }
        for planned in &mut self.planned {
            let Operation { table_id, key, .. } = planned.operation;
            planned.found = objects.find(planned.hash, table_id, key);
            if let Some(found) = &planned.found
                && planned.operation.kind == OperationKind::Read
            {
                let within = found.offset % LINE_BYTES;
                let lines = (within + found.entry.total_bytes()).div_ceil(LINE_BYTES);
                prefetch_lines(objects, found.offset, LINES_FIRST, lines.min(LINES_MAX));
            }
        }
        &self.planned
    }
}

#[inline(always)]
fn prefetch_lines(objects: &Objects, offset: usize, first: usize, end: usize) {
    let start = objects.arena.pointer(offset);
    for line in first..end {
        prefetch(start.wrapping_add(line * LINE_BYTES));
    }
}

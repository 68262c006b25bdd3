//! What `Master::verify` may find.

use thiserror::Error;

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
    /// The newest head does not say what it should of its master.
    #[error("the notes in segment {segment_id} are others than those in force")]
    Notes {
        /// The head.
        segment_id: u64,
    },
    /// A block is free and used, or counted wrongly.
    #[error("block {block} is free and used, or counted wrongly")]
    Block {
        /// Its number.
        block: usize,
    },
}

//! Status codes shared with TypeScript (`src/rpc/status.ts`; a test compares the two tables).
//!
//! Every fallible call of the core ends in one of these: the number crosses the N-API border and
//! the wire, the text is for logs.

use thiserror::Error;

/// Why a call of the core was refused or failed. Numbers are never reused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[repr(u16)]
#[non_exhaustive]
pub enum Status {
    /// No error; used as a result code on the wire only.
    #[error("ok")]
    Ok = 0,
    /// This master does not own the key's tablet (any more, or yet).
    #[error("tablet is not owned by this master")]
    UnknownTablet = 1,
    /// The table does not exist.
    #[error("table does not exist")]
    TableNotFound = 2,
    /// The object does not exist.
    #[error("object does not exist")]
    ObjectNotFound = 3,
    /// A reject rule asked for absence, and the object exists.
    #[error("object exists")]
    ObjectExists = 4,
    /// A reject rule on the version struck.
    #[error("object has another version")]
    WrongVersion = 5,
    /// Not now; try again after the given delay.
    #[error("try again later")]
    Retry = 6,
    /// The log or the hash table has no room.
    #[error("out of memory")]
    OutOfMemory = 7,
    /// Keys have 1 to 65,535 bytes.
    #[error("invalid key")]
    InvalidKey = 8,
    /// Values have at most 1 MiB.
    #[error("value too large")]
    ValueTooLarge = 9,
    /// The rpc id was acknowledged before: a late duplicate, never executed.
    #[error("stale rpc")]
    StaleRpc = 10,
    /// The message is not what `docs/formats.md` says.
    #[error("malformed request")]
    MalformedRequest = 11,
    /// A backup refuses a master that it has fenced.
    #[error("master is fenced")]
    Fenced = 18,
    /// The backup has no such open replica.
    #[error("replica unknown")]
    ReplicaUnknown = 19,
    /// The replica is closed and never changes again.
    #[error("replica closed")]
    ReplicaClosed = 20,
    /// All frames are in use.
    #[error("no free frame")]
    NoFreeFrame = 21,
    /// Bytes outside the segment.
    #[error("segment overflow")]
    SegmentOverflow = 22,
    /// Bytes do not match their checksum.
    #[error("checksum mismatch")]
    ChecksumMismatch = 23,
    /// The recovery is not known here (any more).
    #[error("recovery unknown")]
    RecoveryUnknown = 24,
    /// The data is being prepared.
    #[error("segment not ready")]
    SegmentNotReady = 25,
    /// The disk failed; the replica on it counts as lost.
    #[error("disk error")]
    DiskError = 26,
    /// A bug: a broken invariant or a panic.
    #[error("internal error")]
    Internal = 30,
    /// An argument outside its documented range.
    #[error("invalid argument")]
    InvalidArgument = 32,
}

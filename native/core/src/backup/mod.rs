//! Replicas of other masters' segments: frames on disk, restart, splitting for recovery.
//!
//! Rules: nothing is acknowledged before the flush that covers it (mode `fsync`); a block that
//! holds acknowledged bytes is never overwritten; bytes that do not match their certificate are
//! never handed out. `docs/formats.md` §4 has the bytes on disk. Modules, arrows downwards:
//!
//! - `storage`: the handle; `recovery`: reading and splitting; `compressor`: LZ4 after the close
//! - `write`: BACKUP_WRITE; `io_thread`: group commit; `frame_jobs`: frees and directories in it;
//!   `restart`: the scan; `read`, `digest`; `scrub`: reads everything again; `disk_failure`: what a
//!   failing disk costs; `stats`
//! - `state`, `frame_table`, `shared_frames`: replicas and frames in memory, one lock, never held
//!   over I/O
//! - `frame`, `directory`, `frame_file`, `superblock`, `lz4_image`, `split`, `segment_buffer`:
//!   formats and bytes
//!
//! Memory: at most `framesMax` open replicas of 8 MiB, [`compressor`]'s queue, two buffers a
//! recovery worker, two of the scrub and the cache of pieces.

mod compressor;
mod digest;
pub mod directory;
mod disk_failure;
pub mod frame;
pub mod frame_file;
mod frame_jobs;
mod frame_table;
mod io_thread;
pub mod lz4_image;
mod read;
mod recovery;
mod restart;
mod scrub;
mod segment_buffer;
mod shared_frames;
pub mod split;
mod state;
mod stats;
mod storage;
pub mod superblock;
mod write;
pub mod write_queue;

pub use digest::{Digest, parse_opening};
pub use recovery::PieceWaiter;
pub use storage::{
    BackupOptions, BackupStorage, Completion, DoneSink, Durability, Load, ReplicaReport,
    StorageError,
};
pub use superblock::Identity;
pub use write::Accepted;

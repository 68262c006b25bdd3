//! The storage engine of Rekindle: log-structured memory, hash table, replay, replica frames.
//!
//! Pure Rust that knows nothing of Node. `docs/formats.md` has every byte; `docs/architecture.md`
//! the reasons. Modules by layer, arrows downwards:
//!
//! - [`master`]: tablets, objects, EXECUTE messages, replay
//! - [`backup`]: frames on disk, splitting for recovery
//! - [`entry`], [`crc32c`], [`key_hash`], [`status`]: formats shared by both

pub mod backup;
pub mod crc32c;
pub mod entry;
pub mod key_hash;
mod little_endian;
mod mapping;
pub mod master;
pub mod status;
mod sync;
